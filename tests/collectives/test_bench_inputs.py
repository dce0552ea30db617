"""Inputs that sum exactly, what is expected of every collective, and how wrong elements count."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from collectives.bench.cases import COLLECTIVES, ITEM_BYTES, POINT_TO_POINT, REDUCING, Case
from collectives.bench.inputs import PERIOD, fill_input, fill_poison, storage, wrong_elements
from collectives.dtypes import OPS, reduction

SIZES = (1, 2, 3, 8)


def arrays(case, size, which):
    """The inputs (0) or results (1) of all ranks, empty."""
    kind = storage(case.dtype)
    return [np.zeros(case.counts(rank, size)[which], kind) for rank in range(size)]


def filled(case, size):
    inputs = arrays(case, size, 0)
    for rank, x in enumerate(inputs):
        if x.size:
            fill_input(x, case, rank, size)
    return inputs


def results_of(case, size, inputs):
    """What each collective does, in the plainest words: by numpy, element by element."""
    name, root, part = case.collective, case.root, case.part(size)
    if name in REDUCING:
        total = functools.reduce(np.add, inputs)
        if name == "reduce_scatter":
            return [total[rank * part : (rank + 1) * part] for rank in range(size)]
        return [total if name == "allreduce" or rank == root else total[:0] for rank in range(size)]
    whole = np.concatenate(inputs)
    pieces = [x[i * part : (i + 1) * part] for x in inputs for i in range(size)]
    return {
        "broadcast": lambda: [inputs[root]] * size,
        "scatter": lambda: [inputs[root][r * part : (r + 1) * part] for r in range(size)],
        "gather": lambda: [whole if r == root else whole[:0] for r in range(size)],
        "allgather": lambda: [whole] * size,
        "alltoall": lambda: [
            np.concatenate([pieces[s * size + r] for s in range(size)]) for r in range(size)
        ],
        "barrier": lambda: [whole[:0]] * size,
    }[name]()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("collective", COLLECTIVES)
def test_right_results_have_nothing_wrong_and_others_all(collective, size):
    op = "sum" if collective in REDUCING else ""
    case = Case(collective=collective, nbytes=4 * 3 * PERIOD + 20, op=op, root=size - 1)
    case = case.rounded(size)
    expected = results_of(case, size, filled(case, size))
    for rank, result in enumerate(expected):
        assert result.size == case.counts(rank, size)[1]
        assert wrong_elements(result, case, rank, size) == 0
        poisoned = result.copy()
        fill_poison(poisoned)
        assert wrong_elements(poisoned, case, rank, size) == result.size


@pytest.mark.parametrize("where", [0, PERIOD - 1, PERIOD, 2 * PERIOD + 5])
def test_a_planted_error_is_counted_wherever_it_is(where):
    case = Case(collective="allreduce", nbytes=4 * (2 * PERIOD + 6), op="sum")
    (result, _) = results_of(case, 2, filled(case, 2))
    result = result.copy()
    result[where] += 1
    assert wrong_elements(result, case, 0, 2) == 1
    result[where] = np.nan
    assert wrong_elements(result, case, 0, 2) == 1


def test_exchanged_chunks_are_wrong():
    case = Case(collective="allgather", nbytes=4 * 4096, op="").rounded(4)
    (result, *_) = results_of(case, 4, filled(case, 4))
    swapped = np.concatenate([result[1024:2048], result[:1024], result[2048:]])
    assert wrong_elements(swapped, case, 0, 4) > 2000


def test_a_contribution_missing_or_double_is_wrong():
    case = Case(collective="allreduce", nbytes=4 * 1000, op="sum")
    first, second, third = filled(case, 3)
    for almost in (first + second, first + second + third + third, first + 2 * second):
        assert wrong_elements(almost, case, 0, 3) > 900


def pairs():
    for dtype in ITEM_BYTES:
        for op in OPS:
            try:
                reduction(dtype, op)
            except TypeError:
                continue
            yield dtype, op


@pytest.mark.parametrize("dtype, op", list(pairs()))
def test_sums_are_exact_in_every_order(dtype, op):
    """Adding in the element type itself, forwards and backwards, gives what is expected."""
    size = 8
    case = Case(collective="allreduce", nbytes=ITEM_BYTES[dtype] * 5000, dtype=dtype, op=op)
    inputs = [as_numbers(x, dtype) for x in filled(case, size)]
    combine = {
        "sum": np.add, "avg": np.add, "prod": np.multiply, "min": np.minimum, "max": np.maximum,
        "band": np.bitwise_and, "bor": np.bitwise_or, "bxor": np.bitwise_xor,
        "land": np.logical_and, "lor": np.logical_or, "lxor": np.logical_xor,
    }[op]  # fmt: skip

    def combined(order):
        total = functools.reduce(combine, [inputs[rank] for rank in order])
        return total / total.dtype.type(size) if op == "avg" else total

    forwards, backwards = combined(range(size)), combined(reversed(range(size)))
    assert (forwards == backwards).all()
    for total in (forwards, backwards):
        assert wrong_elements(as_stored(total, dtype), case, 0, size) == 0


def as_numbers(x, dtype):
    import ml_dtypes

    return x.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else x


def as_stored(x, dtype):
    return x.view(np.uint16) if dtype == "bfloat16" else x.astype(dtype)


def test_sixteen_bits_hold_the_sums_of_many_ranks():
    case = Case(collective="allreduce", nbytes=2 * 64, dtype="bfloat16", op="sum")
    total = functools.reduce(np.add, [as_numbers(x, "bfloat16") for x in filled(case, 256)])
    assert wrong_elements(as_stored(total, "bfloat16"), case, 0, 256) == 0
    with pytest.raises(ValueError, match="bfloat16 holds no sums of 257 ranks exactly"):
        filled(case, 257)


@pytest.mark.parametrize("collective", POINT_TO_POINT)
def test_messages_hold_what_the_other_rank_sent(collective):
    case = Case(collective=collective, nbytes=4 * 100)
    inputs = filled(case, 3)
    assert wrong_elements(inputs[1], case, 0, 3) == 0
    assert wrong_elements(inputs[0], case, 1, 3) == 0
    assert wrong_elements(inputs[0], case, 0, 3) > 90
    assert wrong_elements(inputs[0], case, 2, 3) == 0  # takes no part


@pytest.mark.parametrize(
    "collective, nbytes, rounded", [("allreduce", 5, 8), ("allgather", 5, 12), ("barrier", 64, 0)]
)
def test_sizes_are_rounded_to_elements_and_parts(collective, nbytes, rounded):
    assert Case(collective=collective, nbytes=nbytes).rounded(3).nbytes == rounded
