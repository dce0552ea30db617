"""Whether accesses to memory are ordered, told by vector clocks.

Every rank has a clock for every rank: how far it knows that rank to have come. Its own goes on with
each notify, a wait takes over what the notifier knew. So what rank r does in its epoch e comes
before whatever rank q does once q's clock for r stands at e or later. Epoch 1 begins when a rank
enters the call; a clock at 0 is that of a rank not known to have entered.

Two accesses to a chunk in the memory of a rank, one of them a write, must be ordered, and every
access to the memory of another rank must come after its entry and before its end. The input and
the output of a rank count as one memory, as they are where a call works in place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from collectives.proof.failure import ProofError

Clock = tuple[int, ...]
"""What a notify carries: how far its sender knew every rank to have come."""


@dataclass(frozen=True, slots=True)
class _Access:
    rank: int
    epoch: int
    step: int
    chunk: int


@dataclass(slots=True)
class _Place:
    """A chunk in the memory of one rank: who wrote it last, who has read it since."""

    written: _Access | None = None
    read: dict[int, _Access] = field(default_factory=dict)


class Ordering:
    """The clocks of all ranks, and the accesses that later ones must be ordered after."""

    def __init__(self, title: str, size: int) -> None:
        """`title` begins the text of every error."""
        self._title = title
        self._clocks = [[int(other == rank) for other in range(size)] for rank in range(size)]
        self._places: dict[tuple[int, int], _Place] = {}
        self._last: dict[tuple[int, int], _Access] = {}  # (owner, rank): of rank's to its memory

    def notify(self, rank: int) -> Clock:
        """What `rank` knows; whatever it does from now on is later."""
        clock = tuple(self._clocks[rank])
        self._clocks[rank][rank] += 1
        return clock

    def wait(self, rank: int, clocks: Iterable[Clock]) -> None:
        """Let `rank` know what its notifiers knew."""
        self._clocks[rank] = list(map(max, self._clocks[rank], *clocks))

    def read(self, rank: int, step: int, owner: int, chunk: int) -> None:
        """`rank` reads a chunk in the memory of `owner`.

        Raises:
            ProofError: a write is not ordered before it, or the owner's entry is not.
        """
        access = self._access(rank, step, owner, chunk)
        place = self._places.setdefault((owner, chunk), _Place())
        if place.written and not self._comes_before(place.written, rank):
            raise self._race("read-after-write", access, place.written, owner)
        place.read[rank] = access

    def write(self, rank: int, step: int, owner: int, chunk: int) -> None:
        """`rank` writes a chunk in the memory of `owner`.

        Raises:
            ProofError: a write or a read is not ordered before it, or the owner's entry is not.
        """
        access = self._access(rank, step, owner, chunk)
        place = self._places.setdefault((owner, chunk), _Place())
        if place.written and not self._comes_before(place.written, rank):
            raise self._race("write-after-write", access, place.written, owner)
        for earlier in place.read.values():
            if not self._comes_before(earlier, rank):
                raise self._race("write-after-read", access, earlier, owner)
        self._places[owner, chunk] = _Place(access)

    def check_ends(self) -> None:
        """See, all ranks having ended, that none may end while its memory is in use.

        Raises:
            ProofError: one may.
        """
        for (owner, rank), access in self._last.items():
            if not self._comes_before(access, owner):
                raise ProofError(
                    f"{self._title}: a rank may leave while its memory is in use",
                    rank=rank,
                    step=access.step,
                    chunk=access.chunk,
                    expected=f"a notify afterwards that reaches rank {owner} before its end, "
                    "directly or through others",
                    found="none",
                )

    def _access(self, rank: int, step: int, owner: int, chunk: int) -> _Access:
        access = _Access(rank, self._clocks[rank][rank], step, chunk)
        if self._clocks[rank][owner] < 1:
            raise ProofError(
                f"{self._title}: a rank's memory is used before it has entered the call",
                rank=rank,
                step=step,
                chunk=chunk,
                expected=f"a notify of rank {owner} to have come first, directly or through others",
                found="none",
            )
        if owner != rank:
            self._last[owner, rank] = access  # its epochs only grow, so the latest is the last
        return access

    def _comes_before(self, access: _Access, rank: int) -> bool:
        return access.rank == rank or self._clocks[rank][access.rank] >= access.epoch

    def _race(
        self,
        kind: Literal["read-after-write", "write-after-read", "write-after-write"],
        access: _Access,
        earlier: _Access,
        owner: int,
    ) -> ProofError:
        did = "read" if kind == "write-after-read" else "write"
        return ProofError(
            f"{self._title}: {kind} race in the memory of rank {owner}",
            rank=access.rank,
            step=access.step,
            chunk=access.chunk,
            expected=f"the {did} by rank {earlier.rank} at step {earlier.step} to come before, "
            "by a notify and a wait",
            found="no order between them",
        )
