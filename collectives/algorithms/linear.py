"""Linear: the root talks to every rank itself. One step for all ranks but the root."""

from __future__ import annotations

from collectives.algorithms.direct import direct_allgather
from collectives.algorithms.neighbours import others
from collectives.schedule import Steps, algorithm, recv, recv_reduce, send


@algorithm(
    "broadcast",
    name="linear",
    widest=lambda size: 1,
    cost="(n-1)(alpha + s beta)",
    messages="n-1",
    volume="(n-1) s",
    source="Chan, Heimlich, Purkayastha & van de Geijn 2007",
)
def linear_broadcast(rank: int, size: int, root: int) -> Steps:
    """The root posts the array once, for all: one step, (n-1) s bytes at the root."""
    if rank != root:
        yield recv(root, chunk=0)
    elif size > 1:
        yield send(others(root, size), chunk=0)


@algorithm(
    "reduce",
    name="linear",
    widest=lambda size: 1,
    cost="(n-1)(alpha + s beta + s gamma)",
    messages="(n > 1)",
    volume="(n > 1) s",
    source="Chan, Heimlich, Purkayastha & van de Geijn 2007",
)
def linear_reduce(rank: int, size: int, root: int) -> Steps:
    """The root adds up all arrays in one pass, in rank order: one step, s bytes a rank."""
    if rank != root:
        yield send(root, chunk=0)
    elif size > 1:
        yield recv_reduce(others(root, size), chunk=0)


@algorithm(
    "gather",
    name="linear",
    widest=lambda size: 1,
    cost="(n-1)(alpha + s/n beta)",
    messages="(n > 1)",
    volume="(n > 1) s/n",
    source="Chan, Heimlich, Purkayastha & van de Geijn 2007",
)
def linear_gather(rank: int, size: int, root: int) -> Steps:
    """Every rank sends its chunk to the root: n-1 steps there, s/n bytes a rank."""
    if rank != root:
        yield send(root, chunk=rank)
        return
    for peer in others(root, size):
        yield recv(peer, chunk=peer)


@algorithm(
    "scatter",
    name="linear",
    widest=lambda size: 1,
    cost="(n-1)(alpha + s/n beta)",
    messages="n-1",
    volume="(n-1)/n s",
    source="Chan, Heimlich, Purkayastha & van de Geijn 2007",
)
def linear_scatter(rank: int, size: int, root: int) -> Steps:
    """The root sends every rank its chunk: n-1 steps and (n-1)/n s bytes there."""
    if rank != root:
        yield recv(root, chunk=rank)
        return
    for peer in others(root, size):
        yield send(peer, chunk=peer)


@algorithm(
    "reduce_scatter",
    name="linear",
    widest=lambda size: 1,
    cost="(3(n-1) - (n == 2))(alpha + s/n beta) + 2(n-1)/n s gamma",
    messages="n-1",
    volume="(n-1)/n s",
    source="Chan, Heimlich, Purkayastha & van de Geijn 2007 (linear reduce, to each rank in turn)",
)
def linear_reduce_scatter(rank: int, size: int) -> Steps:
    """Every rank in its turn adds up its chunk from all others, in one pass and in rank order.

    As many bytes as pairwise, (n-1)/n s a rank, in up to three times the steps: ranks wait for
    their turns. For deterministic=True, which asks for that order.
    """
    if size == 1:
        return
    for target in range(size):
        if rank == target:
            yield recv_reduce(others(rank, size), chunk=rank)
        else:
            yield send(target, chunk=target)


@algorithm(
    "allreduce",
    name="linear",
    chunks=lambda size: size,
    widest=lambda size: 1,
    cost="(4(n-1) - (n == 2))(alpha + s/n beta) + 2(n-1)/n s gamma",
    messages="2(n-1)",
    volume="2(n-1)/n s",
    source="Chan, Heimlich, Purkayastha & van de Geijn 2007 (reduce-scatter, then allgather)",
)
def linear_allreduce(rank: int, size: int) -> Steps:
    """Every rank in its turn adds up its chunk, in rank order, then posts it for all.

    2(n-1)/n s bytes a rank, where one_shot, which adds up in rank order too, sends (n-1) s.
    """
    yield from linear_reduce_scatter(rank, size)
    yield from direct_allgather(rank, size)
