"""A rank's place among the ranks of one host: the rendezvous, then the engine over their memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transports import _native
from transports.errors import CollectiveError
from transports.rendezvous.awaiting import Look
from transports.rendezvous.local import Introduction, Meeting, meet
from transports.shm.memory import allocate
from transports.silence import Describe
from transports.undisturbed import undisturbed


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How much memory a rank's channels have.

    Attributes:
        slots: slots of a rank's outbox; a power of two from 2 on.
        slot_bytes: size of a slot, a multiple of 64; the longest message of one pass.
        depth: messages in flight from one rank to one peer; a power of two from 2 on.
        lane_slots: slots of each ordered pair for point-to-point.
        lane_bytes: their size, a multiple of 64.
    """

    slots: int = 8
    slot_bytes: int = 256 * 1024
    depth: int = 16
    lane_slots: int = 8
    lane_bytes: int = 16 * 1024

    def for_ranks(self, ranks: int) -> dict[str, int]:
        """The arguments of `_native.format_region`."""
        return {
            "ranks": ranks,
            "depth": self.depth,
            "slots": self.slots,
            "slot_bytes": self.slot_bytes,
            "lane_slots": self.lane_slots,
            "lane_bytes": self.lane_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class Connection:
    """What `connect` gives.

    Attributes:
        engine: runs calls on this rank.
        ranks: who is there, in order.
        settings: rank 0's settings.
        hosts: `hosts[r]` is the index of the host of rank r.
        job: where ranks of this host that are split from these meet.
        secret: what only the job's ranks know.
        carrier: reaches the ranks of other hosts, if there are any.
    """

    engine: _native.Engine
    ranks: tuple[Introduction, ...]
    settings: dict[str, Any]
    hosts: tuple[int, ...]
    job: str
    secret: str
    carrier: _native.Carrier | None = None


def connect(
    me: Introduction,
    *,
    job: str,
    secret: str,
    geometry: Geometry,
    settings: dict[str, Any],
    timeout: float,
    look: Look = lambda: None,
    silence: float = 0,
) -> Connection:
    """Meet the other ranks of the job and map the memory that all of them share.

    Args:
        me: this rank.
        job: the job's id, the same on every rank.
        secret: what only the job's ranks know.
        geometry: rank 0's counts.
        settings: rank 0's are handed to all.
        timeout: seconds to wait for the others.
        look: as `transports.rendezvous.local.meet`.
        silence: seconds after which a long wait is told of, here and in every call; 0: never.

    Raises:
        CollectiveError: as `transports.rendezvous.local.meet`.
        MemoryError: the shared memory cannot be had.
    """
    meeting = meet(
        me,
        job=job,
        secret=secret,
        settings=settings,
        offer=lambda ranks: offer(geometry, len(ranks)),
        timeout=timeout,
        look=look,
        silence=silence,
    )
    with meeting:  # the mapping lives on without the descriptor
        engine, _ = open_engine(meeting, me.rank, meeting.ranks, meeting.pidfds, silence)
    return Connection(
        engine=engine,
        ranks=meeting.ranks,
        settings=meeting.settings,
        hosts=(0,) * len(meeting.ranks),
        job=job,
        secret=secret,
    )


def offer(geometry: Geometry, ranks: int) -> int:
    """A descriptor of new memory for so many ranks."""
    wanted = geometry.for_ranks(ranks)
    descriptor = allocate(_native.region_bytes(**wanted))
    try:
        _native.format_region(descriptor, **wanted)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_engine(
    meeting: Meeting,
    rank: int,
    ranks: Sequence[Introduction],
    pidfds: Sequence[int],
    silence: float,
    carry: Callable[[int], _native.Carrier] | None = None,
) -> tuple[_native.Engine, _native.Carrier | None]:
    """The engine of `rank` among `ranks`, over the memory that a meeting of its host has brought.

    Args:
        meeting: its pidfds are the engine's from now on.
        rank: this rank.
        ranks: all of the communicator, in order.
        pidfds: what watches each of them; -1: nothing here does.
        silence: as `connect`.
        carry: makes what reaches the ranks of other hosts, of the memory's descriptor.

    Raises:
        MemoryError: the memory cannot be mapped.
        CollectiveError: it is not what it should be.
    """
    people = [(each.host, each.pid, pidfd) for each, pidfd in zip(ranks, pidfds, strict=True)]
    try:
        with undisturbed():
            carrier = None if carry is None else carry(meeting.descriptor)
            engine = _native.Engine(
                meeting.descriptor, rank, people, _is_crowded(ranks[rank].machine, ranks), carrier
            )
            meeting.take_pidfds()
    except OSError as error:
        raise MemoryError(f"the shared memory cannot be mapped: {error}") from None
    except RuntimeError as error:  # what lies in it is not what rank 0 has written
        raise CollectiveError(str(error)) from None
    words = Describe(ranks)
    engine.set_describe(silence, words.wait, words.place, words.alone)
    return engine, carrier


def _is_crowded(machine: str, ranks: Sequence[Introduction]) -> bool:
    """Whether a machine's ranks outnumber the cores they may run on: spinning holds others up."""
    here = [rank for rank in ranks if rank.machine == machine]
    return len(here) > len({core for rank in here for core in rank.cores})
