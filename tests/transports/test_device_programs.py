"""Programs of streams, on the emulated device: every algorithm, whatever the streams' order."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from harness.references import contribution, expected
from harness.streams import Streams, reduction_of

from collectives.catalogue import CATALOGUE
from transports.cuda_ipc.device import State
from transports.cuda_ipc.program import Fold, Order

ALGORITHMS = {f"{a.collective} {a.name}": a for a in dict.fromkeys(CATALOGUE.values())}
TAKES_A_MATRIX = ("reduce_scatter", "scatter", "alltoall")


def check(streams, algo, count, root=0, op="sum", dtype="float32", rounds=1):
    size, collective = streams.size, algo.collective
    dtype = np.dtype(dtype)
    shape = (size, count) if collective in TAKES_A_MATRIX else (count,)
    calls = []
    for turn in range(rounds):
        inputs = [
            contribution(rank + turn, int(np.prod(shape)), dtype, op).reshape(shape)
            for rank in range(size)
        ]
        reduction = reduction_of(dtype.name, op) if algo.spec.reduces else None
        given, taken = streams.run(algo, inputs, root, count, reduction)
        calls.append((inputs, given, taken))
    streams.finish()
    for inputs, given, taken in calls:
        for rank in range(size):
            wanted = expected(collective, inputs, rank, root, op)
            if wanted is not None:
                assert np.array_equal(taken[rank][1], wanted.ravel()), (rank, count, root)
            mine = given[rank][1]
            assert np.array_equal(mine, inputs[rank].ravel()[: mine.size]), "the input was changed"


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_every_algorithm(algo, full):
    for size in (1, 2, 3, 4, 5, 8) if full else (1, 2, 3, 5):
        if not algo.allows(size):
            continue
        for slots, slot_bytes in ((2, 256), (4, 1024)):
            streams = Streams(size, slots, slot_bytes, seed=size)
            try:
                if algo.spec.chunking == "empty":
                    streams.run(algo, [np.zeros(0, np.float32)] * size, 0, 0)
                    streams.finish()
                    continue
                for count in (0, 1, 7, 300):
                    root = count % size if algo.spec.rooted else 0
                    check(streams, algo, count, root)
            finally:
                streams.close()


@pytest.mark.parametrize("op", ["sum", "prod", "min", "max", "avg"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_operations(op, dtype):
    streams = Streams(3, 2, 256)
    try:
        for name in ("ring", "one_sided", "recursive_doubling"):
            check(streams, CATALOGUE["allreduce", name], 100, op=op, dtype=dtype)
    finally:
        streams.close()


@pytest.mark.parametrize("name", ["ring", "tree", "halving_doubling", "one_sided"])
def test_calls_follow_each_other(name):
    """Nothing is waited for between calls: slots and flags are all that keeps them apart."""
    for seed in range(3):
        streams = Streams(4, 2, 256, seed=seed)
        try:
            check(streams, CATALOGUE["allreduce", name], 500, rounds=4)
        finally:
            streams.close()


# --- faults planted in programs: the emulated device has to show each of them


def without(waits, state):
    """No wait for a state, or no setting of it."""

    def change(operations):
        for each in operations:
            if isinstance(each, Order):
                kept = tuple(s for s in each.signals if not (s.waits == waits and s.state == state))
                each = Order(kept)
            yield each

    return change


def early(state):
    """A flag is set before the fold that it tells of, or that it allows to be written over."""

    def change(operations):
        operations = list(operations)
        for index, each in enumerate(operations):
            if isinstance(each, Order) and index and isinstance(operations[index - 1], Fold):
                moved = tuple(s for s in each.signals if not s.waits and s.state == state)
                if not moved:
                    continue
                rest = tuple(s for s in each.signals if s not in moved)
                operations[index - 1 : index + 1] = [
                    Order(moved),
                    operations[index - 1],
                    Order(rest),
                ]
                break
        return operations

    return change


FAULTS = {
    "nobody waits for messages": without(True, State.FULL),
    "nobody waits for room": without(True, State.EMPTY),
    "messages are not told of": without(False, State.FULL),
    "room is never given back": without(False, State.EMPTY),
    "told before it is there": early(State.FULL),
    "given back before it is read": early(State.EMPTY),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault):
    """With some seed at least: results are wrong, or the streams stand still."""

    def plant(programs):
        return [
            replace(program, operations=tuple(FAULTS[fault](program.operations)))
            for program in programs
        ]

    algo, count, size = CATALOGUE["allreduce", "ring"], 3000, 3
    for seed in range(30):
        streams = Streams(size, 2, 4096, seed=seed)
        try:
            inputs = [[contribution(rank + turn, count, "float32") for rank in range(size)]
                      for turn in range(4)]  # fmt: skip
            calls = [
                streams.run(algo, given, 0, count, reduction_of("float32", "sum"), mutate=plant)
                for given in inputs
            ]
            deadline = time.monotonic() + 1.0
            while not all(streams.device.is_idle(engine.stream) for engine in streams.engines):
                if time.monotonic() > deadline:
                    return  # they stand still
                time.sleep(0.002)
            for given, (_, taken) in zip(inputs, calls, strict=True):
                if any(not np.array_equal(each[1], sum(given)) for each in taken):
                    return
        finally:
            streams.close()
    pytest.fail(f"no seed has shown that {fault}")


@pytest.mark.parametrize("follows", [True, False])
def test_a_call_follows_what_the_caller_has_on_its_stream(follows, monkeypatch):
    """What is on the caller's stream comes late; without the order between the streams it shows."""
    algo, size, count = CATALOGUE["allreduce", "one_shot"], 2, 200
    wrong = 0
    for seed in range(5):
        streams = Streams(size, 2, 1024, seed=seed)
        device = streams.device
        if not follows:
            monkeypatch.setattr(device, "follow", lambda stream, mark: None)
        try:
            callers = [device.new_stream() for _ in range(size)]
            inputs = [contribution(rank, count, "float32") for rank in range(size)]

            def late(memory, values):
                time.sleep(0.01)
                memory[:] = values

            def after(rank, memory, callers=callers, inputs=inputs, device=device):
                device._streams[callers[rank]].put(partial(late, memory, inputs[rank]))
                return callers[rank]

            zeros = [np.zeros_like(x) for x in inputs]
            reduction = reduction_of("float32", "sum")
            _, taken = streams.run(algo, zeros, 0, count, reduction, after=after)
            streams.finish()
            wrong += any(not np.array_equal(each[1], sum(inputs)) for each in taken)
        finally:
            streams.close()
    assert (wrong == 0) == follows
