"""Every algorithm, run by the readable engine, gives what numpy gives by definition.

All ranks live in this process and are driven turn by turn, so sizes, segments and orders of events
that real processes hardly meet are tried by the thousand: with the fewest slots, of the smallest
length, chunks of every length.
"""

from __future__ import annotations

import random
from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectives.catalogue import CATALOGUE, find, names
from collectives.lowering import lower
from collectives.schedule import algorithm, recv, send
from transports.errors import MismatchError
from transports.plan import Layout, Space, split_evenly
from transports.python_engine import (
    OPERATIONS,
    Stuck,
    connected_channels,
    execute,
    run_together,
)

ALGORITHMS = {f"{a.collective} {a.name}": a for a in CATALOGUE.values()}
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16)
FLOATS = ("sum", "prod", "min", "max", "avg")
INTEGERS = ("sum", "prod", "min", "max", "band", "bor", "bxor", "land", "lor", "lxor")
KINDS = [
    *(("float32", op) for op in FLOATS),
    *(("float16", op) for op in FLOATS),
    ("float64", "sum"),
    *(("int8", op) for op in INTEGERS),
    *(("uint16", op) for op in INTEGERS),
    ("int64", "sum"),
    ("bool", "lor"),
    ("bool", "land"),
]


def values(rank, chunk, length, dtype, op):
    """What `rank` holds of `chunk`: small whole numbers, so that no order of adding rounds."""
    places = np.arange(length) * 3 + chunk * 5 + rank * 7
    if dtype == "bool":
        return places % 3 > 0
    if op == "prod":
        return np.where(places % 4 == rank % 4, 2, 1).astype(dtype)
    return (places % 11 + 1).astype(dtype)


def defined(algo, size, root, chunk, length, dtype, op):
    """What `chunk` is at the end, by the definition of the collective."""
    origins = sorted(algo.spec.contributors(chunk, size, root))
    parts = [values(rank, chunk, length, dtype, op) for rank in origins]
    if not algo.spec.reduces:
        return parts[0]
    total = reduce(OPERATIONS[op], parts).astype(dtype)
    return (total / np.float32(size)).astype(dtype) if op == "avg" else total


def flat(arrays, dtype):
    return np.concatenate([np.zeros(0, dtype), *arrays])


def memory_of(plans, sources, results):
    """What peers see of each other: no more than the plans say."""
    both = {Space.INPUT: sources, Space.OUTPUT: results}
    return {
        rank: {space: both[space][rank] for space in plan.remote} for rank, plan in enumerate(plans)
    }


def check(
    algo, size, root, lengths, room, *, dtype="float32", op="sum", slots=2, seed=0, in_place=False
):
    """Run all ranks; compare every output with the definition, and see that inputs are intact."""
    spec, count = algo.spec, algo.chunk_count(size)
    lengths = list(lengths)
    channels = connected_channels(size, slots)
    plans = [lower(algo, rank, size, root) for rank in range(size)]
    sources, results, executions = [], [], []
    for rank, plan in enumerate(plans):
        held = spec.inputs(rank, size, root, count)
        source = flat([values(rank, c, lengths[c], dtype, op) for c in held], dtype)
        result = np.zeros(sum(lengths[c] for c in plan.outputs), dtype)
        if in_place and plan.inputs == plan.outputs and held:
            result = source
        sources.append((source, source.copy()))
        results.append(result)
    memory = memory_of(plans, [source for source, _ in sources], results)
    for rank, plan in enumerate(plans):
        layout = Layout(plan, lengths, room * plan.widest, slots)
        executions.append(
            execute(plan, layout, channels[rank], sources[rank][0], results[rank],
                    op if spec.reduces else None, 77, memory)
        )  # fmt: skip
    order = list(range(size))
    random.Random(seed).shuffle(order)
    run_together(executions, order)
    for rank in range(size):
        kept = spec.outputs(rank, size, root, count)
        wanted = [defined(algo, size, root, c, lengths[c], dtype, op) for c in kept]
        np.testing.assert_array_equal(results[rank], flat(wanted, dtype))
        if results[rank] is not sources[rank][0]:
            np.testing.assert_array_equal(sources[rank][0], sources[rank][1])
    for each in channels:
        assert each.slot_is_free() and all(each.take(peer) is None for peer in range(size))


