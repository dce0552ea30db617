"""All ranks of a one-sided schedule, run symbolically on one memory a rank.

A notify is an empty message: it needs no slot, but a channel holds only so many. Here it holds
one, which is less than any engine has: a second notify to a peer that has not yet waited for the
first must wait itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from collectives.proof.driver import Driver
from collectives.proof.expressions import Expression
from collectives.proof.ordering import Clock, Ordering
from collectives.steps import Copy, Notify, Read, ReadReduce, Step, Wait, Write


class OneSidedMachine(Driver):
    """Runs schedules; afterwards `values(rank)` is what lies in the memory of each rank.

    Attributes:
        rewritten: (rank, step, owner, chunk) of each read that found a chunk which had been
            written by then, by whomever; all others found what the owner started with.
        written: for every rank the chunks of its memory that were written.
    """

    least = "one notify on its way from rank to rank"

    def __init__(self, title: str, schedules: Sequence[Sequence[Step]]) -> None:
        """One schedule a rank; `title` begins the text of every error."""
        super().__init__(title, schedules)
        self.rewritten: set[tuple[int, int, int, int]] = set()
        self.written: list[set[int]] = [set() for _ in schedules]
        self._ordering = Ordering(title, len(schedules))
        self._notified: dict[tuple[int, int], tuple[int, Clock]] = {}  # (from, to): step, clock

    def _can_go_on(self, rank: int, step: Step) -> bool:
        if isinstance(step, Notify):
            return not any((rank, peer) in self._notified for peer in step.peers)
        if isinstance(step, Wait):
            return all((peer, rank) in self._notified for peer in step.peers)
        return True

    def _do(self, rank: int, step: Step) -> Iterable[int]:
        if isinstance(step, Notify):
            clock = self._ordering.notify(rank)
            for peer in step.peers:
                self._notified[rank, peer] = self._at[rank], clock
            return step.peers
        if isinstance(step, Wait):
            notified = [self._notified.pop((peer, rank)) for peer in step.peers]
            self._ordering.wait(rank, [clock for _, clock in notified])
            return step.peers
        if isinstance(step, Copy):
            self._store(rank, rank, step.to, self._load(rank, rank, step.source))
            return ()
        for chunk in step.chunks:
            self._move(rank, step, chunk)
        return ()

    def _move(self, rank: int, step: Step, chunk: int) -> None:
        if isinstance(step, Write):
            value = self._load(rank, rank, chunk)
            for peer in step.peers:
                self._store(rank, peer, chunk, value)
        elif isinstance(step, Read):
            self._store(rank, rank, chunk, self._load(rank, step.peer, chunk))
        else:
            assert isinstance(step, ReadReduce)
            owners = sorted((*step.peers, rank))
            operands = [self._load(rank, owner, chunk) for owner in owners]
            self._store(rank, rank, chunk, self.expressions.fold(operands))

    def _load(self, rank: int, owner: int, chunk: int) -> Expression:
        step, held = self._at[rank], self._values[owner]
        self._ordering.read(rank, step, owner, chunk)
        if chunk not in held:
            whose = "its rank" if owner == rank else f"rank {owner}"
            raise self._error(
                f"a step reads a chunk that {whose} does not hold",
                rank,
                step,
                chunk,
                f"one of chunks {sorted(held)}",
                f"chunk {chunk}",
            )
        if chunk in self.written[owner]:
            self.rewritten.add((rank, step, owner, chunk))
        return held[chunk]

    def _store(self, rank: int, owner: int, chunk: int, value: Expression) -> None:
        self._ordering.write(rank, self._at[rank], owner, chunk)
        self._values[owner][chunk] = value
        self.written[owner].add(chunk)

    def _obstacle(self, rank: int, step: Step) -> tuple[int, str]:
        if isinstance(step, Notify):
            peer = min(p for p in step.peers if (rank, p) in self._notified)
            first, _ = self._notified[rank, peer]
            return peer, f"cannot notify until rank {peer} waits for the notify of step {first}"
        assert isinstance(step, Wait)
        peer = min(p for p in step.peers if (p, rank) not in self._notified)
        return peer, f"waits for a notify of rank {peer}"

    def _check_end(self) -> None:
        for (rank, peer), (step, _) in self._notified.items():
            raise self._error(
                "a notify is never waited for",
                rank,
                step,
                None,
                f"a wait for rank {rank} in the schedule of rank {peer}",
                "none",
            )
        self._ordering.check_ends()
