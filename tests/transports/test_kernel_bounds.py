"""Kernels neither read nor write beyond the ends of what they are given, and stream what they copy.

Arrays end where a page ends behind which nothing is mapped, or begin where one begins: whoever
touches a byte more ends the process. Hence all of it runs in a process of its own.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from transports import _native

HERE = Path(__file__)


def load(name):
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, HERE.with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


kernels = load("test_kernels")
instruction_set_restored = kernels.instruction_set_restored
PAGE = mmap.PAGESIZE
AHEAD = 1024  # bytes that long reads are asked for ahead
LENGTHS = sorted(
    {0, 1, 2, 3, 15, 16, 17, 31, 33, 63, 64, 65, 127, 255, 4096, 8192}
    | {base + off for base in (AHEAD, AHEAD + 64, AHEAD + 128, AHEAD + 256, 2 * AHEAD, 3000)
       for off in (-1, 0, 1, 64)}
)  # fmt: skip


ADDRESSES = (0, 1, 2, 3, 4, 7, 8, 16, 17, 24, 31, 32, 33, 40, 48, 63, 64, 65)


class Guarded:
    """Bytes between two pages that nobody may touch."""

    def __init__(self, nbytes):
        room = -(-max(nbytes, 1) // PAGE) * PAGE
        self._memory = mmap.mmap(-1, room + 2 * PAGE)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        libc = ctypes.CDLL(None, use_errno=True)
        for at in (0, room + PAGE):
            assert libc.mprotect(ctypes.c_void_p(self._base + at), PAGE, 0) == 0
        middle = np.frombuffer(self._memory, np.uint8)[PAGE : PAGE + room]
        self.first, self.last = middle[:nbytes], middle[room - nbytes :]


def stream(source, out):
    """A copy past the caches."""
    kernels.reduce("uint8", "sum", [source], out, stores=1)


def test_streams_copy_at_every_alignment_and_length():
    source = np.random.default_rng(0).integers(0, 256, 20_000, np.uint8)
    for name in kernels.instruction_sets():
        _native.use_instruction_set(name)
        for length, begin, to in itertools.product(LENGTHS, (0, 1, 7, 32), range(0, 65, 3)):
            out = np.full(length + 256, 0xA5, np.uint8)
            stream(source[begin : begin + length], out[to : to + length])
            assert np.array_equal(out[to : to + length], source[begin : begin + length])
            assert np.all(out[:to] == 0xA5) and np.all(out[to + length :] == 0xA5)
        for to in range(129):
            out = np.zeros(400, np.uint8)
            stream(source[:200], out[to : to + 200])
            assert np.array_equal(out[to : to + 200], source[:200]) and out.sum() == int(
                source[:200].sum(dtype=np.int64)
            )


@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_reductions_round_the_distance_they_ask_ahead(dtype):
    kind = kernels.DTYPES[dtype][1]
    generator = np.random.default_rng(4)
    counts = sorted({length // kind.itemsize for length in LENGTHS if length >= AHEAD - 64})
    ops = (
        ["sum", "min"]
        if dtype in kernels.FLOATS
        else ["sum", "bxor" if dtype != "bool" else "band"]
    )
    for name, n, count in itertools.product(kernels.instruction_sets(), (1, 2, 3, 4, 7), counts):
        _native.use_instruction_set(name)
        for op in ops:
            inputs = kernels.random_inputs(generator, dtype, n, count)
            wanted = kernels.expected(dtype, op, inputs)
            for stores in (0, 1, 2):
                out, also = np.zeros_like(inputs[0]), np.zeros_like(inputs[0])
                kernels.reduce(dtype, op, [kernels.bits(x) for x in inputs], kernels.bits(out),
                               kernels.bits(also), stores)  # fmt: skip
                assert kernels.same(out, wanted) and kernels.same(also, wanted), (
                    name,
                    op,
                    n,
                    stores,
                )


@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_results_past_the_caches_at_every_address(dtype):
    """Also where no element of the result is aligned, and none beside it may change."""
    kind = kernels.DTYPES[dtype][1]
    op, generator = "sum" if dtype != "bool" else "band", np.random.default_rng(6)
    for name, n, to in itertools.product(kernels.instruction_sets(), (1, 2, 3), ADDRESSES):
        _native.use_instruction_set(name)
        for count in (0, 1, 5, 100):
            inputs = kernels.random_inputs(generator, dtype, n, count)
            room = np.full(count * kind.itemsize + 256, 0xA5, np.uint8)
            other = room.copy()
            out = room[to : to + count * kind.itemsize]
            shift = to + 32 * (to % 2) + 8 * (to % 3)  # aligned as out is, or not
            also = other[shift : shift + out.size]
            wanted = kernels.expected(dtype, op, inputs)
            kernels.reduce(dtype, op, [kernels.bits(x) for x in inputs], out, also, 1 + to % 2, 9)
            for each, begin, within in ((out, to, room), (also, shift, other)):
                assert kernels.same(each.copy().view(kind), wanted), (name, n, to, count)
                assert np.all(within[:begin] == 0xA5) and np.all(within[begin + out.size :] == 0xA5)


def check_ends():
    """In a process of its own: every kernel on arrays that end, or begin, at forbidden pages."""
    generator = np.random.default_rng(9)
    most = max(LENGTHS) + 64
    guards = [Guarded(most) for _ in range(6)]
    for name, end in itertools.product(kernels.instruction_sets(), ("first", "last")):
        _native.use_instruction_set(name)

        def place(index, x, end=end):
            memory = getattr(guards[index], end)
            found = memory[: x.nbytes] if end == "first" else memory[memory.size - x.nbytes :]
            found[:] = x.view(np.uint8)
            return found

        for length in LENGTHS:
            x = generator.integers(0, 256, length, np.uint8)
            out = place(1, np.zeros(length, np.uint8))
            stream(place(0, x), out)
            assert np.array_equal(out, x)
            for dtype, n in itertools.product(
                ("float32", "float16", "bfloat16", "float64", "int8", "uint64", "bool"), (1, 2, 4)
            ):
                count = length // kernels.DTYPES[dtype][1].itemsize
                inputs = kernels.random_inputs(generator, dtype, n, count)
                placed = [place(index, each) for index, each in enumerate(inputs)]
                out, also = (place(index, np.zeros_like(inputs[0])) for index in (4, 5))
                kernels.reduce(dtype, "sum", placed, out, also, stores=n % 3)
                wanted = kernels.expected(dtype, "sum", inputs)
                for each in (out, also):
                    assert kernels.same(each.copy().view(kernels.DTYPES[dtype][1]), wanted), (
                        name,
                        dtype,
                        n,
                        count,
                    )
                if dtype in kernels.FLOATS:
                    _native.divide(kernels.DTYPES[dtype][0], out, 3)


def run_alone(code):
    before = f"import sys; sys.path[:0] = {[str(HERE.parent), str(HERE.parents[2])]!r}\n"
    return subprocess.run(
        [sys.executable, "-c", before + code], capture_output=True, text=True, check=False
    )


def test_nothing_is_touched_beyond_the_ends():
    ended = run_alone("import test_kernel_bounds as t; t.check_ends()")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("at", ["first", "last"])
def test_whoever_touches_a_byte_more_ends(at):
    """The pages are what they are said to be."""
    step = {"first": "g._base + t.PAGE - 1", "last": "g._base + 2 * t.PAGE"}[at]
    ended = run_alone(
        f"import ctypes, test_kernel_bounds as t\ng = t.Guarded(5); ctypes.string_at({step}, 1)"
    )
    assert ended.returncode == -11, ended.stderr
