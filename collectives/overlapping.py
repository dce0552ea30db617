"""Passes of a long call that overlap: in which order a rank runs its instructions.

Run one after the other, passes leave a rank idle wherever it waits for what its peers are just
doing. Here every instruction gets a *delay*: in wave w a rank runs, in the order of its plan, each
instruction for the pass w - delay. The delays of all ranks are chosen together, so that

1. what is sent in one wave is received in the next: delay(receive) = delay(send) + 1;
2. along a plan no delay is less than the one before.

So a channel still carries its messages in an order on which both ends agree: by wave, within a wave
by their place in the plan, which for the receiver are the same with every wave one higher. And in
each pass everything still happens after what it needs.

No dead-lock, if a rank may have 2 m messages on their way, m being the most that any rank sends in
a pass: suppose that all ranks are blocked, and look at one in the least wave, w. It does not wait
for a message, since that was sent in wave w - 1, which every rank has left behind. It does not
wait for a slot, since of its messages those of waves up to w - 2 were received in waves up to
w - 1: on their way are at most those of wave w - 1, m of them, and those of w so far, less than m.
With fewer slots passes run one after the other, as the proof of the schedule has it. (Messages of
an earlier call count as of earlier waves. An engine that works on the steps of a wave together has
their slots all at once: those of wave w - 1 and of w, 2 m. Where ranks know of different numbers of
passes, as with counts, both ends of a message know of its pass.)

Not every schedule has such delays: where a rank hears from another both directly and by way of a
third, the two ways may be of different lengths. And where a rank keeps values in scratch, which
holds one pass at a time, passes do not overlap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from transports.plan import Instruction, Space

MOST_MESSAGES = 8
"""Schedules in which a rank sends more in a pass are not overlapped: engines have few slots."""

_MOST_INSTRUCTIONS = 512
"""Of all ranks: delays take a few milliseconds to find then."""

_Place: TypeAlias = tuple[int, int]
"""A rank, and the index of an instruction in its plan."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """How passes of a schedule overlap.

    Attributes:
        delays: for every rank, of each instruction.
        in_flight: how many messages a rank may then have on their way.
    """

    delays: tuple[tuple[int, ...], ...]
    in_flight: int


def find_overlap(plans: Iterable[Sequence[Instruction]]) -> Overlap | None:
    """How the passes of these plans, of all ranks in order, overlap; None if they cannot.

    Plans are asked for one by one, and no further than it takes to see that they cannot.
    """
    known: list[Sequence[Instruction]] = []
    for plan in plans:
        if sum(bool(each.targets) for each in plan) > MOST_MESSAGES or _uses_scratch(plan):
            return None
        known.append(plan)
        if sum(map(len, known)) > _MOST_INSTRUCTIONS:
            return None
    most = max((sum(bool(each.targets) for each in plan) for plan in known), default=0)
    if most == 0:
        return None
    messages = _messages(known)
    if messages is None:
        return None
    # Delays that all differ within a rank leave its instructions independent of each other in every
    # wave; where that cannot be, some may be equal.
    for least in (1, 0):
        delays = _solve(known, messages, least)
        if delays is not None:
            return Overlap(delays, 2 * most)
    return None


def _uses_scratch(plan: Sequence[Instruction]) -> bool:
    return any(space is Space.SCRATCH for each in plan for space, _ in (*each.reads, *each.writes))


def _messages(
    plans: Sequence[Sequence[Instruction]],
) -> list[tuple[_Place, _Place]] | None:
    """Who sends and who receives each message of a pass; None if some are only one of these."""
    sent: dict[tuple[int, int], deque[_Place]] = {}
    for rank, plan in enumerate(plans):
        for index, each in enumerate(plan):
            for target in each.targets:
                sent.setdefault((rank, target), deque()).append((rank, index))
    found = []
    for rank, plan in enumerate(plans):
        for index, each in enumerate(plan):
            for source in each.sources:
                channel = sent.get((source, rank))
                if not channel:
                    return None
                found.append((channel.popleft(), (rank, index)))
    return None if any(sent.values()) else found


def _solve(
    plans: Sequence[Sequence[Instruction]], messages: Sequence[tuple[_Place, _Place]], least: int
) -> tuple[tuple[int, ...], ...] | None:
    """The least delays, each `least` more than the one before at least; None if there are none."""
    bounds: dict[_Place, list[tuple[_Place, int]]] = {}  # place -> (other, by how much more)
    for rank, plan in enumerate(plans):
        for index in range(len(plan) - 1):
            bounds.setdefault((rank, index), []).append(((rank, index + 1), least))
    for send, receive in messages:
        bounds.setdefault(send, []).append((receive, 1))
        bounds.setdefault(receive, []).append((send, -1))
    delays = [[0] * len(plan) for plan in plans]
    beyond = sum(map(len, plans))  # no longest path without a circle is so long
    changed = deque(bounds)
    waiting = set(changed)
    while changed:
        place = changed.popleft()
        waiting.discard(place)
        for (rank, index), more in bounds.get(place, ()):
            wanted = delays[place[0]][place[1]] + more
            if wanted <= delays[rank][index]:
                continue
            if wanted > beyond:
                return None
            delays[rank][index] = wanted
            if (rank, index) not in waiting:
                waiting.add((rank, index))
                changed.append((rank, index))
    return tuple(map(tuple, delays))
