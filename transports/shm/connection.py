"""A rank's place among the ranks of one host: the rendezvous, then the engine over their memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from transports import _native
from transports.errors import CollectiveError
from transports.rendezvous.awaiting import Look
from transports.rendezvous.local import Introduction, meet
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
    """

    engine: _native.Engine
    ranks: tuple[Introduction, ...]
    settings: dict[str, Any]


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

    def offer(ranks: tuple[Introduction, ...]) -> int:
        wanted = geometry.for_ranks(len(ranks))
        descriptor = allocate(_native.region_bytes(**wanted))
        try:
            _native.format_region(descriptor, **wanted)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    meeting = meet(
        me, job=job, secret=secret, settings=settings, offer=offer, timeout=timeout, look=look,
        silence=silence,
    )  # fmt: skip
    with meeting:  # the mapping lives on without the descriptor
        watched = zip(meeting.ranks, meeting.pidfds, strict=True)
        people = [(rank.host, rank.pid, pidfd) for rank, pidfd in watched]
        crowded = _crowded(meeting.ranks)
        try:
            with undisturbed():
                engine = _native.Engine(meeting.descriptor, me.rank, people, crowded)
                meeting.take_pidfds()
        except OSError as error:
            raise MemoryError(f"the shared memory cannot be mapped: {error}") from None
        except RuntimeError as error:  # what lies in it is not what rank 0 has written
            raise CollectiveError(str(error)) from None
        words = Describe(meeting.ranks)
        engine.set_describe(silence, words.wait, words.place, words.alone)
    return Connection(engine=engine, ranks=meeting.ranks, settings=meeting.settings)


def _crowded(ranks: tuple[Introduction, ...]) -> bool:
    """Whether the ranks outnumber the cores they may run on, so that spinning holds others up."""
    return len(ranks) > len({core for rank in ranks for core in rank.cores})
