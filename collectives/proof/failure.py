"""The error of a schedule that does not hold."""

from __future__ import annotations

from typing import Any

from transports.errors import CollectiveError


class ProofError(CollectiveError):
    """A schedule fails its proof.

    Attributes:
        rank: whose schedule is at fault, or first in the circle of a dead-lock.
        step: index of the step, or None where the fault is in the end result.
        chunk: the chunk concerned, or None.
        expected: what the collective demands there.
        found: what the schedule does.
    """

    def __init__(
        self,
        what: str,
        *,
        rank: int,
        step: int | None = None,
        chunk: int | None = None,
        expected: str,
        found: str,
    ) -> None:
        """Compose the text from its parts."""
        place = f"rank {rank}"
        if step is not None:
            place += f", step {step}"
        if chunk is not None:
            place += f", chunk {chunk}"
        super().__init__(f"{what}: {place}: expected {expected}, found {found}")
        self._what = what
        self.rank = rank
        self.step = step
        self.chunk = chunk
        self.expected = expected
        self.found = found

    def __reduce__(self) -> tuple[Any, ...]:
        """Made again of its parts: it travels to the ranks that did not prove."""
        return _made_again, (
            self._what,
            self.rank,
            self.step,
            self.chunk,
            self.expected,
            self.found,
        )


def _made_again(
    what: str, rank: int, step: int | None, chunk: int | None, expected: str, found: str
) -> ProofError:
    return ProofError(what, rank=rank, step=step, chunk=chunk, expected=expected, found=found)
