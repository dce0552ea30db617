"""All ranks' steps at once: one run of an algorithm's generator for all ranks that act alike.

The generator is run with a `Lanes` for its rank: a number that is another one on every rank, as in
a processor whose lanes share one instruction. Arithmetic acts on all lanes. Where the lanes part,
in a comparison or where a plain number is needed, the run goes on with the lanes that agree with
the first one, and the others are run again by themselves. So a ring of thousands of ranks is one
run, a chain three, and what depends on every single rank is run once a rank: always the schedules
of `Algorithm.schedule`, only sooner.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from collectives.schedule import Algorithm
from collectives.steps import Step

Ranks: TypeAlias = NDArray[np.int64]
Peer: TypeAlias = "int | Ranks"


@dataclass(frozen=True, slots=True)
class Traced:
    """One step of every rank of a group.

    Attributes:
        kind: the step's class in `collectives.schedule`.
        peers: each a number, or one for every rank of the group.
        chunks: how many chunks it moves.
    """

    kind: type[Step]
    peers: tuple[Peer, ...]
    chunks: int


@dataclass(frozen=True)
class Group:
    """Ranks that take the same steps, but for whom they talk to."""

    ranks: Ranks
    steps: tuple[Traced, ...]


def trace(
    algo: Algorithm, size: int, root: int = 0, hosts: Sequence[int] | None = None
) -> list[Group]:
    """The steps of all ranks, in groups; every rank is in one of them.

    Raises:
        ValueError: as `Algorithm.schedule`.
        ScheduleError: as `Algorithm.schedule`.
    """
    algo.schedule(0, size, root, hosts)  # refuses what cannot be
    placed = tuple(hosts) if hosts is not None else (0,) * size
    groups: list[Group] = []
    waiting = [np.arange(size)]
    while waiting:
        run = _Run(waiting.pop())
        given = {"rank": run.rank(), "size": size, "root": root, "hosts": placed}
        written = algo.body(**{name: given[name] for name in algo.wants})
        group, wrong = _group(run, [_traced(algo, step) for step in written], size)
        if wrong is not None:
            algo.schedule(wrong, size, root, hosts)  # raises, and says what is wrong
        waiting += run.parted
        groups.append(group)
    return groups


class _Run:
    """One run of the generator: which lanes are still in it, and which have left."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.alive = np.arange(len(ranks))
        self.parted: list[Ranks] = []

    def rank(self) -> Any:
        return int(self.ranks[0]) if len(self.ranks) == 1 else Lanes(self.ranks, self)

    def agree(self, values: NDArray[Any]) -> Any:
        """The value of the first lane; lanes with other values leave, those alike together."""
        there = values[self.alive]
        first = there[0]
        same = there == first
        if not same.all():
            others = self.alive[~same]
            order = np.argsort(values[others], kind="stable")
            cuts = np.flatnonzero(np.diff(values[others][order])) + 1
            self.parted += [self.ranks[each] for each in np.split(others[order], cuts)]
            self.alive = self.alive[same]
        return first


def _lanewise(name: str) -> Callable[[Lanes, Any], Any]:
    apply_to = getattr(operator, f"__{name}__")

    def apply(self: Lanes, other: Any) -> Any:
        if not isinstance(other, Lanes | int) or len(self._run.alive) == 1:
            return apply_to(int(self), int(other) if isinstance(other, Lanes) else other)
        with np.errstate(all="ignore"):  # lanes that have left may divide by zero
            values = other.values if isinstance(other, Lanes) else other
            return Lanes(apply_to(self.values, values), self._run)

    return apply


def _turned(name: str) -> Callable[[Lanes, Any], Any]:
    apply_to = getattr(operator, f"__{name}__")

    def apply(self: Lanes, other: Any) -> Any:
        if not isinstance(other, int) or len(self._run.alive) == 1:
            return apply_to(other, int(self))
        with np.errstate(all="ignore"):
            return Lanes(apply_to(other, self.values), self._run)

    return apply


def _single(name: str, turned: bool) -> Callable[[Lanes, Any], Any]:
    """Operations whose result may be no whole number: on one lane."""
    apply_to = divmod if name == "divmod" else getattr(operator, f"__{name}__")

    def apply(self: Lanes, other: Any) -> Any:
        one = int(other) if isinstance(other, Lanes) else other
        return apply_to(one, int(self)) if turned else apply_to(int(self), one)

    return apply


def _compared(name: str) -> Callable[[Lanes, Any], bool]:
    apply_to = getattr(operator, f"__{name}__")

    def apply(self: Lanes, other: Any) -> bool:
        if not isinstance(other, Lanes | int):
            return bool(apply_to(int(self), other))
        values = other.values if isinstance(other, Lanes) else other
        return bool(self._run.agree(apply_to(self.values, values)))

    return apply


