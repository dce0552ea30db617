"""The kernels of transports/cuda_ipc as C++ for the CPU: what they compute, without a GPU.

The very source that is compiled for a GPU, with `cuda_on_host.hpp` for what CUDA adds to C++. What
the GPU has instructions for is the source's own C++ here.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from transports.cuda_ipc import kernels

OPTIONS = (
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-O0",  # hundreds of variants of a kernel are compiled to run for a millisecond each
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-Wno-unused-function",
    "-ffp-contract=off",
    # Above all of addresses: a GPU has no load of 16 bytes from any address but multiples of 16.
    "-fsanitize=undefined",
    "-fsanitize-undefined-trap-on-error",
)


class KernelsOnHost:
    """Kernels for some pairs of type and operation, compiled in `folder`."""

    def __init__(
        self, folder: Path, pairs: Iterable[tuple[int, int]], source: str | None = None
    ) -> None:
        """`source` takes the place of the kernels' own."""
        text = folder / "source.cu"
        text.write_text(source or kernels.source())
        numbers = list(pairs)
        halves = [half for half in (numbers[::2], numbers[1::2]) if half]
        with ThreadPoolExecutor() as threads:
            libraries = threads.map(
                lambda index: _compiled(folder / f"kernels{index}.cpp", halves[index], text),
                range(len(halves)),
            )
        self._libraries = {
            pair: library for half, library in zip(halves, libraries, strict=True) for pair in half
        }

    def fold(
        self,
        pair: tuple[int, int],
        targets: Sequence[int],
        operands: Sequence[int],
        count: int,
        grid: tuple[int, int] = (1, 1),
        backwards: bool = False,
    ) -> None:
        """Run `fold`, as launched with `grid`; threads in their order, or `backwards`.

        Raises:
            AssertionError: it touched what it may not, or did what C++ leaves undefined.
        """
        self._run("fold", pair, kernels.fold_argument(targets, operands, count), grid, backwards)

    def divide(
        self,
        pair: tuple[int, int],
        data: int,
        count: int,
        divisor: int,
        grid: tuple[int, int] = (1, 1),
    ) -> None:
        """Run `divide`; raises as `fold` does."""
        self._run("divide", pair, kernels.divide_argument(data, count, divisor), grid, False)

    def _run(
        self,
        name: str,
        pair: tuple[int, int],
        argument: np.ndarray,
        grid: tuple[int, int],
        backwards: bool,
    ) -> None:
        function = self._libraries[pair][f"{name}_{pair[0]}_{pair[1]}"]
        ended = function(ctypes.c_void_p(argument.ctypes.data), *grid, int(backwards))
        assert ended == 0, f"{name} of {pair} in {grid}: {signal.Signals(ended).name}"


def _compiled(program: Path, pairs: Iterable[tuple[int, int]], source: Path) -> ctypes.CDLL:
    program.write_text(
        '#include "cuda_on_host.hpp"\n' + "".join(_in_a_namespace(*pair, source) for pair in pairs)
    )
    library = program.with_suffix(".so")
    words = [*_compiler(), *OPTIONS, f"-I{Path(__file__).parent}", str(program)]
    done = subprocess.run([*words, "-o", str(library)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def _compiler() -> list[str]:
    if chosen := os.environ.get("CXX"):
        return chosen.split()
    found = [name for name in ("g++", "c++", "clang++") if shutil.which(name)]
    assert found, "these tests compile C++ and need g++ or clang++"
    return found[:1]


def _in_a_namespace(dtype: int, op: int, source: Path) -> str:
    """The whole source once more, with the macros of one pair."""
    options = [option[2:] for option in kernels.compile_options(dtype, op) if option[:2] == "-D"]
    macros = dict(option.split("=") for option in options)
    pair = f"{dtype}_{op}"
    names = {"fold": "Fold"} | ({"divide": "Divide"} if dtype <= 3 else {})
    return "\n".join(
        [
            *(f"#define {name} {value}" for name, value in macros.items()),
            f"namespace pair_{pair} {{",
            f'#include "{source}"',
            "}",
            *(f"#undef {name}" for name in macros),
            *(
                f'extern "C" int {name}_{pair}(const void* argument, unsigned int blocks, '
                "unsigned int threads, int backwards) { return on_host::run_grid"
                f"<const pair_{pair}::{struct}>(pair_{pair}::{name}, argument, blocks, threads, "
                "backwards); }"
                for name, struct in names.items()
            ),
            "",
        ]
    )
