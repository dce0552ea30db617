"""The kernels of reductions on a GPU: their source, how to compile it, and what a launch is given.

The source is CUDA C++ that a compiler at run time takes without headers, once for each pair of a
type and an operation. It has the semantics of transports/native/kernels.hpp. The module for a pair
has the kernel `fold` and, for floats, `divide`, each with one argument that is passed by value.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from transports import _native

MOST_OPERANDS = 64
"""That one launch folds, and as many targets that it writes."""

FOLD = np.dtype(
    [
        ("operands", np.uint64, MOST_OPERANDS),
        ("targets", np.uint64, MOST_OPERANDS),
        ("count", np.uint64),
        ("operand_count", np.int32),
        ("target_count", np.int32),
    ],
    align=True,
)
"""`struct Fold` of fold.cu: the argument of `fold`."""

DIVIDE = np.dtype([("data", np.uint64), ("count", np.uint64), ("divisor", np.uint64)], align=True)
"""`struct Divide` of fold.cu: the argument of `divide`."""

_FILES = ("elements.cuh", "units.cuh", "fold.cu")
_THREADS = 256
_BYTES_AT_ONCE = 16  # of a thread, for each operand
# Of _THREADS threads each, with four loads of each operand on their way. By arithmetic, not
# measured: 128 KiB of a fold of two, where the fastest memory needs some 40 KiB to be kept busy.
_BLOCKS_PER_MULTIPROCESSOR = 4

Argument = np.ndarray[tuple[()], np.dtype[np.void]]
"""An array of no dimensions, which cupy passes to a kernel by value."""


@cache
def source() -> str:
    """One text of all files; what a compiler has to say names the file and its line."""
    folder = Path(__file__).parent
    return "".join(f'#line 1 "{name}"\n{(folder / name).read_text()}' for name in _FILES)


def compile_options(dtype: int, op: int) -> tuple[str, ...]:
    """For NVRTC, but for the architecture; `dtype` and `op` as numbered in kernels.hpp.

    Raises:
        ValueError: a number is out of range, or the type does not have the operation.
    """
    if not _native.supports(dtype, op):
        raise ValueError(f"dtype {dtype} has no op {op}: expected one that kernels.hpp supports")
    return (
        "--std=c++17",
        # The CPU's bits: every operation rounds by itself, subnormal numbers stay what they are.
        "--fmad=false",
        "--ftz=false",
        "--prec-div=true",
        f"-DDTYPE={dtype}",
        f"-DOP={op}",
        f"-DTHREADS={_THREADS}",
        f"-DMOST_OPERANDS={MOST_OPERANDS}",
        f"-DFOLD_BYTES={FOLD.itemsize}",
        f"-DDIVIDE_BYTES={DIVIDE.itemsize}",
    )


def fold_argument(targets: Sequence[int], operands: Sequence[int], count: int) -> Argument:
    """For `fold`: `count` elements of the operands, in their order, into every target.

    A target may be exactly one of the operands; otherwise nothing may overlap.

    Raises:
        ValueError: no operand or too many, too many targets, or a negative count.
    """
    if not 1 <= len(operands) <= MOST_OPERANDS:
        raise ValueError(f"operands: expected 1..{MOST_OPERANDS}, found {len(operands)}")
    if len(targets) > MOST_OPERANDS:
        raise ValueError(f"targets: expected at most {MOST_OPERANDS}, found {len(targets)}")
    argument = np.zeros((), FOLD)
    argument["operands"][: len(operands)] = operands
    argument["targets"][: len(targets)] = targets
    argument["count"] = _not_negative("count", count)
    argument["operand_count"] = len(operands)
    argument["target_count"] = len(targets)
    return argument


def divide_argument(data: int, count: int, divisor: int) -> Argument:
    """For `divide`: `count` elements at `data`, in place.

    Raises:
        ValueError: a negative count, or a divisor that is not positive.
    """
    if divisor < 1:
        raise ValueError(f"divisor: expected at least 1, found {divisor}")
    argument = np.zeros((), DIVIDE)
    argument["data"] = data
    argument["count"] = _not_negative("count", count)
    argument["divisor"] = divisor
    return argument


def launch_shape(nbytes: int, multiprocessors: int) -> tuple[int, int]:
    """Blocks, and threads of each, for a fold of operands of so many bytes, or to divide them.

    Every thread has one load of each operand, until the device is full; then each has more.

    Raises:
        ValueError: a negative length, or no multiprocessor.
    """
    if multiprocessors < 1:
        raise ValueError(f"multiprocessors: expected at least 1, found {multiprocessors}")
    wanted = -(-_not_negative("nbytes", nbytes) // (_BYTES_AT_ONCE * _THREADS))
    return max(1, min(wanted, _BLOCKS_PER_MULTIPROCESSOR * multiprocessors)), _THREADS


def _not_negative(name: str, value: int) -> int:
    if value < 0:
        raise ValueError(f"{name}: expected at least 0, found {value}")
    return value
