"""Random one-sided programs: proof and oracle agree on each, and those that hold do what they say.

A program is made in one order of events, in which every wait comes after its notify, so it never
dead-locks; whether its accesses are in order is chance. What the ranks hold at the end is compared
with the events done one after the other: that is what lowering and the engine must keep.
"""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
from harness.holding_up import Wrong, hold_up

from collectives.lowering import lower
from collectives.proof import ProofError
from collectives.proof.verification import run_one_sided
from collectives.schedule import algorithm, copy, notify, read, read_reduce, wait, write
from transports.plan import Layout, Space
from transports.python_engine import connected_channels, execute

LENGTH = 3


def program(dice):
    """(events in order: rank and step, number of ranks, number of chunks)."""
    size, chunks = dice.randrange(2, 5), dice.randrange(1, 4)
    events = []
    pending = []

    def tell(source, target):
        if (source, target) in pending:
            hear(source, target)
        events.append((source, notify(target)))
        pending.append((source, target))

    def hear(source, target):
        pending.remove((source, target))
        events.append((target, wait(source)))

    def meet():
        for source, target in [*pending]:
            hear(source, target)
        pairs = [(a, b) for a in range(size) for b in range(size) if a != b]
        for source, target in pairs:
            tell(source, target)
        for source, target in pairs:
            hear(source, target)

    if dice.random() < 0.9:
        meet()
    for _ in range(dice.randrange(1, 14)):
        rank = dice.randrange(size)
        others = [peer for peer in range(size) if peer != rank]
        some = dice.sample(others, dice.randrange(1, size))
        chunk = dice.sample(range(chunks), dice.randrange(1, chunks + 1))
        kind = dice.randrange(10)
        if kind < 4:
            tell(rank, some[0])
        elif kind < 7 and pending:
            hear(*dice.choice(pending))
        elif kind == 7:
            events.append((rank, read(some[0], chunk)))
        elif kind == 8:
            either = read_reduce(some, chunk), copy(chunk[0], chunk[-1])
            events.append((rank, dice.choice(either)))
        else:
            events.append((rank, write(some, chunk)))
            if dice.random() < 0.5:  # what lowering joins
                events.insert(-1, (rank, read_reduce(others, chunk)))
    if dice.random() < 0.9:
        meet()
    for source, target in [*pending]:
        hear(source, target)
    return events, size, chunks


def algorithm_of(events, chunks):
    @algorithm("allreduce", chunks=chunks, one_sided=True)
    def planted(rank, size):
        yield from (step for of, step in events if of == rank)

    return planted


def in_turn(events, start):
    """What the ranks hold after the events, one after the other: arrays by rank and chunk."""
    held = start.copy()
    for rank, step in events:
        kind, peers = step.kind.__name__, step.peers
        if kind == "Copy":
            held[rank, step.chunk] = held[rank, step.source]
        for chunk in step.chunk if kind in ("Read", "ReadReduce", "Write") else ():
            if kind == "Read":
                held[rank, chunk] = held[peers, chunk]
            elif kind == "Write":
                for peer in peers:
                    held[peer, chunk] = held[rank, chunk]
            else:
                held[rank, chunk] += sum(held[peer, chunk] for peer in peers)
    return held


def run_interleaved(algo, size, start, in_place, dice):
    """What the engine leaves in the ranks' outputs, ranks taking turns at random."""
    chunks = start.shape[1]
    lengths = [LENGTH] * chunks
    plans = [lower(algo, rank, size) for rank in range(size)]
    sources = [start[rank].ravel().copy() for rank in range(size)]
    results = sources if in_place else [np.full(chunks * LENGTH, -1) for _ in plans]
    both = {Space.INPUT: sources, Space.OUTPUT: results}
    memory = {
        rank: {space: both[space][rank] for space in plan.remote} for rank, plan in enumerate(plans)
    }
    channels = connected_channels(size)
    active = {
        rank: execute(plan, Layout(plan, lengths, 1), channels[rank], sources[rank], results[rank],
                      "sum", 0, memory)
        for rank, plan in enumerate(plans)
    }  # fmt: skip
    while active:
        rank = dice.choice(list(active))
        if next(active[rank], None) is None:
            del active[rank]
    if not in_place:
        assert all((sources[rank] == start[rank].ravel()).all() for rank in range(size))
    return np.array(results).reshape(start.shape)


def test_what_holds_runs_as_it_should_and_all_else_may_go_wrong(full):
    dice = random.Random(11)
    fate = Counter()
    for _ in range(6000 if full else 600):
        events, size, chunks = program(dice)

        planted = algorithm_of(events, chunks)
        schedules = [planted.schedule(rank, size) for rank in range(size)]
        try:
            run_one_sided(planted, schedules)
            holds = True
        except ProofError as error:
            assert "dead-lock" not in str(error)
            holds = False
        try:
            for rank, steps in enumerate(schedules):
                for place in range(-1, len(steps)):
                    hold_up(schedules, rank, place)
            wrong = None
        except Wrong as why:
            wrong = why
        assert holds == (wrong is None), f"{events}: {wrong}"
        fate[holds] += 1
        if holds:
            start = np.arange(size * chunks * LENGTH).reshape(size, chunks, LENGTH) % 17
            wanted = in_turn(events, start)
            for in_place in (False, True):
                found = run_interleaved(planted, size, start, in_place, dice)
                np.testing.assert_array_equal(found, wanted, err_msg=f"{events}")
    assert min(fate.values()) > 50, fate