def equal_lengths(algo, size, count):
    """Chunk lengths as a call has them: `count` elements shared out, or a chunk."""
    if algo.spec.chunking == "empty":
        return (0,)
    if algo.spec.chunking == "open":
        return split_evenly(count, algo.chunk_count(size))
    return (count,) * algo.chunk_count(size)


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_every_size_and_count(algo, full):
    dice = random.Random(f"{algo.collective} {algo.name}")
    for size in SIZES:
        chunks = algo.chunk_count(size) if algo.spec.chunking == "open" else 1
        room = dice.choice([2, 3, 5])
        # None, one, a prime, one under, at and over a slot's end, and several slots over.
        edges = (
            0,
            1,
            7,
            room * chunks - 1,
            room * chunks,
            room * chunks + 1,
            3 * room * chunks + 2,
        )
        for count in edges if full or size < 9 else dice.sample(edges, 3):
            dtype, op = dice.choice(KINDS) if algo.spec.reduces else (dice.choice(KINDS)[0], None)
            root = dice.randrange(size) if algo.spec.rooted else 0
            lengths = equal_lengths(algo, size, count)
            seed, in_place, slots = dice.random(), dice.random() < 0.5, dice.choice((2, 3, 8, 16))
            check(algo, size, root, lengths, room, dtype=dtype, op=op, slots=slots, seed=seed,
                  in_place=in_place)  # fmt: skip


@pytest.mark.parametrize("algo", ALGORITHMS.values(), ids=ALGORITHMS)
def test_every_order_of_turns_and_every_root(algo):
    for size in (2, 3, 5, 8):
        lengths = equal_lengths(algo, size, 5)
        for root in range(size) if algo.spec.rooted else (0,):
            for seed in range(3):
                check(algo, size, root, lengths, room=1, seed=seed)


@pytest.mark.parametrize("dtype, op", KINDS)
def test_every_operation(dtype, op):
    for name in ("ring", "one_shot", "recursive_doubling"):
        check(find("allreduce", name), 3, 0, equal_lengths(find("allreduce", name), 3, 10), 2,
              dtype=dtype, op=op)  # fmt: skip


@given(data=st.data())
def test_any_lengths_sizes_roots_and_slots(data):
    algo = data.draw(st.sampled_from(list(ALGORITHMS.values())), label="algorithm")
    size = data.draw(st.integers(1, 9), label="size")
    count = algo.chunk_count(size)
    longest = 0 if algo.spec.chunking == "empty" else 9
    lengths = data.draw(st.lists(st.integers(0, longest), min_size=count, max_size=count))
    check(
        algo,
        size,
        data.draw(st.integers(0, size - 1), label="root") if algo.spec.rooted else 0,
        lengths,
        room=data.draw(st.integers(1, 10), label="room"),
        slots=data.draw(st.sampled_from((2, 3, 4, 6, 8, 12, 16)), label="slots"),
        seed=data.draw(st.integers(0, 99), label="seed"),
        in_place=data.draw(st.booleans(), label="in place"),
    )


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_alltoall_needs_only_the_lengths_that_a_rank_knows(size):
    # With counts= a rank knows what it sends and what it receives, and is told nothing else.
    algo = find("alltoall", "pairwise")
    dice = random.Random(size)
    lengths = [dice.randrange(8) for _ in range(size * size)]
    channels, results, executions = connected_channels(size), [], []
    for rank in range(size):
        known = [n if rank in divmod(c, size) else 0 for c, n in enumerate(lengths)]
        layout = Layout(plan := lower(algo, rank, size), known, 3)
        row = [values(rank, c, lengths[c], "int32", None) for c in plan.inputs]
        results.append(np.zeros(layout.output_elements, "int32"))
        executions.append(execute(plan, layout, channels[rank], flat(row, "int32"), results[-1]))
    run_together(executions)
    for rank in range(size):
        column = [values(s, s * size + rank, lengths[s * size + rank], "int32", None)
                  for s in range(size)]  # fmt: skip
        np.testing.assert_array_equal(results[rank], flat(column, "int32"))


def run_on_floats(algo, size, floats):
    """Every rank's result of an allreduce of one float32 array a rank."""
    channels, executions = connected_channels(size), []
    lengths = equal_lengths(algo, size, floats.shape[1])
    plans = [lower(algo, rank, size) for rank in range(size)]
    sources, results = list(floats.copy()), list(np.zeros_like(floats))
    memory = memory_of(plans, sources, results)
    for rank, plan in enumerate(plans):
        layout = Layout(plan, lengths, 7 * plan.widest)
        executions.append(
            execute(plan, layout, channels[rank], sources[rank], results[rank], "sum", 0, memory)
        )
    run_together(executions)
    return results


