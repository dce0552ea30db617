"""Where the ranks that are left of a communicator meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Descent:
    """What the ranks of a communicator were in the one that was never shrunk.

    The ranks that are left meet under its name: some may be in a smaller one already.
    """

    job: str
    ranks: tuple[int, ...]

    def of(self, ranks: Sequence[int]) -> Descent:
        """Of a communicator of some of the ranks."""
        return Descent(self.job, tuple(self.ranks[rank] for rank in ranks))

    @property
    def meeting(self) -> str:
        """Where exactly these ranks meet."""
        return f"{self.job}/left-{'-'.join(map(str, self.ranks))}"
