"""The native reductions give numpy's bits: every type, operation and instruction set there is."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from transports import _native

Array = np.ndarray[Any, Any]

DTYPES = {
    name: (number, np.dtype(kind))
    for number, (name, kind) in enumerate(
        [
            ("float16", np.float16),
            ("bfloat16", ml_dtypes.bfloat16),
            ("float32", np.float32),
            ("float64", np.float64),
            ("int8", np.int8),
            ("int16", np.int16),
            ("int32", np.int32),
            ("int64", np.int64),
            ("uint8", np.uint8),
            ("uint16", np.uint16),
            ("uint32", np.uint32),
            ("uint64", np.uint64),
            ("bool", np.bool_),
        ]
    )
}
OPS = ["sum", "prod", "min", "max", "band", "bor", "bxor", "land", "lor", "lxor"]
FLOATS = ["float16", "bfloat16", "float32", "float64"]
HALVES = ["float16", "bfloat16"]

COUNTS = [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 1000, 4097]
"""Round every length of vector, of four vectors, and of what remains."""

CANARY = 0xA5


def minimum(a: Array, b: Array) -> Array:
    """numpy.minimum, with a rule for zeros of either sign: the later one."""
    return np.where((a < b) | np.isnan(a), a, b)


def maximum(a: Array, b: Array) -> Array:
    return np.where((a > b) | np.isnan(a), a, b)


FOLDS: dict[str, Callable[[Any, Any], Any]] = {
    "sum": np.add,
    "prod": np.multiply,
    "min": minimum,
    "max": maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
    "land": np.logical_and,
    "lor": np.logical_or,
    "lxor": np.logical_xor,
}


@pytest.fixture(autouse=True)
def instruction_set_restored() -> Iterator[None]:
    before = _native.instruction_set()
    yield
    _native.use_instruction_set(before)


def instruction_sets() -> list[str]:
    with pytest.raises(ValueError, match="this CPU has") as refusal:
        _native.use_instruction_set("none")
    return str(refusal.value).partition("this CPU has ")[2].split(", ")


def ops_of(dtype: str) -> list[str]:
    return OPS[:4] if dtype in FLOATS else OPS


def reduce(
    dtype: str,
    op: str,
    inputs: list[Array],
    out: Array,
    also: Array | None = None,
    stores: int = 0,
    follows: int = 0,
) -> None:
    _native.reduce(DTYPES[dtype][0], OPS.index(op), inputs, out, also, stores, follows)


def expected(dtype: str, op: str, inputs: list[Array]) -> Array:
    """What numpy makes of the inputs, from left to right; 16-bit floats by way of float32."""
    kind = DTYPES[dtype][1]
    if len(inputs) == 1:
        return inputs[0]
    values = inputs
    if dtype in HALVES:
        values = [x.astype(np.float32) for x in inputs]
    if dtype == "bool":
        values = [x.view(np.uint8) != 0 for x in inputs]
    with np.errstate(all="ignore"):
        result = values[0]
        for x in values[1:]:
            result = FOLDS[op](result, x)
        return result.astype(kind)


def bits(x: Array) -> Array:
    return x.view(f"u{x.dtype.itemsize}")


def same(found: Array, wanted: Array) -> bool:
    """Whether the bits are the same, but for what a NaN carries."""
    if found.tobytes() == wanted.tobytes():
        return True
    if wanted.dtype.kind in "iub" or not np.array_equal(np.isnan(found), np.isnan(wanted)):
        return False
    number = ~np.isnan(wanted)
    return np.array_equal(bits(found)[number], bits(wanted)[number])


def random_inputs(generator: np.random.Generator, dtype: str, n: int, count: int) -> list[Array]:
    kind = DTYPES[dtype][1]
    if dtype in FLOATS:
        scales = 2.0 ** generator.integers(-3, 4, (n, count))
        return list((generator.standard_normal((n, count)) * scales).astype(kind))
    if dtype == "bool":  # as bytes, and not only the two that numpy would write
        values = generator.choice(np.array([0, 0, 1, 2, 255], np.uint8), (n, count))
        return list(values.view(np.bool_))
    raw = generator.integers(0, 256, (n, count * kind.itemsize), np.uint8)
    raw[generator.random((n, len(raw[0]))) < 0.3] = 0  # some whole elements 0, for the logical ones
    return list(raw.view(kind))


class Arena:
    """Buffers at odd addresses in one piece of memory, with bytes between that nobody may touch."""

    def __init__(self, arrays: list[Array]) -> None:
        size = sum(x.nbytes + 96 for x in arrays) + 96
        self.memory = np.full(size, CANARY, np.uint8)
        self.buffers = []
        at = 1
        for index, x in enumerate(arrays):
            self.buffers.append(self.memory[at : at + x.nbytes])
            self.buffers[-1][:] = x.view(np.uint8)
            at += x.nbytes + 64 + 2 * index % 32 + 1


def check_fold(dtype: str, op: str, inputs: list[Array], out: int, also: int | None) -> None:
    """Fold in an arena where buffers 0.. are the inputs, n is one more and n + 1 another.

    Nothing but `out` and `also` may change.
    """
    wanted = expected(dtype, op, inputs)
    blank = np.zeros_like(inputs[0])
    arrays = [*inputs, blank, blank]
    arena = Arena(arrays)
    reduce(
        dtype,
        op,
        arena.buffers[: len(inputs)],
        arena.buffers[out],
        None if also is None else arena.buffers[also],
    )
    arrays[out] = wanted
    if also is not None:
        arrays[also] = wanted
    assert arena.memory.tobytes() == Arena(arrays).memory.tobytes(), (
        f"{_native.instruction_set()}: {op} of {len(inputs)} {dtype}[{len(wanted)}], "
        f"out = buffer {out}, also = {also}"
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_operation_at_every_count(dtype: str) -> None:
    generator = np.random.default_rng(len(dtype))
    for instruction_set in instruction_sets():
        _native.use_instruction_set(instruction_set)
        for op, n, count in itertools.product(ops_of(dtype), [1, 2, 3, 5], COUNTS):
            inputs = random_inputs(generator, dtype, n, count)
            check_fold(dtype, op, inputs, out=n, also=n + 1 if count % 2 else None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_results_may_take_the_place_of_any_inputs(dtype: str) -> None:
    generator = np.random.default_rng(len(dtype) + 1)
    for instruction_set in instruction_sets():
        _native.use_instruction_set(instruction_set)
        for op, n, count in itertools.product(["sum", "max"], [1, 2, 3, 5], [1, 7, 33, 1000]):
            inputs = random_inputs(generator, dtype, n, count)
            for place in range(n):
                check_fold(dtype, op, inputs, out=place, also=None)
                check_fold(dtype, op, inputs, out=place, also=n)
                check_fold(dtype, op, inputs, out=n, also=place)
                check_fold(dtype, op, inputs, out=place, also=(place + 1) % n)


@pytest.mark.parametrize("n", [16, 17, 64])
def test_many_inputs_fold_in_their_order(n: int) -> None:
    generator = np.random.default_rng(n)
    for instruction_set, dtype in itertools.product(instruction_sets(), DTYPES):
        _native.use_instruction_set(instruction_set)
        check_fold(dtype, "sum", random_inputs(generator, dtype, n, 333), out=n, also=0)


def test_the_order_of_the_inputs_is_the_order_of_the_sum() -> None:
    values = [np.full(37, x, np.float32) for x in (1e8, -1e8, 1.0)]
    for instruction_set in instruction_sets():
        _native.use_instruction_set(instruction_set)
        for order in itertools.permutations(values):
            out = np.empty_like(order[0])
            reduce("float32", "sum", list(order), out)
            assert out.tolist() == ((order[0] + order[1]) + order[2]).tolist()


@pytest.mark.parametrize("dtype", HALVES)
def test_16_bit_floats_round_once(dtype: str) -> None:
    """Rounded after each addition, the small ones would vanish one by one."""
    kind = DTYPES[dtype][1]
    large, small = (2048.0, 1.0) if dtype == "float16" else (256.0, 1.0)
    inputs = [np.full(35, large, kind)] + [np.full(35, small, kind)] * 4
    for instruction_set in instruction_sets():
        _native.use_instruction_set(instruction_set)
        out = np.empty_like(inputs[0])
        reduce(dtype, "sum", inputs, out)
        assert np.all(out.astype(np.float32) == large + 4 * small), instruction_set


@pytest.mark.parametrize("dtype", HALVES)
def test_every_16_bit_float_survives_its_conversion(dtype: str) -> None:
    """All 65536 go to float32 and back: x + -0.0 is x, and so is max(-inf, x)."""
    kind = DTYPES[dtype][1]
    every = np.arange(65536, dtype=np.uint16)
    quiet = np.uint16(0x0200 if dtype == "float16" else 0x0040)
    with np.errstate(invalid="ignore"):  # ml_dtypes asks by way of arithmetic
        is_nan = np.isnan(every.view(kind))
    wanted = np.where(is_nan, every | quiet, every)
    for instruction_set in instruction_sets():
        _native.use_instruction_set(instruction_set)
        out = np.empty_like(every)
        reduce(dtype, "sum", [every, np.full_like(every, 0x8000)], out)
        assert np.array_equal(out, wanted), instruction_set
        lowest = np.full_like(every, 0xFC00 if dtype == "float16" else 0xFF80)
        reduce(dtype, "max", [lowest, every], out)
        assert np.array_equal(out | is_nan * quiet, wanted), instruction_set


@pytest.mark.parametrize("dtype", HALVES)
def test_16_bit_floats_round_to_nearest_even(dtype: str) -> None:
    """Products have more digits than a half: ties, subnormals, overflow, each way of rounding."""
    kind = DTYPES[dtype][1]
    every = np.arange(65536, dtype=np.uint16).view(kind)
    factors = np.array([1.5, 0.75, 1.001, 1.9, 2.0**-3, 1.25 * 2.0**-12, 3.0 * 2.0**7, 1e-30])
    for instruction_set, factor in itertools.product(instruction_sets(), factors.astype(kind)):
        _native.use_instruction_set(instruction_set)
        for op in ("sum", "prod"):
            inputs = [every, np.full_like(every, factor)]
            out = np.empty_like(every)
            reduce(dtype, op, [bits(x) for x in inputs], bits(out))
            assert same(out, expected(dtype, op, inputs)), (instruction_set, op, factor)


def special_values(kind: np.dtype[Any]) -> Array:
    limits: Any = ml_dtypes.finfo(kind)  # type: ignore[no-untyped-call]
    positive = np.array(
        [0.0, limits.smallest_subnormal, limits.smallest_normal, 1.0, 1.5, limits.max, np.inf],
        kind,
    )
    return np.concatenate([positive, -positive, np.array([np.nan, -np.nan], kind)])


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_infinity_zeros_and_subnormals(dtype: str) -> None:
    """Every pair and triple of special values, each in every lane."""
    values = special_values(DTYPES[dtype][1])
    for n, op in itertools.product([2, 3], ["sum", "prod", "min", "max"]):
        grid = np.array(list(itertools.product(range(len(values)), repeat=n)))
        inputs = [values[column] for column in grid.T]
        wanted = expected(dtype, op, inputs)
        for instruction_set in instruction_sets():
            _native.use_instruction_set(instruction_set)
            for start in range(33):
                out = np.empty_like(wanted[start:])
                reduce(dtype, op, [bits(x[start:]) for x in inputs], bits(out))
                assert same(out, wanted[start:]), (instruction_set, op, start)


@pytest.mark.parametrize("dtype", FLOATS)
def test_min_and_max_agree_with_numpy(dtype: str) -> None:
    """Ours is numpy's rule, but that numpy leaves zeros of either sign to the processor."""
    values = special_values(DTYPES[dtype][1])
    a, b = (x.reshape(-1) for x in np.meshgrid(values, values))
    both = (("min", np.minimum), ("max", np.maximum))
    for instruction_set, (op, numpys) in itertools.product(instruction_sets(), both):
        _native.use_instruction_set(instruction_set)
        out = np.empty_like(a)
        reduce(dtype, op, [bits(a), bits(b)], bits(out))
        with np.errstate(invalid="ignore"):
            wanted = numpys(a, b)
        assert np.array_equal(np.isnan(out), np.isnan(wanted))
        assert np.array_equal(out[~np.isnan(out)], wanted[~np.isnan(out)])