@pytest.mark.parametrize("name", names("allreduce"))
@pytest.mark.parametrize("size", [3, 4, 6])
def test_all_ranks_get_the_same_bits(name, size):
    dice = np.random.default_rng(size)
    floats = dice.standard_normal((size, 40)) * 2.0 ** dice.integers(-12, 13, (size, 40))
    results = run_on_floats(find("allreduce", name), size, floats.astype(np.float32))
    assert len({result.tobytes() for result in results}) == 1
    np.testing.assert_allclose(results[0], floats.sum(0), rtol=1e-3, atol=1e-2)


def test_one_pass_adds_in_rank_order():
    dice = np.random.default_rng(0)
    floats = dice.standard_normal((5, 200)) * 2.0 ** dice.integers(-12, 13, (5, 200))
    floats = floats.astype(np.float32)
    in_order = (((floats[0] + floats[1]) + floats[2]) + floats[3]) + floats[4]
    assert (in_order != (((floats[4] + floats[3]) + floats[2]) + floats[1]) + floats[0]).any()
    for name in ("one_shot", "one_sided"):
        for result in run_on_floats(find("allreduce", name), 5, floats):
            assert result.tobytes() == in_order.tobytes()


def test_sixteen_bit_floats_round_once_a_pass():
    # 2048 + 1 is not a float16; 2048 + 1 + 1 added in float32 is.
    algo = find("allreduce", "one_shot")
    channels, results, executions = connected_channels(3), [], []
    for rank in range(3):
        plan = lower(algo, rank, 3)
        results.append(np.zeros(1, np.float16))
        source = np.array([[2048, 1, 1][rank]], np.float16)
        executions.append(
            execute(plan, Layout(plan, [1], 1), channels[rank], source, results[-1], "sum")
        )
    run_together(executions)
    assert [float(result[0]) for result in results] == [2050.0] * 3


def executions_of(algo, size, fingerprints, lengths=None):
    channels = connected_channels(size)
    found = []
    for rank in range(size):
        plan = lower(algo, rank, size)
        table = (lengths or [[1] * plan.chunk_count] * size)[rank]
        layout = Layout(plan, table, 64)
        source = np.ones(layout.input_elements, "int32")
        result = np.zeros(layout.output_elements, "int32")
        op = "sum" if algo.spec.reduces else None
        found.append(execute(plan, layout, channels[rank], source, result, op, fingerprints[rank]))
    return found


def test_a_message_of_another_call_is_refused():
    with pytest.raises(
        MismatchError, match="expected 1 elements of call 8 from rank 1, found 1 of call 7"
    ):
        run_together(executions_of(find("allreduce", "ring"), 3, [7, 7, 8]))


def test_a_message_of_another_length_is_refused():
    tables = [[2] * 3, [2] * 3, [3] * 3]
    with pytest.raises(MismatchError, match="expected 3 elements of call 7 from rank 1, found 2"):
        run_together(executions_of(find("allgather", "ring"), 3, [7] * 3, tables))


@algorithm("allgather")
def hasty_allgather(rank, size):
    """Sends to all before it receives, which no number of slots is enough for."""
    others = [peer for peer in range(size) if peer != rank]
    for peer in others:
        yield send(peer, chunk=rank)
    for peer in others:
        yield recv(peer, chunk=peer)


def test_a_dead_lock_is_seen_and_told():
    run_together(executions_of(hasty_allgather, 3, [0] * 3))  # two slots are enough for two
    with pytest.raises(Stuck, match="rank 0 waits for a free slot; rank 1 waits for a free slot"):
        run_together(executions_of(hasty_allgather, 4, [0] * 4))


def test_a_message_that_never_comes_is_told():
    @algorithm("broadcast")
    def silent(rank, size, root):
        if rank != root:
            yield recv(root, chunk=0)

    with pytest.raises(Stuck, match="rank 1 waits for a message from rank 0"):
        run_together(executions_of(silent, 2, [0, 0]))


def test_an_engine_needs_two_slots():
    with pytest.raises(ValueError, match="at least 2 slots, found 1"):
        connected_channels(2, slots=1)
