"""In which round every step of every rank happens, for pictures.

A round is the time a message takes. A rank sends one message and receives one in the same round,
and hands on only what came in an earlier one; a message to several peers is one, and so are those
that one reduction takes from several. Of one-sided steps, notifies share a round with the waits for
them, and every read is one; a write of what the step before has made takes none of its own.

As in the proof a rank has a single slot, and a channel room for one notify; a schedule that gets
stuck is dated as far as it comes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from collectives.steps import Copy, Notify, Read, Recv, Send, Step, Wait, Write


class Rounds(ABC):
    """Dates the steps of all ranks.

    Attributes:
        schedules: the steps of every rank.
        began: for every rank the round of each step it got to.
    """

    def __init__(self, schedules: Sequence[Sequence[Step]]) -> None:
        """One schedule a rank."""
        self.schedules = schedules
        self.began: list[list[int]] = [[] for _ in schedules]

    def run(self) -> None:
        """Drive every rank as far as it gets."""
        ready = deque(range(len(self.schedules)))
        while ready:
            rank = ready.popleft()
            began, steps = self.began[rank], self.schedules[rank]
            while len(began) < len(steps) and self._possible(rank, steps[len(began)]):
                number, woken = self._do(rank, steps[len(began)])
                began.append(number)
                ready.extend(woken)

    def stuck_at(self, rank: int) -> Step | None:
        """The step that `rank` never gets past, if there is one."""
        steps, done = self.schedules[rank], len(self.began[rank])
        return steps[done] if done < len(steps) else None

    @abstractmethod
    def _possible(self, rank: int, step: Step) -> bool:
        """Whether `rank` can do its next step now."""

    @abstractmethod
    def _do(self, rank: int, step: Step) -> tuple[int, Sequence[int]]:
        """The step's round, and the ranks that may go on because of it."""


@dataclass
class _Clock:
    """In which rounds a rank last did what."""

    sent: int = 0
    received: int = 0
    untaken: set[int] = field(default_factory=set)
    freed: int = 0


class MessageRounds(Rounds):
    """Rounds of schedules of messages."""

    def __init__(self, schedules: Sequence[Sequence[Step]]) -> None:
        """One schedule a rank."""
        super().__init__(schedules)
        self._clocks = [_Clock() for _ in schedules]
        self._inbox: dict[tuple[int, int], deque[int]] = {}

    def _possible(self, rank: int, step: Step) -> bool:
        if isinstance(step, Send):
            return not self._clocks[rank].untaken
        return all(self._inbox.get((peer, rank)) for peer in peers_of(step))

    def _do(self, rank: int, step: Step) -> tuple[int, Sequence[int]]:
        clock, peers = self._clocks[rank], peers_of(step)
        if isinstance(step, Send):
            clock.sent = max(clock.sent, clock.received, clock.freed) + 1
            clock.untaken = set(peers)
            for peer in peers:
                self._inbox.setdefault((rank, peer), deque()).append(clock.sent)
            return clock.sent, peers
        if isinstance(step, Copy):
            return max(clock.sent, clock.received, 1), ()
        posted = max(self._inbox[peer, rank].popleft() for peer in peers)
        clock.received = max(posted, clock.sent, clock.received + 1)
        for peer in peers:
            other = self._clocks[peer]
            other.untaken.discard(rank)
            other.freed = max(other.freed, clock.received)
        return clock.received, peers


class OneSidedRounds(Rounds):
    """Rounds of one-sided schedules."""

    def __init__(self, schedules: Sequence[Sequence[Step]]) -> None:
        """One schedule a rank."""
        super().__init__(schedules)
        self._notified: dict[tuple[int, int], int] = {}

    def _possible(self, rank: int, step: Step) -> bool:
        if isinstance(step, Notify):
            return not any((rank, peer) in self._notified for peer in step.peers)
        if isinstance(step, Wait):
            return all((peer, rank) in self._notified for peer in step.peers)
        return True

    def _do(self, rank: int, step: Step) -> tuple[int, Sequence[int]]:
        done = len(self.began[rank])
        before = self.schedules[rank][done - 1] if done else None
        last = self.began[rank][-1] if done else 0
        if isinstance(step, Notify):
            number = last if isinstance(before, Notify) else last + 1
            self._notified.update(((rank, peer), number) for peer in step.peers)
            return number, step.peers
        if isinstance(step, Wait):
            posted = max(self._notified.pop((peer, rank)) for peer in step.peers)
            goes_on = isinstance(before, Notify | Wait)
            return max(posted, last if goes_on else last + 1), step.peers
        joined = isinstance(step, Write) and before is not None and _made(before) == step.chunks
        return (last if joined else last + 1), ()


def peers_of(step: Step) -> tuple[int, ...]:
    """Whom a step is about, in the order its author named them."""
    if isinstance(step, Copy):
        return ()
    return (step.peer,) if isinstance(step, Recv | Read) else step.peers


def _made(step: Step) -> tuple[int, ...]:
    """The chunks that a step has just made or written."""
    return (step.to,) if isinstance(step, Copy) else step.chunks