@pytest.mark.parametrize("dtype", [name for name in DTYPES if "int" in name])
def test_integers_wrap(dtype: str) -> None:
    kind = DTYPES[dtype][1]
    limits = np.iinfo(kind)
    for instruction_set in instruction_sets():
        _native.use_instruction_set(instruction_set)
        for op, left, right, wanted in [
            ("sum", limits.max, 1, limits.min),
            ("prod", limits.max, 2, np.uint64(2**64 - 2).astype(kind)),
            ("min", limits.min, limits.max, limits.min),
            ("max", limits.min, limits.max, limits.max),
        ]:
            out = np.empty(67, kind)
            reduce(dtype, op, [np.full(67, left, kind), np.full(67, right, kind)], out)
            assert np.all(out == wanted), (instruction_set, op)


@pytest.mark.parametrize("dtype", FLOATS)
def test_divide(dtype: str) -> None:
    number, kind = DTYPES[dtype]
    generator = np.random.default_rng(3)
    wide = np.float32 if dtype in HALVES else kind
    for instruction_set, count in itertools.product(instruction_sets(), COUNTS):
        _native.use_instruction_set(instruction_set)
        x = random_inputs(generator, dtype, 1, count)[0]
        x[: len(special_values(kind))] = special_values(kind)[:count]
        for divisor in (1, 3, 7, 1 << 20):
            with np.errstate(all="ignore"):
                wanted = (x.astype(wide) / np.asarray(divisor, wide)).astype(kind)
            arena = Arena([x])
            _native.divide(number, arena.buffers[0], divisor)
            assert same(arena.buffers[0].copy().view(kind), wanted), (instruction_set, count)
            arena.buffers[0][:] = CANARY
            assert np.all(arena.memory == CANARY)


