"""Chains: the array goes from rank to rank in pieces, so that all links work at the same time."""

from __future__ import annotations

from collectives.algorithms.neighbours import ring_neighbours
from collectives.algorithms.trees import place_of
from collectives.schedule import Steps, algorithm, recv, recv_reduce, send


def pieces(size: int) -> int:
    """How many pieces go down a chain: twice its length, so filling it costs half a transfer."""
    return 2 * size


@algorithm(
    "broadcast",
    name="chain",
    chunks=pieces,
    widest=lambda size: 1,
    cost="(n > 1)(3n-2)(alpha + s/(2n) beta)",
    messages="(n > 1) 2n",
    volume="(n > 1) s",
    source="Watts & van de Geijn 1995",
)
def chain_broadcast(rank: int, size: int, root: int) -> Steps:
    """Pieces go from the root round to its left neighbour, each as soon as the rank before has it.

    2n pieces over n-1 links are 3n-2 steps; s bytes a rank, the least possible.

        step     1    2    3    4    5
        0 → 1    p0   p1   p2   p3
        1 → 2         p0   p1   p2   p3
    """
    place = place_of(rank, size, root)
    before, after = ring_neighbours(rank, size)
    for piece in range(pieces(size)):
        if place > 0:
            yield recv(before, chunk=piece)
        if place < size - 1:
            yield send(after, chunk=piece)


@algorithm(
    "reduce",
    name="chain",
    chunks=pieces,
    widest=lambda size: 1,
    cost="(n > 1)(3n-2)(alpha + s/(2n) beta + s/(2n) gamma)",
    messages="(n > 1) 2n",
    volume="(n > 1) s",
    source="Watts & van de Geijn 1995",
)
def chain_reduce(rank: int, size: int, root: int) -> Steps:
    """Pieces go from the root's left neighbour back to the root; every rank adds its part.

    The broadcast run backwards: 3n-2 steps, s bytes a rank.
    """
    place = place_of(rank, size, root)
    after, before = ring_neighbours(rank, size)
    for piece in range(pieces(size)):
        if place < size - 1:
            yield recv_reduce(before, chunk=piece)
        if place > 0:
            yield send(after, chunk=piece)
