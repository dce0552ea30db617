"""Two binary trees at once: a rank that is a leaf of one works in the other.

In a binary tree half of the ranks are leaves, which send little. So half of the array goes
through a second tree in which those ranks do the work. Of 8 ranks:

         first tree                      second tree (mirrored)

      0──────┐                                   ┌──────7
             4                                   3
         ┌───┴───┐                           ┌───┴───┐
         2       6                           1       5
        ┌┴┐     ┌┴┐                         ┌┴┐     ┌┴┐
        1 3     5 7                         0 2     4 6
"""

from __future__ import annotations

from dataclasses import dataclass

from collectives.algorithms.trees import (
    inorder_children,
    inorder_parent,
    twin_place,
    twin_rank,
)
from collectives.schedule import Steps, algorithm, recv, recv_reduce, send


@dataclass(frozen=True)
class _Position:
    """Where a rank is in one of the trees; the tree's number is that of its half of the array."""

    tree: int
    parent: int | None
    children: list[int]


def _positions(rank: int, size: int) -> list[_Position]:
    """The rank in both trees, that in which it is a leaf, or nearer to one, first."""
    found = []
    for tree in (0, 1):
        place = twin_place(rank, size) if tree else rank
        above = inorder_parent(place, size) if place else None
        below = inorder_children(place, size)
        if tree:
            above = None if above is None else twin_rank(above, size)
            below = [twin_rank(child, size) for child in below]
        found.append((below != [], place == 0, _Position(tree, above, below)))
    return [position for *_, position in sorted(found, key=lambda each: each[:2])]


@algorithm(
    "allreduce",
    name="double_binary_tree",
    chunks=2,
    widest=lambda size: 1,
    cost="(n > 1)(2 fl(n) - (p2(n) == n))(2 alpha + s beta + s/2 gamma)",
    messages="(n > 1) min(n, 4)",
    volume="(n > 1) min(n, 4)/2 s",
    source="Sanders, Speck & Träff 2009",
)
def double_binary_tree_allreduce(rank: int, size: int) -> Steps:
    """Up both trees and down both trees, half of the array each.

    2 log2 n levels, each of two messages, and at most 2 s bytes a rank: short like a tree, and for
    long arrays, which go through in segments, nearly as good as a ring.
    """
    leaf_first = _positions(rank, size)
    # Up. Every rank first sends as a leaf, so that nobody who works waits for it.
    for at in leaf_first:
        if at.children:
            yield recv_reduce(at.children, chunk=at.tree)
        if at.parent is not None:
            yield send(at.parent, chunk=at.tree)
    # Down. Every rank first hands on what others wait for, and takes last what it needs as a leaf.
    for at in reversed(leaf_first):
        if at.parent is not None:
            yield recv(at.parent, chunk=at.tree)
        if at.children:
            yield send(at.children, chunk=at.tree)
