"""Random bytes over what ranks tell each other in shared memory, but not over what they send.

The layout is that of transports/native/region.hpp; should it change, `areas` says so.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transports import _native
from transports.shm.connection import Geometry

LINE, PAGE = 64, 4096
HEADER, STANDING = 3 * PAGE, 60 * LINE
FIELDS = 24  # bytes of a descriptor before what it may carry inline
WRITES_TO = 736  # where in the standing of a rank that is


class Area(NamedTuple):
    """A piece of the region: where, how long, and how long its records and their fields are."""

    name: str
    begin: int
    length: int
    record: int = 1
    fields: int = 1


def _up(number: int, to: int) -> int:
    return -(-number // to) * to


def areas(geometry: Geometry, size: int) -> list[Area]:
    """All but payloads.

    Raises:
        ValueError: the region is not laid out as it is here.
    """
    acks = STANDING
    descriptors = acks + size * LINE
    lane_acks = descriptors + size * geometry.depth * LINE
    lane_descriptors = lane_acks + size * LINE
    slots = _up(lane_descriptors + size * geometry.lane_slots * LINE, PAGE)
    lanes = _up(slots + geometry.slots * (geometry.slot_bytes + LINE), PAGE)
    part = _up(lanes + size * geometry.lane_slots * geometry.lane_bytes, PAGE)
    total = _native.region_bytes(**geometry.for_ranks(size))
    if HEADER + size * part != total:
        raise ValueError(f"expected a region of {HEADER + size * part} bytes, found {total}")
    found = [Area("header", 0, LINE), Area("trouble", LINE, 12), Area("trouble text", 2 * LINE, 64)]
    for rank in range(size):
        begin = HEADER + rank * part
        found += [
            Area("standing", begin, STANDING),
            Area("acks", begin + acks, size * LINE, LINE, 16),
            Area("descriptors", begin + descriptors, lane_acks - descriptors, LINE, FIELDS),
            Area("lane acks", begin + lane_acks, size * LINE, LINE, 16),
            Area("lane descriptors", begin + lane_descriptors,
                 size * geometry.lane_slots * LINE, LINE, FIELDS),
        ]  # fmt: skip
    return found


def places(area: Area, dice: np.random.Generator, count: int | None) -> list[int]:
    """`count` random bytes of it that are no payload; None: all there are."""
    if count is None:
        return [
            record + field
            for record in range(area.begin, area.begin + area.length, area.record)
            for field in range(area.fields)
        ]
    records = dice.integers(0, area.length // area.record, count)
    return [
        area.begin + int(record) * area.record + int(dice.integers(area.fields))
        for record in records
    ]


def mapped_at(nbytes: int) -> int:
    """Where in this process the region lies.

    Raises:
        ValueError: there is none of at least that length.
    """
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if "/memfd:collectives" in line or "/dev/shm/collectives" in line:
            begin, end = (int(each, 16) for each in line.split()[0].split("-"))
            if end - begin == _up(nbytes, PAGE):
                return begin
    raise ValueError(f"no region of {nbytes} bytes is mapped")


def write(at: list[int], content: bytes) -> None:
    """Write the bytes to these addresses."""
    for address, byte in zip(at, content, strict=True):
        ctypes.c_ubyte.from_address(address).value = byte
