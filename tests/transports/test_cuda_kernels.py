"""The kernels for GPUs give numpy's bits: their source, compiled for the CPU, thread by thread.

What this leaves open is what only a GPU can show: its own conversions and arithmetic, which
test_cuda_kernels_compile.py finds in the compiled code, and threads that really run at once.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.guarded import GuardedArrays
from harness.kernels_on_host import KernelsOnHost

from transports.cuda_ipc import kernels


def load(name: str) -> Any:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


native = load("test_kernels")  # what numpy gives, and inputs, are the same for all kernels
DTYPES, FLOATS, HALVES, OPS = native.DTYPES, native.FLOATS, native.HALVES, native.OPS

PAIRS = [(dtype, op) for dtype in DTYPES for op in native.ops_of(dtype)]
QUICK = [
    ("float16", "sum"), ("float16", "prod"), ("float16", "min"),
    ("bfloat16", "sum"), ("bfloat16", "prod"), ("bfloat16", "max"),
    ("float32", "sum"), ("float32", "min"), ("float32", "max"), ("float64", "sum"),
    ("int8", "prod"), ("int16", "min"), ("int32", "max"), ("int32", "bxor"), ("int64", "sum"),
    ("int64", "band"), ("uint8", "bor"), ("uint16", "prod"), ("uint32", "land"),
    ("uint64", "lor"), ("bool", "lxor"),
]  # fmt: skip
"""Each type and each operation at least once."""

COUNTS = (0, 1, 7, 1009)
GRIDS = ((1, 1), (2, 3), (3, 8), (1, 256))
"""Blocks and threads: more threads than packets, and so few that each has several batches."""


def number_of(pair: tuple[str, str]) -> tuple[int, int]:
    return DTYPES[pair[0]][0], OPS.index(pair[1])


@pytest.fixture(scope="module")
def pairs(full: bool) -> list[tuple[str, str]]:
    return PAIRS if full else QUICK


@pytest.fixture(scope="module")
def host(pairs: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> KernelsOnHost:
    return KernelsOnHost(tmp_path_factory.mktemp("kernels"), map(number_of, pairs))


def offsets_of(alignment: str, item: int, buffers: int) -> list[int]:
    """How far the buffers begin behind multiples of 16."""
    return {
        "packets": [0] * buffers,
        "packets behind a head": [item] * buffers,
        "elements": [k * item % 16 for k in range(buffers)],
        "nothing": [(2 * k + 1) % 16 for k in range(buffers)],
        "all by one": [1] * buffers,
    }[alignment]


ALIGNMENTS = ("packets", "packets behind a head", "elements", "nothing", "all by one")


def check_fold(
    host: KernelsOnHost,
    pair: tuple[str, str],
    inputs: Sequence[np.ndarray],
    targets: Sequence[int] = (-1,),
    alignment: str = "packets",
    grid: tuple[int, int] = (2, 3),
    backwards: bool = False,
) -> None:
    """Fold in guarded memory into `targets`: operands by number, or -1, -2 and so on for others.

    All targets have numpy's bits then, and nothing else has changed.
    """
    dtype, op = pair
    wanted = native.expected(dtype, op, list(inputs))
    arrays = [*inputs, *(np.zeros_like(inputs[0]) for target in targets if target < 0)]
    offsets = offsets_of(alignment, wanted.itemsize, len(arrays))
    memory = GuardedArrays(arrays, offsets)
    targets = [target if target >= 0 else len(inputs) - 1 - target for target in targets]
    host.fold(
        number_of(pair),
        [memory.addresses[target] for target in targets],
        memory.addresses[: len(inputs)],
        len(wanted),
        grid,
        backwards,
    )
    case = f"{op} of {len(inputs)} {dtype}[{len(wanted)}] into {targets}: {alignment}, {grid}"
    assert memory.margins_untouched(), case
    for index, (array, found) in enumerate(zip(arrays, memory.bytes, strict=True)):
        if index not in targets or len(inputs) == 1:
            expected = wanted if index in targets else array
            assert found.tobytes() == expected.tobytes(), f"{case}: buffer {index}"
        else:
            assert native.same(found.copy().view(wanted.dtype), wanted), f"{case}: buffer {index}"


def test_the_quick_pairs_have_every_type_and_operation() -> None:
    assert {dtype for dtype, _ in QUICK} == set(DTYPES)
    assert {op for _, op in QUICK} == set(OPS)


def of_dtype(pairs: Sequence[tuple[str, str]], dtype: str) -> list[tuple[str, str]]:
    return [pair for pair in pairs if pair[0] == dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_count_alignment_and_number_of_operands(
    host: KernelsOnHost, pairs: list[tuple[str, str]], dtype: str
) -> None:
    generator = np.random.default_rng(len(dtype))
    for pair in of_dtype(pairs, dtype):
        cases = itertools.product(range(1, 7), COUNTS, ALIGNMENTS)
        for (n, count, alignment), grid in zip(cases, itertools.cycle(GRIDS[:3]), strict=False):
            inputs = native.random_inputs(generator, dtype, n, count)
            check_fold(host, pair, inputs, alignment=alignment, grid=grid)


@pytest.mark.parametrize("dtype", DTYPES)
def test_targets_may_take_the_place_of_operands(
    host: KernelsOnHost, pairs: list[tuple[str, str]], dtype: str
) -> None:
    """Whichever thread comes first: none writes what another has still to read."""
    generator = np.random.default_rng(len(dtype) + 1)
    pair = of_dtype(pairs, dtype)[0]
    for n, alignment in itertools.product((1, 2, 3, 4, 6), ALIGNMENTS):
        inputs = native.random_inputs(generator, dtype, n, 333)
        for targets in [(0,), (n - 1,), (n - 1, -1), (-1, 0), (-1, -2, -3), tuple(range(n)), ()]:
            for backwards in (False, True):
                check_fold(host, pair, inputs, targets, alignment, (2, 3), backwards)


@pytest.mark.parametrize("dtype", DTYPES)
def test_as_many_operands_and_targets_as_fit(
    host: KernelsOnHost, pairs: list[tuple[str, str]], dtype: str
) -> None:
    generator = np.random.default_rng(len(dtype) + 2)
    most = kernels.MOST_OPERANDS
    for pair in of_dtype(pairs, dtype)[:2]:
        inputs = native.random_inputs(generator, dtype, most, 77)
        check_fold(host, pair, inputs, targets=[*range(most - 5), -1, -2, -3, -4, -5])


def test_any_grid_covers_all(host: KernelsOnHost) -> None:
    generator = np.random.default_rng(7)
    for grid, count in itertools.product(GRIDS, (1, 15, 16, 17, 100, 1009, 5000)):
        for n in (1, 2, 3, 5):
            inputs = native.random_inputs(generator, "float32", n, count)
            check_fold(host, ("float32", "sum"), inputs, grid=grid)


def test_the_order_of_the_operands_is_the_order_of_the_sum(host: KernelsOnHost) -> None:
    values = [np.full(37, x, np.float32) for x in (1e8, -1e8, 1.0, 3.0)]
    for n in (3, 4):
        for order in itertools.permutations(values[:n]):
            check_fold(host, ("float32", "sum"), order)


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_infinity_zeros_and_subnormals(
    host: KernelsOnHost, pairs: list[tuple[str, str]], dtype: str
) -> None:
    """Every pair and triple of special values."""
    values = native.special_values(DTYPES[dtype][1])
    for n, pair in itertools.product([2, 3], of_dtype(pairs, dtype)):
        grid = np.array(list(itertools.product(range(len(values)), repeat=n)))
        check_fold(host, pair, [values[column] for column in grid.T])


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_nan_wins_and_of_two_zeros_the_later(
    host: KernelsOnHost, pairs: list[tuple[str, str]], dtype: str
) -> None:
    kind = DTYPES[dtype][1]
    first = np.array([np.nan, 1.0, 0.0, -0.0, np.nan, -np.inf], kind)
    second = np.array([1.0, np.nan, -0.0, 0.0, np.inf, np.nan], kind)
    for pair in {(dtype, "min"), (dtype, "max")} & set(pairs):
        memory = GuardedArrays([first, second], [0, 0])
        host.fold(number_of(pair), memory.addresses[1:], memory.addresses, len(first))
        found = memory.bytes[1].copy().view(kind)
        assert np.isnan(found).tolist() == [True, True, False, False, True, True]
        assert np.signbit(found[2:4]).tolist() == [True, False]


@pytest.mark.parametrize("dtype", HALVES)
def test_every_16_bit_float_survives_its_conversion(host: KernelsOnHost, dtype: str) -> None:
    """All 65536: x + -0.0 is x; what a NaN carries stays but for the bit that makes it quiet."""
    every = np.arange(65536, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        is_nan = np.isnan(every.view(DTYPES[dtype][1]))
    quiet = np.uint16(0x0200 if dtype == "float16" else 0x0040)
    memory = GuardedArrays([every, np.full_like(every, 0x8000)], [0, 0])
    host.fold(number_of((dtype, "sum")), memory.addresses[:1], memory.addresses, len(every))
    found = memory.bytes[0].copy().view(np.uint16)
    assert np.array_equal(found, np.where(is_nan, every | quiet, every))


@pytest.mark.parametrize("dtype", HALVES)
def test_16_bit_floats_round_once_to_nearest_even(host: KernelsOnHost, dtype: str) -> None:
    """Products have more digits than a half: ties, subnormals, overflow, each way of rounding."""
    kind = DTYPES[dtype][1]
    every = np.arange(65536, dtype=np.uint16).view(kind)
    for factor in np.array([1.5, 1.001, 2.0**-3, 1.25 * 2.0**-12, 3.0 * 2.0**7, 1e-30], kind):
        check_fold(host, (dtype, "prod"), [every, np.full_like(every, factor)])
        check_fold(host, (dtype, "sum"), [every, np.full_like(every, factor)])
    # Rounded after each addition, the small ones would vanish one by one.
    large = 2048.0 if dtype == "float16" else 256.0
    ones = [np.full(35, 1.0, kind)] * 4
    memory = GuardedArrays([np.full(35, large, kind), *ones], [0] * 5)
    host.fold(number_of((dtype, "sum")), memory.addresses[:1], memory.addresses, 35)
    assert np.all(memory.bytes[0].copy().view(kind).astype(np.float32) == large + 4)


def test_a_nan_of_a_gpu_stays_one(tmp_path: Path) -> None:
    """All its bits are set but the sign, which no NaN of this processor has: it is planted."""
    source = kernels.source().replace("return a + b;", "return same_bits<float>(0x7fffffffu);")
    pairs = [number_of((dtype, "sum")) for dtype in HALVES]
    host = KernelsOnHost(tmp_path, pairs, source)
    for pair, dtype in zip(pairs, HALVES, strict=True):
        memory = GuardedArrays([np.ones(3, DTYPES[dtype][1])] * 2, [0, 0])
        host.fold(pair, memory.addresses[:1], memory.addresses, 3)
        assert np.all(np.isnan(memory.bytes[0].copy().view(DTYPES[dtype][1])))


def test_integers_wrap(host: KernelsOnHost, pairs: list[tuple[str, str]]) -> None:
    """A product of two uint16 is more than an int holds, to which C++ promotes them."""
    for dtype, op in pairs:
        kind = DTYPES[dtype][1]
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            edges = np.array([limits.min, limits.max, 0, 1, limits.max - 1, limits.min + 1], kind)
            a, b, c = (x.reshape(-1) for x in np.meshgrid(edges, edges, edges))
            check_fold(host, (dtype, op), [a, b, c])


@pytest.mark.parametrize("dtype", FLOATS)
def test_divide(host: KernelsOnHost, dtype: str) -> None:
    kind = DTYPES[dtype][1]
    wide = np.float32 if dtype in HALVES else kind
    generator = np.random.default_rng(3)
    special = native.special_values(kind)
    for count, alignment in itertools.product(COUNTS, ALIGNMENTS):
        x = native.random_inputs(generator, dtype, 1, count)[0]
        x[: len(special)] = special[:count]
        for divisor, grid in zip((1, 3, 7, 2**20, 2**63 + 1), itertools.cycle(GRIDS), strict=False):
            with np.errstate(all="ignore"):
                wanted = (x.astype(wide) / np.asarray(divisor, wide)).astype(kind)
            memory = GuardedArrays([x], offsets_of(alignment, kind.itemsize, 2)[1:])
            host.divide(number_of((dtype, "sum")), memory.addresses[0], count, divisor, grid)
            assert native.same(memory.bytes[0].copy().view(kind), wanted), (count, alignment, grid)
            assert memory.margins_untouched()


PLANTS = [
    # A packet is loaded from where none may lie, or an element.
    ("units.cuh", "differing % packet_bytes != 0", "false"),
    ("units.cuh", "-first % packet_bytes / item", "0"),
    ("units.cuh", "(first | differing) % item == 0", "true"),
    # One element too few, or one too many, behind which nothing is mapped.
    ("units.cuh", "return {count - packed,", "return {count - packed - 1,"),
    ("units.cuh", "return {count - packed,", "return {count - packed + 1,"),
    # A thread takes what is another's.
    ("units.cuh", "unit < units.count; unit += threads", "unit < units.count; unit += 1"),
    ("units.cuh", "unit += size * threads", "unit += threads"),
    ("units.cuh", "first + u * apart", "first + u"),
    # A target is written before all operands are read.
    ("fold.cu", "loaded = next;", "loaded = next; next.store(o.targets[0], where);"),
    # Of many operands one is left out.
    ("fold.cu", "int k = 2;", "int k = 3;"),
]  # fmt: skip


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant[2][:40])
def test_a_mistake_in_the_source_is_found(tmp_path: Path, plant: tuple[str, str, str]) -> None:
    file, sound, wrong = plant
    text = (Path(kernels.__file__).parent / file).read_text()
    assert text.count(sound) == 1
    source = kernels.source().replace(sound, wrong)
    pair = ("float32", "sum")
    faulty = KernelsOnHost(tmp_path, [number_of(pair)], source)

    def everything() -> None:
        generator = np.random.default_rng(0)
        for n, alignment in itertools.product((2, 5), ALIGNMENTS):
            inputs = native.random_inputs(generator, "float32", n, 333)
            for targets, backwards in itertools.product([(-1,), (0,), (n - 1,)], (False, True)):
                check_fold(faulty, pair, inputs, targets, alignment, (2, 3), backwards)

    with pytest.raises(AssertionError):
        everything()
