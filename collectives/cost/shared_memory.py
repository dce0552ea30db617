"""The model of this transport: the plans of all ranks, run as the engine runs them, by a clock.

Each rank goes through its instructions in order, by waves where passes overlap. It waits for a slot
until every peer has read what lay in it, for a message until its sender has posted it and it has
arrived, for a core while there are more ranks than cores. What it does then takes the seconds that
`collectives.cost.work` counts and the parameters say.

Like a measurement, a prediction is for one call among many in a row: ranks may run ahead of each
other as far as slots allow, and arrays are where the call before left them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from collectives.cost.parameters import NAMES, PLACE, Parameters, Vector, with_company
from collectives.cost.work import Doing, Room, Workload, workload
from collectives.schedule import Algorithm

_FEWEST_TURNS = 20  # passes, of all calls together, after which ranks keep their distance


def predict(
    algo: Algorithm,
    size: int,
    nbytes: int,
    parameters: Parameters,
    room: Room,
    *,
    item_bytes: int = 4,
    root: int = 0,
) -> float:
    """Seconds of a call; the arguments are those of `collectives.cost.work.workload`."""
    return float(composition(algo, size, nbytes, parameters.values, room, item_bytes=item_bytes,
                             root=root) @ parameters.values)  # fmt: skip


def composition(
    algo: Algorithm,
    size: int,
    nbytes: int,
    values: Vector,
    room: Room,
    *,
    item_bytes: int = 4,
    root: int = 0,
) -> Vector:
    """How much of each parameter is on the critical path of a call; times `values`, its seconds."""
    long = workload(algo, size, nbytes, room, item_bytes=item_bytes, root=root)
    return composition_of(long, values, room)


def composition_of(load: Workload, values: Vector, room: Room) -> Vector:
    """As `composition`, of what is counted already."""
    path, company = critical_path(load, values, room)
    return with_company(path, company, float(values[PLACE["alone"]]))


def critical_path(load: Workload, values: Vector, room: Room) -> tuple[Vector, float]:
    """What the critical path is made of, as if all ranks worked always, and what share they do.

    Where there are more passes than are listed, they go on like the last.
    """
    listed = len(load.ranks[0])
    whole, company = _one_call(load, listed, values, room)
    if load.passes <= listed:
        return whole, company
    fewer = listed - 3
    each = (whole - _one_call(load, fewer, values, room)[0]) / (listed - fewer)
    return whole + (load.passes - listed) * each, company


def _one_call(load: Workload, passes: int, values: Vector, room: Room) -> tuple[Vector, float]:
    """Of one of many calls in a row, each of so many passes."""
    calls = max(3, -(-_FEWEST_TURNS // passes))
    run = _Run(load, passes, calls, values, room)
    ends = run.run()
    before = calls // 2
    return (ends[-1] - ends[before - 1]) / (calls - before), run.company()


@dataclass(slots=True)
class _Rank:
    """One rank while the model runs."""

    clock: float
    path: Vector  # what the clock is made of
    call: int = 0
    at: int = 0
    began: bool = False
    posts: int = 0  # those in slots
    slots: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # readers of each
    sent: dict[int, int] = field(default_factory=dict)
    received: dict[int, int] = field(default_factory=dict)


_Moment = tuple[float, Vector]


class _Run:
    """Calls in a row, each of so many passes."""

    def __init__(self, load: Workload, passes: int, calls: int, values: Vector, room: Room) -> None:
        self._load = load
        self._calls = calls
        self._room = room
        self._costs = load.works @ values
        self._call_cost = float(load.call @ values)
        self._arrival = _unit("arrival")
        self._arrival_cost = float(values[PLACE["arrival"]])
        self._switch = _unit("switch")
        self._switch_cost = float(values[PLACE["switch"]])
        zero = np.zeros(len(NAMES))
        self._ranks = [_Rank(0.0, zero) for _ in load.ranks]
        self._orders = [_in_order(turns[:passes]) for turns in load.ranks]
        self._posted: dict[tuple[int, int], deque[_Moment]] = {}
        self._released: dict[tuple[int, int], list[_Moment]] = {}  # (reader, sender) -> moments
        self._cores = [(0.0, -1, zero)] * room.cores  # free from when on, who was there, path
        self._crowded = len(self._ranks) > room.cores
        self._busy = 0.0
        self._ends: list[_Moment] = [(0.0, zero)] * calls

    def company(self) -> float:
        """The share of the time, until all has ended, that ranks (as many as have cores) worked."""
        longest = max(rank.clock for rank in self._ranks)
        at_once = min(len(self._ranks), self._room.cores)
        return min(1.0, self._busy / (at_once * longest)) if longest > 0 else 1.0

    def run(self) -> list[Vector]:
        """What the time until the end of each call is made of."""
        if not any(self._orders):
            return [self._load.call * (call + 1) for call in range(self._calls)]
        active = set(range(len(self._ranks)))
        while active:
            went = self._let_one_go(active) if self._crowded else self._let_all_go(active)
            assert went, "a proved schedule does not dead-lock"
        return [path for _, path in self._ends]

    def _let_all_go(self, active: set[int]) -> bool:
        """Each rank as far as it gets, in any order, as cores are no matter; whether any went."""
        went = False
        for number in sorted(active):
            while (ready := self._ready(number)) is not None:
                went = True
                if self._go(number, *ready):
                    active.discard(number)
                    break
        return went

    def _let_one_go(self, active: set[int]) -> bool:
        """The rank that can do its next instruction the soonest; whether there is one."""
        found = [(ready[0], number) for number in sorted(active) if (ready := self._ready(number))]
        if not found:
            return False
        _, number = min(found)
        ready = self._ready(number)
        if ready is not None and self._go(number, *ready):
            active.discard(number)
        return True

    def _doing(self, rank: _Rank, number: int) -> Doing | None:
        order = self._orders[number]
        return order[rank.at] if rank.at < len(order) else None

    def _ready(self, number: int) -> _Moment | None:
        """When a rank can do its next instruction; None if that is not known yet."""
        rank = self._ranks[number]
        doing = self._doing(rank, number)
        when, path = rank.clock, rank.path
        if doing is None:
            return when, path
        waits: list[_Moment] = []
        for source in doing.sources:
            posted = self._posted.get((source, number))
            if not posted:
                return None
            waits.append(posted[0])
        if doing.targets:
            for reader, index in self._in_the_way(rank, doing):
                released = self._released.get((reader, number), [])
                if len(released) <= index:
                    return None
                waits.append(released[index])
        for moment in waits:
            if moment[0] + self._arrival_cost > when:
                when, path = moment[0] + self._arrival_cost, moment[1] + self._arrival
        return when, path

    def _in_the_way(self, rank: _Rank, doing: Doing) -> list[tuple[int, int]]:
        """(reader, message) pairs that must be released before this can be posted."""
        found = [
            (target, rank.sent[target] - self._room.depth)
            for target in doing.targets
            if rank.sent.get(target, 0) >= self._room.depth
        ]
        if doing.in_slot:
            found += rank.slots.get(rank.posts % self._room.slots, [])
        return found

    def _go(self, number: int, when: float, path: Vector) -> bool:
        """Do the next instruction; whether that was the last one."""
        rank = self._ranks[number]
        doing = self._doing(rank, number)
        if not rank.began:
            rank.began = True
            self._busy += self._call_cost
            when, path = when + self._call_cost, path + self._load.call
        core = -1
        if self._crowded:
            core = min(
                range(len(self._cores)),
                key=lambda each: (max(self._cores[each][0], when), self._cores[each][1] != number),
            )
            free, last, before = self._cores[core]
            if free > when:
                when, path = free, before
            if last != number:
                when, path = when + self._switch_cost, path + self._switch
        if doing is not None:
            self._busy += float(self._costs[doing.work])
            when = when + float(self._costs[doing.work])
            path = path + self._load.works[doing.work]
            self._exchange(rank, number, doing, (when, path))
            rank.at += 1
        if core >= 0:
            self._cores[core] = (when, number, path)
        rank.clock, rank.path = when, path
        return self._moved_on(rank, number)

    def _exchange(self, rank: _Rank, number: int, doing: Doing, now: _Moment) -> None:
        for source in doing.sources:
            self._posted[source, number].popleft()
            self._released.setdefault((number, source), []).append(now)
        readers = []
        for target in doing.targets:
            self._posted.setdefault((number, target), deque()).append(now)
            index = rank.sent.get(target, 0)
            readers.append((target, index))
            rank.sent[target] = index + 1
        if doing.in_slot:
            rank.slots[rank.posts % self._room.slots] = readers
            rank.posts += 1

    def _moved_on(self, rank: _Rank, number: int) -> bool:
        """Go to the next call where this one is at its end; whether all are."""
        if rank.at < len(self._orders[number]):
            return False
        if rank.clock >= self._ends[rank.call][0]:
            self._ends[rank.call] = (rank.clock, rank.path)
        rank.at, rank.began = 0, False
        rank.call += 1
        # One that has nothing to do at all goes no further.
        return rank.call == self._calls or not self._orders[number]


def _in_order(turns: Sequence[Sequence[Doing]]) -> list[Doing]:
    """What a rank does in so many passes: by wave, within a wave by place in the plan."""
    due = [
        (turn + doing.delay, place, doing)
        for turn, doings in enumerate(turns)
        for place, doing in enumerate(doings)
    ]
    return [doing for _, _, doing in sorted(due, key=lambda each: each[:2])]


def _unit(name: str) -> Vector:
    vector = np.zeros(len(NAMES))
    vector[PLACE[name]] = 1
    return vector
