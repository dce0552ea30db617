"""NVRTC, the compiler of CUDA C++ that needs neither GPU nor toolkit: its wheel, by ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGE = "nvidia-cuda-nvrtc"


class CompilationError(Exception):
    """What the compiler had to say."""


def nvrtc_files() -> list[Path]:
    """The libraries in the wheel, what the compiler opens by itself before the compiler."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise AssertionError(
            f"these tests compile for GPUs and need {PACKAGE}: pip install {PACKAGE}"
        ) from None
    found = {file.name: Path(str(file.locate())) for file in files}
    names = sorted(name for name in found if name.startswith("libnvrtc") and ".alt." not in name)
    assert len(names) == 2, f"{PACKAGE}: expected the compiler and its builtins, found {names}"
    return [found[name] for name in names]  # libnvrtc-builtins.so.*, libnvrtc.so.*


@cache
def _library() -> ctypes.CDLL:
    # It looks for its builtins by name only: loaded before, they are found wherever they lie.
    builtins, compiler = nvrtc_files()
    ctypes.CDLL(str(builtins))
    library = ctypes.CDLL(str(compiler))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def _check(result: int) -> None:
    if result:
        raise CompilationError(_library().nvrtcGetErrorString(result).decode())


def _text(program: ctypes.c_void_p, what: str) -> str:
    """What nvrtcGet`what` gives."""
    size = ctypes.c_size_t()
    _check(getattr(_library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _check(getattr(_library(), f"nvrtcGet{what}")(program, text))
    return text.value.decode()


def ptx_of(source: str, options: Sequence[str], architecture: str) -> str:
    """The PTX of a source for `architecture`.

    Given as `sm_90` and not as `compute_90`, that PTX has been assembled for the processor, too.

    Raises:
        CompilationError: it does not compile, or the compiler has warnings.
    """
    library = _library()
    program = ctypes.c_void_p()
    _check(
        library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"source.cu", 0, None, None
        )
    )
    words = [option.encode() for option in (*options, f"--gpu-architecture={architecture}")]
    try:
        result = library.nvrtcCompileProgram(
            program, len(words), (ctypes.c_char_p * len(words))(*words)
        )
        log = _text(program, "ProgramLog").strip()
        if result or log:
            raise CompilationError(log or library.nvrtcGetErrorString(result).decode())
        return _text(program, "PTX")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