def test_supports_says_what_is_carried() -> None:
    for instruction_set, (name, (number, _)) in itertools.product(
        instruction_sets(), DTYPES.items()
    ):
        _native.use_instruction_set(instruction_set)
        carried = [op for index, op in enumerate(OPS) if _native.supports(number, index)]
        assert carried == ops_of(name)


def test_the_best_instruction_set_comes_first_and_each_can_be_chosen() -> None:
    names = instruction_sets()
    assert _native.instruction_set() == names[0]
    assert names[-1] in ("baseline", "neon")
    for name in names:
        _native.use_instruction_set(name)
        assert _native.instruction_set() == name


FLOAT32 = DTYPES["float32"][0]
SUM, BAND = OPS.index("sum"), OPS.index("band")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: _native.reduce(13, SUM, [x], y, None), r"dtype: expected 0\.\.12, found 13"),
        (lambda x, y: _native.reduce(-1, SUM, [x], y, None), r"dtype: expected 0\.\.12, found -1"),
        (lambda x, y: _native.reduce(FLOAT32, 10, [x], y, None), r"op: expected 0\.\.9, found 10"),
        (lambda x, y: _native.reduce(FLOAT32, BAND, [x], y, None), "dtype 2 has no op 4"),
        (lambda x, y: _native.reduce(FLOAT32, SUM, [], y, None), "at least 1, found 0"),
        (
            lambda x, y: _native.reduce(FLOAT32, SUM, [x, x[1:]], y, None),
            r"inputs\[1\]: expected 32 bytes as in out, found 28",
        ),
        (
            lambda x, y: _native.reduce(FLOAT32, SUM, [x], y, x[1:]),
            "also: expected 32 bytes as in out, found 28",
        ),
        (
            lambda x, y: _native.reduce(FLOAT32, SUM, [x], y.view(np.uint8)[1:], None),
            "out: expected a multiple of 4 bytes, found 31",
        ),
        (
            lambda x, y: _native.reduce(FLOAT32, SUM, [x[:4]], x[1:5], None),
            r"inputs\[0\] and out: expected the same memory or none in common, found 12 bytes",
        ),
        (
            lambda x, y: _native.reduce(FLOAT32, SUM, [x[:4]], y[:4], x[3:7]),
            r"inputs\[0\] and also: expected .* found 4 bytes in common",
        ),
        (
            lambda x, y: _native.reduce(FLOAT32, SUM, [x[:4]], y[:4], y[2:6]),
            "also and out: expected .* found 8 bytes in common",
        ),
        (
            lambda x, y: _native.reduce(FLOAT32, SUM, [x[::2]], y[:4], None),
            r"inputs\[0\]: expected a contiguous buffer, found one that is not",
        ),
        (
            lambda x, y: _native.reduce(FLOAT32, SUM, [x], bytes(32), None),
            "out: expected a contiguous writable buffer, found one that is not",
        ),
        (lambda x, y: _native.divide(DTYPES["int32"][0], x, 2), "floating-point one, found 6"),
        (lambda x, y: _native.divide(FLOAT32, x, 0), "divisor: expected at least 1, found 0"),
        (
            lambda x, y: _native.divide(FLOAT32, x.view(np.uint8)[1:], 2),
            "data: expected a multiple of 4 bytes, found 31",
        ),
        (lambda x, y: _native.supports(13, 0), r"dtype: expected 0\.\.12, found 13"),
        (lambda x, y: _native.supports(0, 10), r"op: expected 0\.\.9, found 10"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected(
    call: Callable[[Array, Array], None], message: str
) -> None:
    x, y = np.ones(8, np.float32), np.zeros(8, np.float32)
    with pytest.raises(ValueError, match=message):
        call(x, y)
    assert np.all(x == 1)
    assert np.all(y == 0)


def test_what_is_no_buffer_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="bytes-like object is required, not 'list'"):
        _native.reduce(FLOAT32, SUM, [[1.0]], np.zeros(1, np.float32), None)
