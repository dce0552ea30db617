"""The model machine where every rank takes from one other only: rank after rank, all at once.

Chains, and trees that spread, need no events. When a rank's messages have come is known once its
only sender is done, and then all that it sends follows from running maxima over arrays. That makes
millions of messages a matter of a second. The times are those of `collectives.cost.machine`, up to
rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collectives.closed_form import Number
from collectives.cost.links import Links
from collectives.cost.tracing import Group
from collectives.steps import Copy, Notify, Read, ReadReduce, Recv, RecvReduce, Send, Wait, Write

Times = NDArray[Any]
"""Of floats, or of exact fractions."""


@dataclass(frozen=True)
class _Shape:
    """What the ranks of a group share: their messages out and in, in order.

    Attributes:
        columns: for each message out, the row of `Part.targets` that says to whom.
        chunks: for each message out, how many chunks.
        takes_before: for each message out, how many messages come in before it is posted.
        reduced: for each message in, 1 where it is reduced.
    """

    columns: NDArray[np.int64]
    chunks: NDArray[np.int64]
    takes_before: NDArray[np.int64]
    reduced: NDArray[np.int64]


@dataclass(frozen=True)
class _Rank:
    """One rank: its group's shape, its sender and its targets."""

    shape: _Shape
    source: int | None
    targets: NDArray[np.int64]


def finish_times(groups: Sequence[Group], size: int, links: Links, share: Number) -> Times | None:
    """When each rank has done all, or None where these schedules are no forest."""
    ranks = _ranks(groups, size)
    order = None if ranks is None else _order(ranks)
    if ranks is None or order is None:
        return None
    kind = object if _exact(links, share) else np.float64
    share = share if kind is object else float(share)
    arrivals: list[Times | None] = [None] * size
    done = np.zeros(size, kind)
    for number in order:
        rank = ranks[number]
        arrived = arrivals[number]
        arrivals[number] = None  # millions of them should not be kept
        came = np.zeros(1, kind) if arrived is None else _with_start(np.maximum.accumulate(arrived))
        if len(rank.shape.reduced) != len(came) - 1:
            return None  # it takes what nobody sends; the machine says so
        sent = _send(rank, number, came, ranks, links, share, arrivals)
        done[number] = max([came[-1], *sent[-1:]])
    return done


def _exact(links: Links, share: Number) -> bool:
    used = (links.inside, links.between or links.inside)
    rates = [rate for link in used for rate in (link.alpha, link.beta, link.gamma)]
    return not any(isinstance(each, float) for each in (share, *rates))


def _with_start(came: Times) -> Times:
    return np.concatenate([np.zeros(1, came.dtype), came])


def _send(
    rank: _Rank,
    number: int,
    came: Times,
    ranks: Sequence[_Rank],
    links: Links,
    share: Number,
    arrivals: list[Times | None],
) -> Times:
    """Hand every target its arrival times; returns when each message had left."""
    posted = came[rank.shape.takes_before]
    if not len(posted):
        return posted
    targets = np.unique(rank.targets)
    out, reducing = np.zeros_like(posted), np.zeros_like(posted)
    for target in targets.tolist():
        mine = rank.targets == target
        link = links.link(number, target)
        nbytes = rank.shape.chunks[mine].astype(posted.dtype) * share
        out[mine] = link.alpha + nbytes * link.beta
        reducing[mine] = nbytes * link.gamma * ranks[target].shape.reduced
    busy = out + reducing if len(targets) == 1 else out
    before = np.cumsum(busy) - busy
    begin = before + np.maximum.accumulate(posted - before)
    for target in targets.tolist():
        mine = rank.targets == target
        arrivals[target] = (begin + out + reducing)[mine]
    left: Times = begin + out
    return left


def _ranks(groups: Sequence[Group], size: int) -> list[_Rank] | None:
    """All ranks, or None where one takes from several, works, or mixes reducing with several."""
    found: list[_Rank | None] = [None] * size
    for group in groups:
        if any(step.kind in (Copy, Read, ReadReduce, Write) for step in group.steps):
            return None
        shape, targets, sources = _shape(group)
        for lane, rank in enumerate(group.ranks.tolist()):
            from_whom = {int(row if isinstance(row, int) else row[lane]) for row in sources}
            to_whom = np.array([row if isinstance(row, int) else row[lane] for row in targets], int)
            if len(from_whom) > 1:
                return None
            found[rank] = _Rank(shape, next(iter(from_whom), None), to_whom[shape.columns])
    ranks = [rank for rank in found if rank is not None]
    for number, rank in enumerate(ranks):
        to = set(np.unique(rank.targets).tolist())
        for target in to:
            other = ranks[target]
            there = int((rank.targets == target).sum())
            if other.source != number or len(other.shape.reduced) != there:
                return None
        if len(to) > 1 and any(ranks[target].shape.reduced.any() for target in to):
            return None
    return ranks


def _shape(group: Group) -> tuple[_Shape, list[Any], list[Any]]:
    """The group's shape, the distinct rows of targets, and those of sources."""
    rows: dict[Any, int] = {}
    targets: list[Any] = []
    sources: dict[Any, Any] = {}
    columns: list[int] = []
    chunks: list[int] = []
    before: list[int] = []
    reduced: list[int] = []
    for step in group.steps:
        keys = [peer if isinstance(peer, int) else peer.tobytes() for peer in step.peers]
        if step.kind in (Send, Notify):
            for key, peer in zip(keys, step.peers, strict=True):
                if key not in rows:
                    rows[key] = len(targets)
                    targets.append(peer)
                columns.append(rows[key])
                chunks.append(step.chunks)
                before.append(len(reduced))
        else:
            assert step.kind in (Recv, RecvReduce, Wait), step.kind
            sources.update(zip(keys, step.peers, strict=True))
            reduced += [int(step.kind is RecvReduce)] * len(keys)
    arrays = (np.array(each, np.int64) for each in (columns, chunks, before, reduced))
    return _Shape(*arrays), targets, list(sources.values())


def _order(ranks: Sequence[_Rank]) -> list[int] | None:
    """Senders before those they send to; None where they go round."""
    children: list[list[int]] = [[] for _ in ranks]
    for number, rank in enumerate(ranks):
        if rank.source is not None:
            children[rank.source].append(number)
    order = [number for number, rank in enumerate(ranks) if rank.source is None]
    for number in order:  # grows as it goes
        order += children[number]
    return order if len(order) == len(ranks) else None
