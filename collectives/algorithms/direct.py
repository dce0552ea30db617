"""Direct exchange: every rank talks to every other, nothing is handed on.

Where a message is written once and read by all (shared memory), fewest steps of all.
"""

from __future__ import annotations

from collectives.algorithms.neighbours import others
from collectives.algorithms.pairwise import pairwise_reduce_scatter
from collectives.schedule import Steps, algorithm, recv, recv_reduce, send


@algorithm(
    "allgather",
    name="direct",
    widest=lambda size: 1,
    cost="(n-1)(alpha + s/n beta)",
    messages="n-1",
    volume="(n-1)/n s",
    source="Chan, Heimlich, Purkayastha & van de Geijn 2007",
)
def direct_allgather(rank: int, size: int) -> Steps:
    """Every rank posts its chunk once, for all others: one step, (n-1)/n s bytes a rank."""
    if size > 1:
        yield send(others(rank, size), chunk=rank)
    # Those to the left first: in the order in which `others` makes them send.
    for peer in reversed(others(rank, size)):
        yield recv(peer, chunk=peer)


@algorithm(
    "allreduce",
    name="one_shot",
    widest=lambda size: 1,
    cost="(n-1)(alpha + s beta + s gamma)",
    messages="n-1",
    volume="(n-1) s",
    source="NVIDIA TensorRT-LLM 2023 (one-shot all-reduce)",
)
def one_shot_allreduce(rank: int, size: int) -> Steps:
    """Every rank posts its whole array once and adds up all arrays itself, in rank order.

    One step, (n-1) s bytes a rank: for a few ranks and very short arrays.
    """
    if size > 1:
        yield send(others(rank, size), chunk=0)
        yield recv_reduce(others(rank, size), chunk=0)


@algorithm(
    "allreduce",
    name="two_shot",
    chunks=lambda size: size,
    widest=lambda size: 1,
    cost="2(n-1)(alpha + s/n beta) + (n-1)/n s gamma",
    messages="2(n-1)",
    volume="2(n-1)/n s",
    source="NVIDIA TensorRT-LLM 2023 (two-shot all-reduce)",
)
def two_shot_allreduce(rank: int, size: int) -> Steps:
    """Every rank adds up its chunk from all others, then posts it for all of them.

    As many bytes as a ring, 2(n-1)/n s a rank, but every byte goes straight to where it is needed.
    """
    yield from pairwise_reduce_scatter(rank, size)
    yield from direct_allgather(rank, size)


@algorithm(
    "barrier",
    name="one_shot",
    widest=lambda size: 1,
    cost="(n-1) alpha",
    messages="n-1",
    volume="0",
    source="the definition",
)
def direct_barrier(rank: int, size: int) -> Steps:
    """Tell everyone, hear from everyone: who has told them need not stay for the others' sake."""
    if size > 1:
        yield send(others(rank, size), chunk=0)
        for peer in others(rank, size):
            yield recv(peer, chunk=0)
