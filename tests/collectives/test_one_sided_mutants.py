"""Broken one-sided schedules are refused: none that may do wrong passes, none that is right fails.

Whether a mutant does wrong is decided by `harness.holding_up`, in another way than the proof does.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from harness.holding_up import find_wrong

from collectives.catalogue import CATALOGUE, REACHING
from collectives.proof import ProofError
from collectives.proof.verification import verify_schedules
from collectives.rounds import peers_of
from collectives.schedule import (
    Copy,
    Notify,
    Read,
    ReadReduce,
    Wait,
    Write,
    algorithm,
    notify,
    read,
    read_reduce,
    wait,
    write,
)

ALGORITHMS = {
    f"{a.collective} {a.name}": a for a in (*CATALOGUE.values(), *REACHING.values()) if a.one_sided
}
SIZES = (2, 3, 4, 5)


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
    if isinstance(step, Read):
        step = replace(step, peer=peer)
    elif len(step.peers) > 1 and dice.random() < 0.5:
        step = replace(step, peers=step.peers[:-1])
    else:
        step = replace(step, peers=tuple(dict.fromkeys((peer, *step.peers[1:]))))
    return (*steps[:place], step, *steps[place + 1 :])


def other_chunk(steps, place, dice, size, count):
    moving = [i for i, step in enumerate(steps) if step.chunks]
    if not moving:
        return steps
    place = dice.choice(moving)
    changed = replace(steps[place], chunks=(dice.randrange(count),))
    return (*steps[:place], changed, *steps[place + 1 :])


def other_kind(steps, place, dice, size, count):
    """A read where it was a write, a write where it was a read, a wait where it was a notify."""
    step = steps[place]
    if isinstance(step, Notify | Wait):
        step = (Wait if isinstance(step, Notify) else Notify)(step.peers)
    else:
        kind = dice.choice((Read, ReadReduce, Write))
        step = kind(peers_of(step)[0] if kind is Read else peers_of(step), step.chunks)
    return (*steps[:place], step, *steps[place + 1 :])


def overwrite(steps, place, dice, size, count):
    return (*steps[:place], Copy(dice.randrange(count), dice.randrange(count)), *steps[place:])


def unsaid(steps, place, dice, size, count):
    """A notify, or a wait, for one peer fewer or not at all."""
    said = [i for i, step in enumerate(steps) if isinstance(step, Notify | Wait)]
    if not said:
        return steps
    place = dice.choice(said)
    fewer = tuple(dice.sample(steps[place].peers, len(steps[place].peers) - 1))
    left = (replace(steps[place], peers=fewer),) if fewer else ()
    return (*steps[:place], *left, *steps[place + 1 :])


def singly(steps, place, dice, size, count):
    """A step with several peers becomes several steps: the same, or the same in another order."""
    step = steps[place]
    if isinstance(step, Read):
        return steps
    peers = dice.sample(step.peers, len(step.peers))
    return (*steps[:place], *(replace(step, peers=(p,)) for p in peers), *steps[place + 1 :])


ONE_RANK = (
    *(drop, double, swap, move, redirect, other_chunk, other_kind, overwrite, unsaid, singly),
)  # fmt: skip


def mute(schedules, dice):
    """A notify and the wait for it left out, on both sides, so that nothing dead-locks."""
    pairs = [
        (rank, place, peer)
        for rank, steps in enumerate(schedules)
        for place, step in enumerate(steps)
        if isinstance(step, Notify)
        for peer in step.peers
    ]
    rank, place, peer = dice.choice(pairs)
    earlier = schedules[rank][:place]
    number = sum(isinstance(step, Notify) and peer in step.peers for step in earlier)
    waits = [i for i, s in enumerate(schedules[peer]) if isinstance(s, Wait) and rank in s.peers]
    changed = list(schedules)
    changed[rank] = without(schedules[rank], place, peer)
    changed[peer] = without(schedules[peer], waits[number], rank)
    return f"mute the notify of rank {rank} at {place} to rank {peer}", changed


def without(steps, place, peer):
    left = tuple(each for each in steps[place].peers if each != peer)
    rest = (replace(steps[place], peers=left),) if left else ()
    return (*steps[:place], *rest, *steps[place + 1 :])


def mutants(algo, size, seed, rounds):
    """(what was done, schedules, root)."""
    dice = random.Random(f"{algo.collective} {algo.name} {size} {seed}")
    for _ in range(rounds):
        root = dice.randrange(size) if algo.spec.rooted else 0
        true = [algo.schedule(rank, size, root) for rank in range(size)]
        yield *mute(true, dice), root
        for mutate in ONE_RANK:
            rank = dice.choice([r for r in range(size) if true[r]])
            place = dice.randrange(len(true[rank]))
            changed = mutate(true[rank], place, dice, size, algo.chunk_count(size))
            if changed == true[rank] or any(rank in peers_of(step) for step in changed):
                continue
            schedules = [changed if r == rank else true[r] for r in range(size)]
            yield f"{mutate.__name__} rank {rank} step {place}", schedules, root


def check_mutant(algo, what, schedules, root):
    """Whether the proof accepts it, which must be what is found here."""
    try:
        verify_schedules(algo, schedules, root)
        accepted = True
    except ProofError:
        accepted = False
    wrong = find_wrong(algo, schedules, root)
    assert not (accepted and wrong), f"size {len(schedules)}, root {root}, {what}: {wrong}"
    assert accepted or wrong, f"size {len(schedules)}, root {root}, {what}: refused, yet right"
    return accepted


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_a_mutant_passes_only_if_it_does_right(algo, full):
    fate = Counter()
    for size in SIZES:
        for what, schedules, root in mutants(algo, size, seed=0, rounds=60 if full else 12):
            fate[check_mutant(algo, what, schedules, root)] += 1
    assert fate[False] > 100 and fate[True] > 0, fate


@algorithm("allreduce", one_sided=True)
def passed_on(rank, size):
    """Each rank adds what its left neighbour has made; then the sum goes the same way by writes."""
    left, right = (rank - 1) % size, (rank + 1) % size
    if rank > 0:
        yield wait(left)
        yield read_reduce(left, 0)
    if rank < size - 1:
        yield notify(right)
    if rank == size - 1 and size > 1:
        yield write(range(size - 1), 0)
        yield notify(range(size - 1))
    elif size > 1:
        yield wait(size - 1)


@algorithm("broadcast", one_sided=True, chunks=2)
def in_a_chain(rank, size, root):
    """A chain of reads: order, entry and end are known through others only."""
    place = (rank - root) % size
    before, after = (rank - 1) % size, (rank + 1) % size
    if place > 0:
        yield wait(before)
        yield read(before, 1)
        yield read(before, 0)
    if place < size - 1:
        yield notify(after)
        yield wait(after)
    if place > 0:
        yield notify(before)


@pytest.mark.parametrize("algo", [passed_on, in_a_chain], ids=lambda algo: algo.name)
def test_where_order_goes_through_others(algo, full):
    fate = Counter()
    for size in (2, 3, 4):
        for what, schedules, root in mutants(algo, size, seed=0, rounds=60 if full else 15):
            fate[check_mutant(algo, what, schedules, root)] += 1
    assert fate[False] > 100, fate


@pytest.mark.parametrize("algo", [*ALGORITHMS.values(), passed_on, in_a_chain],
                         ids=[*ALGORITHMS, "passed_on", "in_a_chain"])  # fmt: skip
def test_the_algorithms_themselves_do_right(algo):
    for size in (1, 2, 3, 4, 5, 8):
        for root in range(size) if algo.spec.rooted else (0,):
            schedules = [algo.schedule(rank, size, root) for rank in range(size)]
            for seed in range(3):
                assert find_wrong(algo, schedules, root, seed) is None
            verify_schedules(algo, schedules, root)


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


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_every_muted_notify_is_found(algo):
    # Order may come through others: where each notifies all twice, one notify may be one too many.
    missed = 0
    for size in (2, 3):
        true = [algo.schedule(rank, size, 0) for rank in range(size)]
        for seed in range(40):
            what, schedules = mute(true, random.Random(seed))
            missed += check_mutant(algo, what, schedules, 0)
    assert missed == 0
