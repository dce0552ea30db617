"""Who talks to whom: rings, doubling distances, and powers of two within any size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


def ring_neighbours(rank: int, size: int) -> tuple[int, int]:
    """The ranks to the left (whom one receives from) and to the right (whom one sends to)."""
    return (rank - 1) % size, (rank + 1) % size


def others(rank: int, size: int) -> list[int]:
    """Every rank but `rank`, beginning with the next one, so that not all start at rank 0."""
    return [(rank + hop) % size for hop in range(1, size)]


def doubling_distances(size: int) -> Iterator[int]:
    """1, 2, 4, ... as long as they are below `size`: ceil(log2 size) of them."""
    distance = 1
    while distance < size:
        yield distance
        distance *= 2


def largest_power(size: int) -> int:
    """The largest power of two that is at most `size` (>= 1)."""
    return 1 << (size.bit_length() - 1)


@dataclass(frozen=True)
class Core:
    """A power of two of the ranks, each of which stands for itself and at most one guest.

    Exchanges at distances 1, 2, 4, ... need a power of two. Of 6 ranks, 4 form the core, and the
    even ranks of the first 2 pairs are guests of their neighbours:

        rank     0   1   2   3   4   5
        guest    0 > .   2 > .
        member       0       1   2   3
    """

    size: int

    @property
    def members(self) -> int:
        """How many ranks the core has."""
        return largest_power(self.size)

    @property
    def guests(self) -> int:
        """How many ranks are not in the core."""
        return self.size - self.members

    def guest_of(self, rank: int) -> int | None:
        """The guest whom `rank` stands for, if it has one."""
        return rank - 1 if rank < 2 * self.guests and rank % 2 == 1 else None

    def host_of(self, rank: int) -> int | None:
        """The core's rank that stands for `rank`, if that is a guest."""
        return rank + 1 if rank < 2 * self.guests and rank % 2 == 0 else None

    def member(self, rank: int) -> int:
        """The number within the core of `rank`, which must be no guest."""
        return rank // 2 if rank < 2 * self.guests else rank - self.guests

    def rank(self, member: int) -> int:
        """The rank of a member of the core."""
        return 2 * member + 1 if member < self.guests else member + self.guests

    def stands_for(self, member: int) -> tuple[int, ...]:
        """The ranks a member of the core stands for: its guest, if any, and itself."""
        rank = self.rank(member)
        return (rank - 1, rank) if member < self.guests else (rank,)
