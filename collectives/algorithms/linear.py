"""Linear: the root talks to every rank itself. One step for all ranks but the root."""

from __future__ import annotations

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
