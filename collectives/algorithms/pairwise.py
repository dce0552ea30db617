"""Pairwise exchange: at distance 1, 2, ..., n-1 send to the right and receive from the left.

What goes to different ranks differs, so it cannot be posted once for all; sending and receiving
in turns needs no more than one slot a rank.
"""

from __future__ import annotations

from collectives.schedule import Steps, algorithm, recv, recv_reduce, send


@algorithm(
    "alltoall",
    name="pairwise",
    widest=lambda size: 1,
    cost="(n-1)(alpha + s/n beta)",
    messages="n-1",
    volume="(n-1)/n s",
    source="Thakur, Rabenseifner & Gropp 2005",
)
def pairwise_alltoall(rank: int, size: int) -> Steps:
    """Every chunk goes straight to its rank: n-1 steps, (n-1)/n s bytes a rank, the least possible.

    s is what one rank sends in all, its chunk to itself included.
    """
    for distance in range(1, size):
        target, source = (rank + distance) % size, (rank - distance) % size
        yield send(target, chunk=(rank, target))
        yield recv(source, chunk=(source, rank))


@algorithm(
    "reduce_scatter",
    name="pairwise",
    widest=lambda size: 1,
    cost="(n-1)(alpha + s/n beta + s/n gamma)",
    messages="n-1",
    volume="(n-1)/n s",
    source="Thakur, Rabenseifner & Gropp 2005",
)
def pairwise_reduce_scatter(rank: int, size: int) -> Steps:
    """Every part of a chunk goes straight to the rank that adds it up: n-1 steps, (n-1)/n s bytes.

    As many as in a ring, but nobody waits for sums that come from far away.
    """
    for distance in range(1, size):
        target, source = (rank + distance) % size, (rank - distance) % size
        yield send(target, chunk=target)
        yield recv_reduce(source, chunk=rank)
