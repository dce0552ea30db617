"""One-sided around a root, with work for every rank: what the root need not do others do.

These run where the kernel copies between arrays that lie anywhere. Some need an array that only the
root has, of which in symmetric memory nobody else could know the place; so no table chooses them.

    rank 0 (root)   enter ── notify ──── copy the own chunk ──────────── wait ── leave
    rank 1          enter ── wait ────── read or write at the root ── notify ── leave
"""

from __future__ import annotations

from collectives.algorithms.neighbours import others
from collectives.algorithms.one_sided import everyone_is_there
from collectives.schedule import Steps, algorithm, notify, read, read_reduce, wait, write


@algorithm(
    "scatter",
    name="pull",
    widest=lambda size: 1,
    cost="(n > 1)(n alpha + s/n beta)",
    messages="n-1",
    volume="(n > 1) s/n",
    source="Chan, Heimlich, Purkayastha & van de Geijn 2007 (linear, by remote reads)",
    one_sided=True,
)
def pulled_scatter(rank: int, size: int, root: int) -> Steps:
    """Every rank reads its chunk in the root's array, while the root copies its own."""
    if rank != root:
        yield wait(root)
        yield read(root, chunk=rank)
        yield notify(root)
    elif size > 1:
        yield notify(others(root, size))
        yield wait(others(root, size))


@algorithm(
    "gather",
    name="push",
    widest=lambda size: 1,
    cost="(n > 1)(n alpha + s/n beta)",
    messages="n-1",
    volume="(n > 1) s/n",
    source="Chan, Heimlich, Purkayastha & van de Geijn 2007 (linear, by remote writes)",
    one_sided=True,
)
def pushed_gather(rank: int, size: int, root: int) -> Steps:
    """Every rank writes its chunk to the root's array, while the root copies its own."""
    if rank != root:
        yield wait(root)
        yield write(root, chunk=rank)
        yield notify(root)
    elif size > 1:
        yield notify(others(root, size))
        yield wait(others(root, size))


@algorithm(
    "broadcast",
    name="push_pull",
    chunks=lambda size: size,
    widest=lambda size: max(1, size - 1),
    cost="(n > 1) 2n alpha + (n-1)/n s beta",
    messages="2(n-1)",
    volume="(n-1)/n s",
    source="linear broadcast by remote reads, of which the root does its share by writes",
    one_sided=True,
)
def push_pull_broadcast(rank: int, size: int, root: int) -> Steps:
    """The root writes one chunk of n to all, who meanwhile read the others: all are busy alike."""
    if rank != root:
        yield notify(root)
        yield wait(root)
        yield read(root, chunk=range(1, size))
        yield notify(root)
        yield wait(root)
    elif size > 1:
        yield wait(others(root, size))
        yield notify(others(root, size))
        yield write(others(root, size), chunk=0)
        yield notify(others(root, size))
        yield wait(others(root, size))


@algorithm(
    "reduce",
    name="push",
    chunks=lambda size: size,
    widest=lambda size: 1,
    cost="2(n-1) alpha + (n > 1)(s beta + (n-1)/n s gamma)",
    messages="2(n-1)",
    volume="(n > 1) s",
    source="NVIDIA TensorRT-LLM 2023 (two-shot all-reduce, whose sums go to the root alone)",
    one_sided=True,
)
def pushed_reduce(rank: int, size: int, root: int) -> Steps:
    """Every rank adds up its chunk where the others hold it, and writes the sum to the root."""
    yield from everyone_is_there(rank, size)
    if size > 1:
        yield read_reduce(others(rank, size), chunk=rank)
        if rank != root:
            yield write(root, chunk=rank)
    yield from everyone_is_there(rank, size)
