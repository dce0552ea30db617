"""What a launch of the kernels for GPUs is given: options, arguments by value, and a grid."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from transports.cuda_ipc import kernels

FLOAT32, INT32, SUM, BAND = 2, 6, 0, 4


def test_options_name_the_pair_and_forbid_what_would_change_bits() -> None:
    options = kernels.compile_options(INT32, BAND)
    assert {"-DDTYPE=6", "-DOP=4", "--fmad=false", "--ftz=false", "--prec-div=true"} < set(options)


def test_the_source_needs_no_header() -> None:
    assert not re.search(r"^\s*#\s*include", kernels.source(), re.MULTILINE)


def test_a_fold_is_packed_as_the_source_has_it() -> None:
    """`const void* operands[64]; void* targets[64]; unsigned long long; int; int`."""
    argument = kernels.fold_argument([2**63 + 1, 5], [3, 2**64 - 1, 7], 2**40)
    assert argument.shape == ()
    words = np.frombuffer(argument.tobytes(), np.uint64)
    assert len(words) == 2 * 64 + 2
    assert words[:4].tolist() == [3, 2**64 - 1, 7, 0]
    assert words[64:67].tolist() == [2**63 + 1, 5, 0]
    assert words[128] == 2**40
    assert words[129:].view(np.int32).tolist() == [3, 2]
    assert not np.any(words[4:64]) and not np.any(words[66:128])


def test_a_division_is_packed_as_the_source_has_it() -> None:
    """`void* data; unsigned long long count; unsigned long long divisor`."""
    argument = kernels.divide_argument(2**63 + 1, 2**40, 3)
    assert argument.shape == ()
    assert np.frombuffer(argument.tobytes(), np.uint64).tolist() == [2**63 + 1, 2**40, 3]


def test_as_many_as_fit_are_packed() -> None:
    every = list(range(1, 65))
    argument = kernels.fold_argument(every, every[::-1], 0)
    assert argument["targets"].tolist() == every
    assert argument["operands"].tolist() == every[::-1]


@pytest.mark.parametrize(("nbytes", "blocks"), [
    (0, 1), (1, 1), (4096, 1), (4097, 2), (1 << 20, 256), (1 << 40, 4 * 132),
])  # fmt: skip
def test_a_grid_has_a_thread_for_16_bytes_until_the_device_is_full(
    nbytes: int, blocks: int
) -> None:
    assert kernels.launch_shape(nbytes, 132) == (blocks, 256)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: kernels.fold_argument([1], [], 1), "operands: expected 1..64, found 0"),
    (lambda: kernels.fold_argument([1], [1] * 65, 1), "operands: expected 1..64, found 65"),
    (lambda: kernels.fold_argument([1] * 65, [1], 1), "targets: expected at most 64, found 65"),
    (lambda: kernels.fold_argument([1], [1], -1), "count: expected at least 0, found -1"),
    (lambda: kernels.divide_argument(1, -1, 2), "count: expected at least 0, found -1"),
    (lambda: kernels.divide_argument(1, 1, 0), "divisor: expected at least 1, found 0"),
    (lambda: kernels.launch_shape(-1, 8), "nbytes: expected at least 0, found -1"),
    (lambda: kernels.launch_shape(1, 0), "multiprocessors: expected at least 1, found 0"),
    (lambda: kernels.compile_options(FLOAT32, BAND), "dtype 2 has no op 4: expected one that"),
    (lambda: kernels.compile_options(13, SUM), "dtype: expected 0..12, found 13"),
    (lambda: kernels.compile_options(FLOAT32, 10), "op: expected 0..9, found 10"),
])  # fmt: skip
def test_a_wrong_argument_is_named_with_what_was_expected(
    call: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_nothing_of_a_device_is_needed_to_import() -> None:
    program = "import sys, transports.cuda_ipc.kernels; print('cupy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "False\n", done.stderr
