"""Broken schedules are refused: none that does wrong passes the proof, none that does right fails.

Thousands of mutants: a step of a catalogued algorithm dropped, doubled, swapped, sent elsewhere,
given another chunk, reduced where it was received. Whether a mutant does wrong is decided here by
running it on numbers, in another way than the proof does: every chunk is a vector of float32 (whose
bits tell one order of adding from another) beside a random whole number a contribution.
One-sided algorithms are tested so in test_one_sided_mutants.py.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from collectives.catalogue import CATALOGUE
from collectives.proof import ProofError
from collectives.proof.verification import verify_schedules
from collectives.schedule import Copy, Recv, RecvReduce, Send

ALGORITHMS = {f"{a.collective} {a.name}": a for a in CATALOGUE.values() if not a.one_sided}
SIZES = (2, 3, 4, 5, 6, 8)
LANES = 24


class Wrong(Exception):
    """The mutant does not do what its collective demands; the text says why."""


def run_on_numbers(algo, schedules, root, seed):
    """Run the schedules with one slot a rank, ranks taking turns at random.

    Raises:
        Wrong: in whatever way.
    """
    size, random_ = len(schedules), np.random.default_rng(seed)
    spec, count = algo.spec, algo.chunk_count(len(schedules))
    barrier = spec.chunking == "empty"
    marks = random_.integers(1, 1 << 62, (size, count), dtype=np.uint64)
    # Of very different magnitudes, so that another order of adding rounds otherwise.
    floats = random_.standard_normal((size, count, LANES)).astype(np.float32)
    floats *= np.float32(2) ** random_.integers(-12, 13, (size, count, LANES)).astype(np.float32)
    held = []
    for rank in range(size):
        chunks = [0] if barrier else spec.inputs(rank, size, root, count)
        held.append({c: ({rank}, marks[rank, c], floats[rank, c]) for c in chunks})
    mailbox = {}  # (from, to): messages as (chunks, values)
    untaken = [set() for _ in range(size)]
    at = [0] * size
    turns = random.Random(seed)

    def value(rank, chunk):
        if chunk not in held[rank]:
            raise Wrong(f"rank {rank} reads chunk {chunk}, which it has not")
        return held[rank][chunk]

    def try_step(rank):
        step = schedules[rank][at[rank]]
        if isinstance(step, Send):
            if untaken[rank]:
                return False
            message = (step.chunks, [value(rank, chunk) for chunk in step.chunks])
            for peer in step.peers:
                mailbox.setdefault((rank, peer), []).append(message)
            untaken[rank] = set(step.peers)
        elif isinstance(step, Copy):
            held[rank][step.to] = value(rank, step.source)
        else:
            if isinstance(step, RecvReduce) and not spec.reduces:
                raise Wrong("a reduction in a collective that does not reduce")
            sources = step.peers if isinstance(step, RecvReduce) else (step.peer,)
            if not all(mailbox.get((peer, rank)) for peer in sources):
                return False
            taken = {}
            for peer in sources:
                chunks, values = mailbox[peer, rank].pop(0)
                untaken[peer].discard(rank)
                if chunks != step.chunks:
                    raise Wrong(f"rank {rank} gets chunks {chunks}, not {step.chunks}")
                taken[peer] = values
            for place, chunk in enumerate(step.chunks):
                operands = {peer: values[place] for peer, values in taken.items()}
                if isinstance(step, RecvReduce) or barrier:
                    operands[rank] = value(rank, chunk)
                held[rank][chunk] = total([operands[r] for r in sorted(operands)])
        at[rank] += 1
        return True

    while any(at[rank] < len(schedules[rank]) for rank in range(size)):
        order = [rank for rank in range(size) if at[rank] < len(schedules[rank])]
        turns.shuffle(order)
        if not any(try_step(rank) for rank in order):
            raise Wrong("nobody can go on")
    if any(mailbox.values()):
        raise Wrong("a message is never taken")

    for rank in range(size):
        if barrier:
            if held[rank][0][0] != set(range(size)):
                raise Wrong(f"rank {rank} has not heard from all")
            continue
        for chunk in spec.outputs(rank, size, root, count):
            _, mark, floating = held[rank].get(chunk, (None, None, None))
            origins = spec.contributors(chunk, size, root)
            wanted = np.sum([marks[r, chunk] for r in origins], dtype=np.uint64)
            if mark is None or mark != wanted:
                raise Wrong(f"chunk {chunk} on rank {rank}")
            for other in range(rank):
                shared = chunk in spec.outputs(other, size, root, count)
                if shared and held[other][chunk][2].tobytes() != floating.tobytes():
                    raise Wrong(f"ranks {other} and {rank} differ in bits of chunk {chunk}")


def total(values):
    """All values as one pass makes them: in the order given, rounded once, at the end."""
    heard, mark, floating = values[0]
    wide = floating.astype(np.float64)
    for more_heard, more_mark, more_floating in values[1:]:
        heard = heard | more_heard
        with np.errstate(over="ignore"):
            mark = mark + more_mark
        wide = wide + more_floating
    return heard, mark, wide.astype(np.float32)


def drop(steps, place, dice, size, count):
    return steps[:place] + steps[place + 1 :]


def double(steps, place, dice, size, count):
    return steps[: place + 1] + steps[place:]


def swap(steps, place, dice, size, count):
    other = dice.randrange(len(steps))
    changed = list(steps)
    changed[place], changed[other] = changed[other], changed[place]
    return tuple(changed)


def move(steps, place, dice, size, count):
    rest = list(steps[:place] + steps[place + 1 :])
    rest.insert(dice.randrange(len(steps)), steps[place])
    return tuple(rest)


def redirect(steps, place, dice, size, count):
    step = steps[place]
    peer = dice.randrange(size)
    if isinstance(step, Recv):
        step = replace(step, peer=peer)
    elif len(step.peers) > 1 and dice.random() < 0.5:
        step = replace(step, peers=step.peers[:-1])
    else:
        step = replace(step, peers=tuple(dict.fromkeys((peer, *step.peers[1:]))))
    return (*steps[:place], step, *steps[place + 1 :])


def other_chunk(steps, place, dice, size, count):
    chunks = list(steps[place].chunks)
    if len(chunks) > 1 and dice.random() < 0.5:
        dice.shuffle(chunks)
    else:
        chunks[dice.randrange(len(chunks))] = dice.randrange(count)
    chunks = tuple(dict.fromkeys(chunks))
    return (*steps[:place], replace(steps[place], chunks=chunks), *steps[place + 1 :])


def other_receive(steps, place, dice, size, count):
    step = steps[place]
    if isinstance(step, Recv):
        step = RecvReduce((step.peer,), step.chunks)
    elif isinstance(step, RecvReduce):
        step = Recv(step.peers[0], step.chunks)
    return (*steps[:place], step, *steps[place + 1 :])


def split(steps, place, dice, size, count):
    """A reduction from several peers becomes several: the same sum, in another order."""
    several = [i for i, s in enumerate(steps) if isinstance(s, RecvReduce) and len(s.peers) > 1]
    if not several:
        return steps
    place = dice.choice(several)
    peers = dice.sample(steps[place].peers, len(steps[place].peers))
    singly = tuple(RecvReduce((peer,), steps[place].chunks) for peer in peers)
    return (*steps[:place], *singly, *steps[place + 1 :])


def overwrite(steps, place, dice, size, count):
    extra = Copy(dice.randrange(count), dice.randrange(count))
    return (*steps[:place], extra, *steps[place:])


def both(steps, place, dice, size, count):
    changed = redirect(steps, place, dice, size, count)
    return swap(changed, dice.randrange(len(changed)), dice, size, count)


MUTATIONS = (drop, double, swap, move, redirect, other_chunk, other_receive, split, overwrite, both)


def mutants(algo, size, seed, rounds):
    """(what was done, schedules, root), each differing from the algorithm in one rank."""
    dice = random.Random(f"{algo.collective} {algo.name} {size} {seed}")
    for _ in range(rounds):
        root = dice.randrange(size) if algo.spec.rooted else 0
        true = [algo.schedule(rank, size, root) for rank in range(size)]
        for mutate in MUTATIONS:
            rank = dice.choice([r for r in range(size) if true[r]])
            place = dice.randrange(len(true[rank]))
            changed = mutate(true[rank], place, dice, size, algo.chunk_count(size))
            if changed == true[rank] or any(rank in peers_of(step) for step in changed):
                continue
            schedules = [changed if r == rank else true[r] for r in range(size)]
            yield f"{mutate.__name__} rank {rank} step {place}", schedules, root


def peers_of(step):
    if isinstance(step, Recv):
        return (step.peer,)
    return () if isinstance(step, Copy) else step.peers


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_a_mutant_passes_only_if_it_does_right(algo, full):
    fate = Counter()
    for size in SIZES:
        for what, schedules, root in mutants(algo, size, seed=0, rounds=40 if full else 12):
            try:
                verify_schedules(algo, schedules, root)
                accepted = True
            except ProofError:
                accepted = False
            try:
                run_on_numbers(algo, schedules, root, seed=1)
                wrong = None
            except Wrong as why:
                wrong = why
            assert not (accepted and wrong), f"size {size}, root {root}, {what}: {wrong}"
            assert accepted or wrong, f"size {size}, root {root}, {what}: refused, yet does right"
            fate[accepted] += 1
    assert fate[False] > 50, fate


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_the_algorithms_themselves_do_right_on_numbers(algo):
    for size in (1, *SIZES, 7, 9):
        for root in range(size) if algo.spec.rooted else (0,):
            schedules = [algo.schedule(rank, size, root) for rank in range(size)]
            run_on_numbers(algo, schedules, root, seed=size)


def test_every_dropped_step_is_found():
    # A step that could be left out would be waste.
    for algo in ALGORITHMS.values():
        for size in (2, 3, 5):
            true = [algo.schedule(rank, size, 0) for rank in range(size)]
            for rank in range(size):
                for place in range(len(true[rank])):
                    schedules = list(true)
                    schedules[rank] = drop(true[rank], place, None, size, 0)
                    with pytest.raises(ProofError):
                        verify_schedules(algo, schedules, 0)


def test_the_same_sum_in_another_order_is_told_by_its_bits_alone():
    # Every contribution is there once; only the order of adding is another on one rank.
    algo = ALGORITHMS["allreduce one_shot"]
    schedules = [algo.schedule(rank, 4) for rank in range(4)]
    schedules[2] = split(schedules[2], 0, random.Random(0), 4, 1)
    with pytest.raises(Wrong, match="ranks 0 and 2 differ in bits"):
        run_on_numbers(algo, schedules, 0, seed=1)
    with pytest.raises(ProofError, match=r"rank 2, chunk 0: .* as on rank 0"):
        verify_schedules(algo, schedules, 0)
