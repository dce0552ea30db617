"""One-sided plans run by the readable engine: any order of events, any lengths, in place or not.

That every algorithm gives what numpy gives is tested with all others in test_python_engine.py.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectives.catalogue import CATALOGUE, REACHING, find
from collectives.lowering import lower
from collectives.schedule import algorithm, notify, read, wait
from transports.errors import MismatchError
from transports.plan import Layout, Space
from transports.python_engine import Stuck, connected_channels, execute, run_together

ALGORITHMS = {
    f"{a.collective} {a.name}": a for a in (*CATALOGUE.values(), *REACHING.values()) if a.one_sided
}
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16)


def contribution(rank, chunk, length):
    return (np.arange(length) * 3 + chunk * 5 + rank * 7) % 101


def prepared(algo, size, root, lengths, in_place, fingerprints=None):
    """Executions of all ranks, what they were given, and where they leave their results."""
    plans = [lower(algo, rank, size, root) for rank in range(size)]
    channels = connected_channels(size)
    memory, executions, given_arrays = {}, [], []
    for rank, plan in enumerate(plans):
        parts = [contribution(rank, c, lengths[c]) for c in plan.inputs]
        source = np.concatenate([np.zeros(0, int), *parts])
        result = np.full(sum(lengths[c] for c in plan.outputs), -1)
        if in_place and plan.inputs == plan.outputs:
            result = source
        given_arrays.append((source.copy(), source, result))
        memory[rank] = {Space.INPUT: source, Space.OUTPUT: result}
    for rank, plan in enumerate(plans):
        seen = {peer: {s: memory[peer][s] for s in plan.remote} for peer in memory if peer != rank}
        execution = execute(
            plan,
            Layout(plan, lengths, 1),
            channels[rank],
            memory[rank][Space.INPUT],
            memory[rank][Space.OUTPUT],
            "sum" if algo.spec.reduces else None,
            fingerprints[rank] if fingerprints else 7,
            seen,
        )
        executions.append(execution)
    return executions, given_arrays


def check_results(algo, root, lengths, given_arrays):
    size = len(given_arrays)
    for rank, (before, source, result) in enumerate(given_arrays):
        wanted = [np.zeros(0, int)]
        for chunk in algo.spec.outputs(rank, size, root, len(lengths)):
            origins = algo.spec.contributors(chunk, size, root)
            wanted.append(sum(contribution(r, chunk, lengths[chunk]) for r in origins))
        np.testing.assert_array_equal(result, np.concatenate(wanted))
        if result is not source:
            np.testing.assert_array_equal(source, before)


def interleave(executions, dice):
    """Give turns to whom the dice say: a rank may get many in a row, or none for long."""
    active = dict(enumerate(executions))
    while active:
        rank = dice.choice(list(active))
        for _ in range(dice.choice((1, 1, 2, 5, 50))):
            if next(active[rank], None) is None:
                del active[rank]
                break


def lengths_of(algo, size, dice, longest):
    return [dice.randrange(longest + 1) for _ in range(algo.chunk_count(size))]


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_any_order_of_events(algo, full):
    dice = random.Random(algo.collective)
    for size in SIZES:
        for _ in range(30 if full else 4):
            root = dice.randrange(size) if algo.spec.rooted else 0
            lengths = lengths_of(algo, size, dice, 7)
            executions, arrays = prepared(algo, size, root, lengths, dice.random() < 0.5)
            interleave(executions, dice)
            check_results(algo, root, lengths, arrays)


@given(data=st.data())
def test_any_lengths_sizes_and_roots(data):
    algo = data.draw(st.sampled_from(list(ALGORITHMS.values())), label="algorithm")
    size = data.draw(st.integers(1, 6), label="size")
    count = algo.chunk_count(size)
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    root = data.draw(st.integers(0, size - 1), label="root") if algo.spec.rooted else 0
    in_place = data.draw(st.booleans(), label="in place")
    executions, arrays = prepared(algo, size, root, lengths, in_place)
    interleave(executions, random.Random(data.draw(st.integers(0, 999), label="seed")))
    check_results(algo, root, lengths, arrays)


def test_nothing_but_what_the_plan_names_is_reached_into():
    # `prepared` hands over no more memory than `remote` says, so a plan that needs more fails.
    plan = lower(find("allgather", "one_sided"), 0, 2)
    layout = Layout(plan, [1, 1], 1)
    channels = connected_channels(2)
    run = execute(plan, layout, channels[0], np.ones(1, int), np.zeros(2, int))
    channels[1].notify((0,), 0)
    with pytest.raises(KeyError):
        list(run)


def test_a_notify_of_another_call_is_refused():
    algo = find("allgather", "one_sided")
    executions, _ = prepared(algo, 2, 0, [1, 1], False, fingerprints=[7, 8])
    with pytest.raises(MismatchError, match="of call 8 from rank 0, found 0 of call 7"):
        run_together(executions)


def test_a_notify_needs_no_slot_but_room():
    first, second = connected_channels(2)
    for _ in range(2):
        first.post((1,), np.zeros(1), 7)
    assert not first.slot_is_free() and not first.can_notify((1,))
    for _ in range(2):
        second.release(0)
    assert first.can_notify((1,))
    first.notify((1,), 7)
    assert first.slot_is_free() and not first.can_notify((1,))
    assert second.take(0).payload.size == 0
    second.release(0)
    assert first.can_notify((1,))


def test_a_notify_that_never_comes_is_told():
    @algorithm("allgather", one_sided=True)
    def patient(rank, size):
        yield notify(1 - rank)
        yield wait(1 - rank)
        yield read(1 - rank, 1 - rank)
        yield notify(1 - rank)
        yield wait(1 - rank)

    executions, _ = prepared(patient, 2, 0, [1, 1], False)
    with pytest.raises(Stuck, match="rank 0 waits for a message from rank 1"):
        run_together([executions[0]])
