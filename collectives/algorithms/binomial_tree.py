"""Binomial trees: in every step each rank that has something gives it to one that has not.

        0 ── 4 ── 6 ── 7        places, counted from the root; depth ceil(log2 n)
        │    └─── 5
        ├─── 2 ── 3
        └─── 1

The tree for every collective: few steps, for short messages. What goes to several children is
sent once; the child with the deepest subtree comes first.
"""

from __future__ import annotations

from collections.abc import Sequence

from collectives.algorithms.trees import (
    binomial_children,
    binomial_parent,
    binomial_subtree,
    place_of,
    rank_at,
    widest_subtree,
)
from collectives.schedule import Steps, algorithm, recv, recv_reduce, send


def _parent(rank: int, size: int, root: int) -> int | None:
    """The rank above; None at the root."""
    place = place_of(rank, size, root)
    return rank_at(binomial_parent(place), size, root) if place > 0 else None


def _children(rank: int, size: int, root: int) -> list[int]:
    """The ranks below, the one with the deepest subtree first."""
    places = binomial_children(place_of(rank, size, root), size)
    return [rank_at(place, size, root) for place in places]


def _subtree(rank: int, size: int, root: int) -> list[int]:
    """The ranks of the subtree below and at `rank`; here also the chunks that belong to them."""
    places = binomial_subtree(place_of(rank, size, root), size)
    return [rank_at(place, size, root) for place in places]


def _spread(rank: int, size: int, root: int, chunks: Sequence[int]) -> Steps:
    """From parent to children, all `chunks` in one message."""
    parent, children = _parent(rank, size, root), _children(rank, size, root)
    if parent is not None:
        yield recv(parent, chunk=chunks)
    if children:
        yield send(children, chunk=chunks)


def _sum_up(rank: int, size: int, root: int, chunks: Sequence[int]) -> Steps:
    """From children to parent, all `chunks` in one message, sums growing on the way.

    One child after another, since the nearer ones, with smaller subtrees, are ready earlier: when
    the last has come, a single addition is left.
    """
    parent, children = _parent(rank, size, root), _children(rank, size, root)
    for child in reversed(children):
        yield recv_reduce(child, chunk=chunks)
    if parent is not None:
        yield send(parent, chunk=chunks)


@algorithm(
    "broadcast",
    name="tree",
    widest=lambda size: 1,
    cost="lg(n)(alpha + s beta)",
    messages="lg(n)",
    volume="lg(n) s",
    source="Thakur, Rabenseifner & Gropp 2005",
)
def binomial_broadcast(rank: int, size: int, root: int) -> Steps:
    """The whole array down the tree: ceil(log2 n) steps; the root sends it as often."""
    yield from _spread(rank, size, root, [0])


@algorithm(
    "reduce",
    name="tree",
    widest=lambda size: 1,
    cost="lg(n)(alpha + s beta + s gamma)",
    messages="(n > 1)",
    volume="(n > 1) s",
    source="Thakur, Rabenseifner & Gropp 2005",
)
def binomial_reduce(rank: int, size: int, root: int) -> Steps:
    """The whole array up the tree: ceil(log2 n) steps; every rank but the root sends it once."""
    yield from _sum_up(rank, size, root, [0])


@algorithm(
    "allreduce",
    name="tree",
    widest=lambda size: 1,
    cost="lg(n)(2 alpha + 2 s beta + s gamma)",
    messages="lg(n)",
    volume="lg(n) s",
    source="Thakur, Rabenseifner & Gropp 2005",
)
def binomial_allreduce(rank: int, size: int) -> Steps:
    """Reduce to rank 0, then broadcast from it: 2 ceil(log2 n) steps."""
    yield from binomial_reduce(rank, size, 0)
    yield from binomial_broadcast(rank, size, 0)


@algorithm(
    "gather",
    name="tree",
    widest=widest_subtree,
    cost="lg(n) alpha + (n-1)/n s beta",
    messages="(n > 1)",
    volume="(n > 1) max(n - 2**(lg(n)-1), 2**(lg(n)-2))/n s",
    source="Thakur, Rabenseifner & Gropp 2005",
)
def binomial_gather(rank: int, size: int, root: int) -> Steps:
    """Every rank sends the chunks of its whole subtree as one message: ceil(log2 n) steps.

    The root's child with the largest subtree sends about s/2 bytes.
    """
    parent, children = _parent(rank, size, root), _children(rank, size, root)
    for child in reversed(children):  # the nearest is ready first
        yield recv(child, chunk=_subtree(child, size, root))
    if parent is not None:
        yield send(parent, chunk=_subtree(rank, size, root))


@algorithm(
    "scatter",
    name="tree",
    widest=widest_subtree,
    cost="lg(n) alpha + (n-1)/n s beta",
    messages="lg(n)",
    volume="(n-1)/n s",
    source="Thakur, Rabenseifner & Gropp 2005",
)
def binomial_scatter(rank: int, size: int, root: int) -> Steps:
    """Every rank gets the chunks of its whole subtree as one message: ceil(log2 n) steps.

    The root sends (n-1)/n s bytes, half of them with its first message.
    """
    parent, children = _parent(rank, size, root), _children(rank, size, root)
    if parent is not None:
        yield recv(parent, chunk=_subtree(rank, size, root))
    for child in children:
        yield send(child, chunk=_subtree(child, size, root))


@algorithm(
    "allgather",
    name="tree",
    widest=lambda size: size,
    cost="2 lg(n) alpha + (lg(n) + (n-1)/n) s beta",
    messages="lg(n)",
    volume="lg(n) s",
    source="Thakur, Rabenseifner & Gropp 2005",
)
def binomial_allgather(rank: int, size: int) -> Steps:
    """Gather to rank 0, then broadcast everything from it: 2 ceil(log2 n) steps."""
    yield from binomial_gather(rank, size, 0)
    yield from _spread(rank, size, 0, range(size))


@algorithm(
    "reduce_scatter",
    name="tree",
    widest=lambda size: size,
    cost="2 lg(n) alpha + (lg(n) + (n-1)/n) s beta + lg(n) s gamma",
    messages="lg(n)",
    volume="(n > 1)(1 + (max(n - 2**(lg(n)-1), 2**(lg(n)-2)) - 1)/n) s",
    source="Thakur, Rabenseifner & Gropp 2005",
)
def binomial_reduce_scatter(rank: int, size: int) -> Steps:
    """Reduce everything to rank 0, then scatter from it: 2 ceil(log2 n) steps.

    A rank sends all s bytes up, then what its subtree is due down: up to 3/2 s.
    """
    yield from _sum_up(rank, size, 0, range(size))
    yield from binomial_scatter(rank, size, 0)


@algorithm(
    "barrier",
    name="tree",
    widest=lambda size: 1,
    cost="2 lg(n) alpha",
    messages="lg(n)",
    volume="0",
    source="Mellor-Crummey & Scott 1991",
)
def binomial_barrier(rank: int, size: int) -> Steps:
    """Up the tree goes that all below have entered, down that all have: 2 ceil(log2 n) steps."""
    parent, children = _parent(rank, size, 0), _children(rank, size, 0)
    for child in reversed(children):
        yield recv(child, chunk=0)
    if parent is not None:
        yield send(parent, chunk=0)
    yield from _spread(rank, size, 0, [0])
