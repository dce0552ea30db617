"""What one-sided schedules may do wrong, found without clocks: an oracle for tests of the proof.

- Every step of every rank is *held up* while it is under way: the rank has begun to read or write,
  and has not ended. All others then run as far as they get, and none of them may touch the same
  memory (unless both read), nor come to its end while its memory is in use; nor may anyone touch
  the memory of a rank that is held up before its first step.
- The schedules run on numbers, ranks taking turns at random, with room for one notify.
"""

from __future__ import annotations

import random
from collections import Counter

import numpy as np

from collectives.rounds import peers_of
from collectives.schedule import Copy, Notify, Read, ReadReduce, Wait, Write

LANES = 16


class Wrong(Exception):
    """The mutant may do what its collective does not allow; the text says what."""


def touched(rank, step):
    """What a step reads and writes: sets of (owner, chunk)."""
    reads, writes = set(), set()
    if isinstance(step, Copy):
        return {(rank, step.source)}, {(rank, step.to)}
    for chunk in step.chunks:
        if isinstance(step, Write):
            reads.add((rank, chunk))
            writes |= {(peer, chunk) for peer in step.peers}
        else:
            reads |= {(peer, chunk) for peer in peers_of(step)}
            reads |= {(rank, chunk)} if isinstance(step, ReadReduce) else set()
            writes.add((rank, chunk))
    return reads, writes


class Crowd:
    """Ranks that run through their schedules, notifies having all the room they want."""

    def __init__(self, schedules):
        self.schedules = schedules
        self.at = [0] * len(schedules)
        self.notifies = Counter()
        self.reached_for = []  # ranks that are being asked to go on, to see circles

    def ended(self, rank):
        return self.at[rank] == len(self.schedules[rank])

    def next(self, rank):
        return None if self.ended(rank) else self.schedules[rank][self.at[rank]]

    def can(self, rank):
        step = self.next(rank)
        if step is None:
            return False
        return not isinstance(step, Wait) or all(self.notifies[p, rank] for p in step.peers)

    def go(self, rank):
        step = self.next(rank)
        if isinstance(step, Notify):
            self.notifies.update((rank, peer) for peer in step.peers)
        elif isinstance(step, Wait):
            self.notifies.subtract((peer, rank) for peer in step.peers)
        self.at[rank] += 1

    def bring(self, rank, place):
        """Bring `rank` to a step, others only as far as that needs; whether it gets there."""
        if rank in self.reached_for:
            return False
        self.reached_for.append(rank)
        while self.at[rank] < place:
            while not self.can(rank):
                lacking = next(p for p in self.next(rank).peers if not self.notifies[p, rank])
                if self.ended(lacking) or not self.bring(lacking, self.at[lacking] + 1):
                    self.reached_for.pop()
                    return False
            self.go(rank)
        self.reached_for.pop()
        return True


def hold_up(schedules, held, place):
    """Hold `held` up in a step (-1: before its first); see what the others do meanwhile.

    Raises:
        Wrong: what they may not.
    """
    crowd = Crowd(schedules)
    if not crowd.bring(held, max(place, 0)):
        return
    step = schedules[held][place] if place >= 0 else None
    reads, writes = (set(), set()) if step is None else touched(held, step)
    users = {owner for owner, _ in reads | writes} - {held}
    moved = True
    while moved:
        moved = False
        for rank in range(len(schedules)):
            while rank != held and crowd.can(rank):
                seen, changed = touched(rank, crowd.next(rank))
                if changed & (reads | writes) or seen & writes:
                    raise Wrong(f"rank {rank} at {crowd.at[rank]} races rank {held} at {place}")
                if step is None and held in {owner for owner, _ in seen | changed}:
                    raise Wrong(f"rank {rank} uses memory of rank {held}, which is not there")
                crowd.go(rank)
                moved = True
    for owner in users:
        if crowd.ended(owner):
            raise Wrong(f"rank {owner} has left while rank {held} is at {place}")


def run_on_numbers(algo, schedules, root, seed):
    """Run the schedules, ranks taking turns at random.

    Raises:
        Wrong: they dead-lock, or end with what the collective does not demand.
    """
    size, random_ = len(schedules), np.random.default_rng(seed)
    spec, count = algo.spec, algo.chunk_count(len(schedules))
    floats = random_.standard_normal((size, count, LANES)).astype(np.float32)
    floats *= np.float32(2) ** random_.integers(-12, 13, (size, count, LANES)).astype(np.float32)
    marks = random_.integers(1, 1 << 62, (size, count), dtype=np.uint64)
    memory = {}
    for rank in range(size):
        for chunk in spec.inputs(rank, size, root, count):
            memory[rank, chunk] = (marks[rank, chunk], floats[rank, chunk])
    notified, at, turns = set(), [0] * size, random.Random(seed)

    def value(owner, chunk):
        if (owner, chunk) not in memory:
            raise Wrong(f"rank {owner} does not hold chunk {chunk}")
        return memory[owner, chunk]

    def try_step(rank):
        step = schedules[rank][at[rank]]
        if isinstance(step, Notify):
            if any((rank, peer) in notified for peer in step.peers):
                return False
            notified.update((rank, peer) for peer in step.peers)
        elif isinstance(step, Wait):
            if not all((peer, rank) in notified for peer in step.peers):
                return False
            notified.difference_update((peer, rank) for peer in step.peers)
        elif isinstance(step, Copy):
            memory[rank, step.to] = value(rank, step.source)
        elif isinstance(step, ReadReduce) and not spec.reduces:
            raise Wrong("a reduction in a collective that does not reduce")
        else:
            for chunk in step.chunks:
                if isinstance(step, Write):
                    memory.update({(peer, chunk): value(rank, chunk) for peer in step.peers})
                elif isinstance(step, Read):
                    memory[rank, chunk] = value(step.peer, chunk)
                else:
                    owners = sorted((rank, *step.peers))
                    memory[rank, chunk] = total([value(owner, chunk) for owner in owners])
        at[rank] += 1
        return True

    while any(at[rank] < len(schedules[rank]) for rank in range(size)):
        order = [rank for rank in range(size) if at[rank] < len(schedules[rank])]
        turns.shuffle(order)
        if not any(try_step(rank) for rank in order):
            raise Wrong("nobody can go on")
    if notified:
        raise Wrong("a notify is never waited for")
    for rank in range(size):
        for chunk in spec.outputs(rank, size, root, count):
            mark, floating = memory.get((rank, chunk), (None, None))
            origins = spec.contributors(chunk, size, root)
            if mark is None or mark != np.sum([marks[r, chunk] for r in origins], dtype=np.uint64):
                raise Wrong(f"chunk {chunk} on rank {rank}")
            for other in range(rank):
                shared = chunk in spec.outputs(other, size, root, count)
                if shared and memory[other, chunk][1].tobytes() != floating.tobytes():
                    raise Wrong(f"ranks {other} and {rank} differ in bits of chunk {chunk}")


def total(values):
    """All values as one pass makes them: in the order given, rounded once, at the end."""
    mark, floating = values[0]
    wide = floating.astype(np.float64)
    for more_mark, more_floating in values[1:]:
        with np.errstate(over="ignore"):
            mark = mark + more_mark
        wide = wide + more_floating
    return mark, wide.astype(np.float32)


def find_wrong(algo, schedules, root, seed=1):
    """What is wrong with schedules, or None."""
    try:
        run_on_numbers(algo, schedules, root, seed)
        for rank, steps in enumerate(schedules):
            for place in range(-1, len(steps)):
                hold_up(schedules, rank, place)
    except Wrong as why:
        return why
    return None
