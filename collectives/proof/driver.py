"""Ranks driven through their schedules until all have ended, or none can go on.

The machines built on this are monotone: what a rank can do once it can do until it does it. So the
order in which ranks are driven does not matter: a dead-lock found is one, and none found means that
no order of events leads to one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from typing import ClassVar

from collectives.proof.expressions import Expression, Expressions
from collectives.proof.failure import ProofError
from collectives.steps import Copy, Step


class Driver(ABC):
    """What every machine of the proof is: schedules, how far each rank is, what it holds.

    Attributes:
        expressions: of all values.
    """

    least: ClassVar[str]
    """The least buffering that any engine has, as errors say it."""

    def __init__(self, title: str, schedules: Sequence[Sequence[Step]]) -> None:
        """One schedule a rank; `title` begins the text of every error."""
        self.expressions = Expressions()
        self._title = title
        self._schedules = schedules
        self._at = [0] * len(schedules)
        self._values: list[dict[int, Expression]] = [{} for _ in schedules]

    def hold(self, rank: int, chunks: Sequence[int]) -> None:
        """Let `rank` start with its own value of `chunks`."""
        for chunk in chunks:
            self._values[rank][chunk] = self.expressions.leaf(rank, chunk)

    def values(self, rank: int) -> dict[int, Expression]:
        """What `rank` holds now."""
        return self._values[rank]

    def run(self) -> None:
        """Drive every rank to its end.

        Raises:
            ProofError: a rank cannot go on, does what it may not, or leaves something undone.
        """
        ready = deque(range(len(self._schedules)))
        queued = set(ready)
        while ready:
            rank = ready.popleft()
            queued.discard(rank)
            for woken in self._advance(rank):
                if woken not in queued:
                    queued.add(woken)
                    ready.append(woken)
        if not all(map(self._done, range(len(self._schedules)))):
            raise self._deadlock()
        self._check_end()

    @abstractmethod
    def _can_go_on(self, rank: int, step: Step) -> bool:
        """Whether `rank` can do its next step now."""

    @abstractmethod
    def _do(self, rank: int, step: Step) -> Iterable[int]:
        """Do a step that can be done; the ranks that may go on because of it."""

    @abstractmethod
    def _obstacle(self, rank: int, step: Step) -> tuple[int, str]:
        """The peer without which `rank` cannot do its next step, and why."""

    @abstractmethod
    def _check_end(self) -> None:
        """See, all ranks having ended, that nothing is left undone."""

    def _done(self, rank: int) -> bool:
        return self._at[rank] == len(self._schedules[rank])

    def _advance(self, rank: int) -> set[int]:
        """Run `rank` until it must wait; the ranks that may go on because of it."""
        steps = self._schedules[rank]
        woken: set[int] = set()
        while not self._done(rank) and self._can_go_on(rank, steps[self._at[rank]]):
            woken.update(self._do(rank, steps[self._at[rank]]))
            self._at[rank] += 1
        return woken

    def _deadlock(self) -> ProofError:
        """Follow who waits for whom until a rank comes again, or one that has ended."""
        rank = next(r for r in range(len(self._schedules)) if not self._done(r))
        seen: list[int] = []
        story: list[str] = []
        while rank not in seen and not self._done(rank):
            seen.append(rank)
            peer, why = self._obstacle(rank, self._schedules[rank][self._at[rank]])
            story.append(f"rank {rank} at step {self._at[rank]} {why}")
            rank = peer
        ended = self._done(rank)
        if ended:
            story.append(f"rank {rank} has ended")
        first = seen[-1] if ended else rank
        step = self._schedules[first][self._at[first]]
        chunks = (step.to,) if isinstance(step, Copy) else step.chunks
        return self._error(
            "the ranks dead-lock" if not ended else "a rank waits for one that has ended",
            first,
            self._at[first],
            chunks[0] if chunks else None,
            f"an order of steps in which every rank comes to its end with {self.least}",
            "; ".join(story),
        )

    def _error(
        self, what: str, rank: int, step: int, chunk: int | None, expected: str, found: str
    ) -> ProofError:
        return ProofError(
            f"{self._title}: {what}",
            rank=rank,
            step=step,
            chunk=chunk,
            expected=expected,
            found=found,
        )
