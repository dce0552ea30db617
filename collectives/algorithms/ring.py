"""Rings: every rank sends to its right neighbour and receives from its left one."""

from __future__ import annotations

from collectives.algorithms.neighbours import ring_neighbours
from collectives.algorithms.trees import place_of, rank_at
from collectives.schedule import Steps, algorithm, recv, recv_reduce, send


@algorithm(
    "reduce_scatter",
    name="ring",
    widest=lambda size: 1,
    cost="(n-1)(alpha + s/n beta + s/n gamma)",
    messages="n-1",
    volume="(n-1)/n s",
    source="Patarasuk & Yuan 2009",
)
def ring_reduce_scatter(rank: int, size: int) -> Steps:
    """A partial sum of every chunk goes round and ends, complete, at the rank it belongs to.

    n-1 steps, (n-1)/n s bytes a rank, which is the least possible. Of 3 ranks, chunk 2:

        rank 0 ──x0──> rank 1 ──x0+x1──> rank 2 has x0+x1+x2
    """
    left, right = ring_neighbours(rank, size)
    for hop in range(1, size):
        # Each hop hands the partial sum on that came with the hop before (the first: one's own
        # part) and adds one's part to the next one.
        yield send(right, chunk=(rank - hop) % size)
        yield recv_reduce(left, chunk=(rank - hop - 1) % size)


@algorithm(
    "allgather",
    name="ring",
    widest=lambda size: 1,
    cost="(n-1)(alpha + s/n beta)",
    messages="n-1",
    volume="(n-1)/n s",
    source="Chan, Heimlich, Purkayastha & van de Geijn 2007",
)
def ring_allgather(rank: int, size: int) -> Steps:
    """Every chunk goes once round. n-1 steps, (n-1)/n s bytes a rank, the least possible."""
    left, right = ring_neighbours(rank, size)
    for hop in range(size - 1):
        # First one's own chunk, from then on what the left neighbour has just handed over.
        yield send(right, chunk=(rank - hop) % size)
        yield recv(left, chunk=(rank - hop - 1) % size)


@algorithm(
    "allreduce",
    name="ring",
    chunks=lambda size: size,
    widest=lambda size: 1,
    cost="2(n-1) alpha + 2(n-1)/n s beta + (n-1)/n s gamma",
    messages="2(n-1)",
    volume="2(n-1)/n s",
    source="Patarasuk & Yuan 2009",
)
def ring_allreduce(rank: int, size: int) -> Steps:
    """Reduce-scatter round the ring, then allgather round the ring.

    2(n-1) steps, 2(n-1)/n s bytes a rank, the least possible: the choice for long arrays.
    """
    yield from ring_reduce_scatter(rank, size)
    yield from ring_allgather(rank, size)


@algorithm(
    "gather",
    name="ring",
    widest=lambda size: 1,
    cost="(n-1)(alpha + s/n beta)",
    messages="n-1",
    volume="(n-1)/n s",
    source="Chan, Heimlich, Purkayastha & van de Geijn 2007",
)
def ring_gather(rank: int, size: int, root: int) -> Steps:
    """Chunks move towards the root, a place a step: n-1 steps, up to (n-1)/n s bytes a rank.

    root 0 <── 1 <── 2 <── 3      1 sends chunk 1, then 2, then 3
    """
    place = place_of(rank, size, root)
    nearer, farther = ring_neighbours(rank, size)
    if place > 0:
        yield send(nearer, chunk=rank)
    # Then hand on what comes from farther away, nearest first; the root keeps it.
    for origin in range(place + 1, size):
        yield recv(farther, chunk=rank_at(origin, size, root))
        if place > 0:
            yield send(nearer, chunk=rank_at(origin, size, root))


@algorithm(
    "scatter",
    name="ring",
    widest=lambda size: 1,
    cost="(n-1)(alpha + s/n beta)",
    messages="n-1",
    volume="(n-1)/n s",
    source="Chan, Heimlich, Purkayastha & van de Geijn 2007",
)
def ring_scatter(rank: int, size: int, root: int) -> Steps:
    """Chunks move away from the root, a place a step: n-1 steps, up to (n-1)/n s bytes a rank.

    root 0 ──> 1 ──> 2 ──> 3      0 sends chunk 3, then 2, then 1: all arrive at once
    """
    place = place_of(rank, size, root)
    nearer, farther = ring_neighbours(rank, size)
    # Hand on what goes farther, the farthest first, since it has the longest way.
    for target in range(size - 1, place, -1):
        if place > 0:
            yield recv(nearer, chunk=rank_at(target, size, root))
        yield send(farther, chunk=rank_at(target, size, root))
    if place > 0:
        yield recv(nearer, chunk=rank)


@algorithm(
    "barrier",
    name="ring",
    widest=lambda size: 1,
    cost="2(n-1) alpha",
    messages="min(n-1, 2)",
    volume="0",
    source="Le Lann 1977 (the token)",
)
def ring_barrier(rank: int, size: int) -> Steps:
    """A token goes round twice: 2(n-1) steps, at most two messages a rank.

    Once it has come to the last rank, all are known to have entered; the second round says so.
    """
    left, right = ring_neighbours(rank, size)
    last = size - 1
    # First round, begun by rank 0: whoever hands the token on has entered.
    if rank > 0:
        yield recv(left, chunk=0)
    if size > 1:
        yield send(right, chunk=0)
    # Second round, begun by the last rank: whoever sees the token may leave.
    if rank < last:
        yield recv(left, chunk=0)
    if rank < last - 1:
        yield send(right, chunk=0)