def _unary(name: str) -> Callable[[Lanes], Lanes]:
    apply_to = getattr(operator, f"__{name}__")
    return lambda self: Lanes(apply_to(self.values), self._run)


class Lanes:
    """A number that is another one on every rank of a run; whatever needs one number splits it."""

    def __init__(self, values: Ranks, run: _Run) -> None:
        self.values = values
        self._run = run

    def __index__(self) -> int:
        return int(self._run.agree(self.values))

    __int__ = __index__

    def __float__(self) -> float:
        return float(int(self))

    def __bool__(self) -> bool:
        return bool(self._run.agree(self.values != 0))

    def __hash__(self) -> int:
        return hash(int(self))

    def __repr__(self) -> str:
        return repr(int(self))

    def __format__(self, spec: str) -> str:
        return format(int(self), spec)

    def __getattr__(self, name: str) -> Any:
        return getattr(int(self), name)


for _name in ("add", "sub", "mul", "floordiv", "mod", "and", "or", "xor", "lshift", "rshift"):
    setattr(Lanes, f"__{_name}__", _lanewise(_name))
    setattr(Lanes, f"__r{_name}__", _turned(_name))
for _name in ("truediv", "pow", "divmod"):
    setattr(Lanes, f"__{_name}__", _single(_name, turned=False))
    setattr(Lanes, f"__r{_name}__", _single(_name, turned=True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Lanes, f"__{_name}__", _compared(_name))
for _name in ("neg", "invert", "abs", "pos"):
    setattr(Lanes, f"__{_name}__", _unary(_name))


def _traced(algo: Algorithm, step: Any) -> Traced:
    peers = step.peers
    if type(peers) is int:
        return _same(step.kind, peers, _count(algo, step.chunk))
    if isinstance(peers, Lanes) or not isinstance(peers, Iterable):
        peers = (peers,)
    return Traced(step.kind, tuple(_value(peer) for peer in peers), _count(algo, step.chunk))


@lru_cache(maxsize=4096)
def _same(kind: type[Step], peer: int, chunks: int) -> Traced:
    """One object for equal steps: there may be millions."""
    return Traced(kind, (peer,), chunks)


def _value(peer: Any) -> Peer:
    return peer.values if isinstance(peer, Lanes) else int(peer)


def _count(algo: Algorithm, chunk: Any) -> int:
    """How many chunks an author names; see `collectives.schedule`."""
    if type(chunk) is int or isinstance(chunk, Lanes):
        return 1
    if chunk is None:
        return 0
    if not isinstance(chunk, Iterable):
        return 1
    listed = chunk if isinstance(chunk, Sequence) else list(chunk)
    if algo.spec.chunking == "pairs" and isinstance(chunk, tuple):
        return len(listed) if any(isinstance(each, tuple) for each in listed) else 1
    return len(listed)


def _group(run: _Run, steps: Sequence[Traced], size: int) -> tuple[Group, int | None]:
    """The group, and a rank whose peers do not exist, if there is one."""
    ranks = run.ranks[run.alive]
    kept, wrong = [], None
    for step in steps:
        if len(ranks) == 1:
            own = int(ranks[0])
            peers: tuple[Peer, ...] = step.peers
            if any(type(peer) is not int for peer in peers):
                peers = tuple(p if isinstance(p, int) else int(p[run.alive][0]) for p in peers)
                step = Traced(step.kind, peers, step.chunks)
            if any(peer == own or not 0 <= peer < size for peer in peers):
                wrong = own
        else:
            step, stray = _among_the_living(step, ranks, run.alive, size)
            wrong = stray if wrong is None else wrong
        kept.append(step)
    return Group(ranks, tuple(kept)), wrong


def _among_the_living(
    step: Traced, ranks: Ranks, alive: Ranks, size: int
) -> tuple[Traced, int | None]:
    """A step without the lanes that left the run, and a rank whose peer does not exist."""
    peers = tuple(peer if isinstance(peer, int) else peer[alive] for peer in step.peers)
    for peer in peers:
        stray = np.less(peer, 0) | np.greater_equal(peer, size) | (ranks == peer)
        if stray.any():
            return step, int(ranks[stray.argmax()])
    return Traced(step.kind, peers, step.chunks), None


def rotations(group: Group, size: int) -> Iterator[tuple[Traced, tuple[int, ...]]]:
    """Each step with its peers as distances from the rank; ends early where they differ.

    Only a group of all ranks whose every step is yielded is symmetric: then all ranks do the same
    at the same time, and one can stand for all.
    """
    for step in group.steps:
        distances = []
        for peer in step.peers:
            away = (peer - group.ranks) % size
            if (away != away[0]).any():
                return
            distances.append(int(away[0]))
        yield step, tuple(distances)
