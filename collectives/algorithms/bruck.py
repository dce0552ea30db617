"""Bruck's algorithms: ceil(log2 n) steps at every size, powers of two or not.

The rotations of the textbook are not needed: chunks have names, and where they lie in memory is
not an algorithm's business.
"""

from __future__ import annotations

from collectives.algorithms.neighbours import doubling_distances
from collectives.schedule import Steps, algorithm, recv, send


@algorithm(
    "allgather",
    name="bruck",
    widest=lambda size: max((min(d, size - d) for d in doubling_distances(size)), default=1),
    cost="lg(n) alpha + (n-1)/n s beta",
    messages="lg(n)",
    volume="(n-1)/n s",
    source="Bruck, Ho, Kipnis, Upfal & Weathersby 1997",
)
def bruck_allgather(rank: int, size: int) -> Steps:
    """Everybody tells the rank `distance` to its left what it knows: (n-1)/n s bytes a rank.

    rank          0        1        2          n = 3
    at first      0        1        2
    distance 1    0 1      1 2      2 0
    distance 2    0 1 2    1 2 0    2 0 1      the last message carries only what is missing
    """
    for distance in doubling_distances(size):
        count = min(distance, size - distance)
        yield send((rank - distance) % size, chunk=_run(rank, count, size))
        yield recv((rank + distance) % size, chunk=_run(rank + distance, count, size))


def _run(first: int, count: int, size: int) -> list[int]:
    """`count` chunks from `first` on, round the end."""
    return [(first + step) % size for step in range(count)]


def _travelling(distance: int, size: int) -> list[int]:
    """How far chunks have to go in all that take a step of `distance`: those with that bit set."""
    return [way for way in range(size) if way & distance]


@algorithm(
    "alltoall",
    name="bruck",
    widest=lambda size: max(
        (len(_travelling(distance, size)) for distance in doubling_distances(size)), default=1
    ),
    cost="lg(n) alpha + ones(n)/n s beta",
    messages="lg(n)",
    volume="ones(n)/n s",
    source="Bruck, Ho, Kipnis, Upfal & Weathersby 1997",
)
def bruck_alltoall(rank: int, size: int) -> Steps:
    """A chunk that must go 5 ranks to the right takes a step of 1 and a step of 4.

    All chunks that take the same step go in one message; ranks on the way hand them on. About
    log2(n)/2 s bytes a rank: for many ranks and short messages. s is what one rank sends in all,
    its chunk to itself included.
    """
    for distance in doubling_distances(size):
        source, target = (rank - distance) % size, (rank + distance) % size
        yield send(target, chunk=_passing(rank, distance, size))
        yield recv(source, chunk=_passing(source, distance, size))


def _passing(rank: int, distance: int, size: int) -> list[tuple[int, int]]:
    """The (source, destination) chunks that are at `rank` and now take a step of `distance`."""
    passing = []
    for way in _travelling(distance, size):
        behind = way % distance  # the smaller steps, which it has taken
        passing.append(((rank - behind) % size, (rank - behind + way) % size))
    return passing
