"""Kernels made for a GPU, by the compiler that comes with cupy, and kept for the next program.

Not by cupy's own way to compile a source, which tells the compiler to take subnormal numbers for
zero, whatever else it was told: the bits would not be the processor's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

from transports.cuda_ipc.device import DeviceError
from transports.cuda_ipc.kernels import compile_options, source


def compiled(nvrtc: Any, dtype: int, op: int, architecture: str, folder: Path | None) -> bytes:
    """The kernels of a pair, as numbered in kernels.hpp, for the driver to load.

    Args:
        nvrtc: `cupy.cuda.nvrtc`.
        dtype: of the elements.
        op: the operation.
        architecture: `sm_90`, say; `compute_90` for what a driver still has to assemble.
        folder: where they are kept and may be found; None: nowhere.

    Raises:
        DeviceError: they cannot be compiled.
        ValueError: the type does not have the operation.
    """
    text, options = source(), (*compile_options(dtype, op), f"-arch={architecture}")
    name = hashlib.sha256(repr((text, options, nvrtc.getVersion())).encode()).hexdigest()
    path = None if folder is None else folder / f"{name[:40]}.cubin"
    if path is not None:
        with contextlib.suppress(OSError):
            return path.read_bytes()
    found = _compiled(nvrtc, text, options)
    if path is not None:
        _keep(path, found)
    return found


def default_folder() -> Path | None:
    """In the user's cache; None: there is none."""
    cache, home = os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME")
    if not cache and not home:
        return None
    return (Path(cache) if cache else Path(str(home)) / ".cache") / "collectives" / "kernels"


def _compiled(nvrtc: Any, text: str, options: tuple[str, ...]) -> bytes:
    program = nvrtc.createProgram(text, "fold.cu", (), ())
    try:
        nvrtc.compileProgram(program, options)
        if options[-1].startswith("-arch=sm_"):
            return bytes(nvrtc.getCUBIN(program))
        found = nvrtc.getPTX(program)
        return found if isinstance(found, bytes) else found.encode()
    except nvrtc.NVRTCError as error:
        said = nvrtc.getProgramLog(program).strip() or "nothing more"
        raise DeviceError(
            f"kernels cannot be compiled with {options[-1]}: {error}: {said}"
        ) from None
    finally:
        nvrtc.destroyProgram(program)


def _keep(path: Path, data: bytes) -> None:
    """Whole or not at all, and only if it can be: several ranks do so at once."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(data)
        draft.replace(path)
