"""What ranks do to the model machine: steps as posts, takes and work on the own memory.

Where all ranks do the same but for a rotation, as in a ring, one of them stands for all: it sends
to itself, and takes from itself, by distance. That is exact, since the ranks then do the same at
the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from collectives.cost.tracing import Group, Traced, rotations
from collectives.steps import Copy, Notify, Read, ReadReduce, Recv, RecvReduce, Send, Wait, Write


class Kind(Enum):
    """What an action occupies: the way out, the way in, or only the rank."""

    POST = "post"
    TAKE = "take"
    WORK = "work"


class End(NamedTuple):
    """The other end of a message.

    Attributes:
        node: who is there.
        key: tells the channels of its messages apart where one node stands for many ranks.
    """

    node: int
    key: int


@dataclass(frozen=True, slots=True)
class Action:
    """One step on the model machine.

    Attributes:
        kind: what it occupies.
        ends: whom it sends to or takes from; of work, whose memory it touches.
        chunks: how many chunks each of its messages carries.
        moves: how often work moves its chunks.
        reduces: how often what arrives, or is read, is added up (0 or 1 an end).
    """

    kind: Kind
    ends: tuple[End, ...]
    chunks: int
    moves: int = 1
    reduces: int = 0


@dataclass(frozen=True)
class Programs:
    """The actions of all nodes.

    Attributes:
        of: by node.
        stands_for: how many ranks one node stands for.
        hosts: where nodes are the ranks of one host that stands for all, how many there are: keys
            modulo that are distances between hosts.
    """

    of: Sequence[Sequence[Action]]
    stands_for: int = 1
    hosts: int = 0


def as_programs(groups: Sequence[Group], size: int, *, uniform: bool) -> Programs:
    """The actions of all ranks, or of one that stands for all where that is exact.

    Args:
        groups: the ranks' steps.
        size: number of ranks.
        uniform: whether all links are alike.
    """
    if uniform and len(groups) == 1 and size > 2:
        turned = list(rotations(groups[0], size))
        if len(turned) == len(groups[0].steps):
            return Programs([_for_all(turned, size)], size)
    of: list[list[Action]] = [[] for _ in range(size)]
    for group in groups:
        for step in group.steps:
            columns = [[p] * len(group.ranks) if isinstance(p, int) else p.tolist()
                       for p in step.peers]  # fmt: skip
            for lane, rank in enumerate(group.ranks.tolist()):
                peers = [column[lane] for column in columns]
                # A channel is known by its sender: by the rank itself where it sends.
                keys = [rank] * len(peers) if step.kind in (Send, Notify) else peers
                of[rank].append(_action(step, tuple(map(End, peers, keys))))
    return Programs(of)


def _for_all(turned: Sequence[tuple[Traced, tuple[int, ...]]], size: int) -> list[Action]:
    actions = []
    for step, distances in turned:
        sends = step.kind in (Send, Notify)
        ends = tuple(End(0, away if sends else size - away) for away in distances)
        actions.append(_action(step, ends))
    return actions


def _action(step: Traced, ends: tuple[End, ...]) -> Action:
    if step.kind in (Send, Notify):
        return Action(Kind.POST, ends, step.chunks)
    if step.kind in (Recv, RecvReduce, Wait):
        return Action(Kind.TAKE, ends, step.chunks, reduces=int(step.kind is RecvReduce))
    if step.kind in (Read, ReadReduce, Write):
        return Action(Kind.WORK, ends, step.chunks, reduces=int(step.kind is ReadReduce))
    assert step.kind is Copy, step.kind
    return Action(Kind.WORK, (), 1, moves=0, reduces=1)  # a pass over memory, like a reduction
