"""Kernels made for a GPU, by the compiler that comes with cupy, and kept for the next program.

Not by cupy's own way to compile a source, which tells the compiler to take subnormal numbers for
zero, whatever else it was told: the bits would not be the processor's.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from pathlib import Path
from typing import Any

from transports.cuda_ipc.device import DeviceError
from transports.cuda_ipc.kernels import compile_options, source


def compiled(
    nvrtc: Any, dtype: int, op: int, architecture: str, folder: Path | None, *, anew: bool = False
) -> bytes:
    """The kernels of a pair, as numbered in kernels.hpp, for the driver to load.

    Args:
        nvrtc: `cupy.cuda.nvrtc`.
        dtype: of the elements.
        op: the operation.
        architecture: `sm_90`, say; `compute_90` for what a driver still has to assemble.
        folder: where they are kept and may be found; None: nowhere.
        anew: do not look there.

    Raises:
        DeviceError: they cannot be compiled.
        ValueError: the type does not have the operation.
    """
    text, options = source(), (*compile_options(dtype, op), f"-arch={architecture}")
    name = hashlib.sha256(repr((text, options, nvrtc.getVersion())).encode()).hexdigest()
    path = None if folder is None else folder / f"{name[:40]}.cubin"
    if path is not None and not anew:
        with contextlib.suppress(OSError):
            if kept := path.read_bytes():
                return kept
    found = _compiled(nvrtc, text, options)
    if path is not None:
        _keep(path, found)
    return found


def architecture_for(capability: int, nvrtc: Any) -> str:
    """What to compile for a device of a compute capability, 90 for 9.0.

    Of one that is newer than the compiler, what its driver assembles: of the newest before it.
    """
    known = sorted(map(int, nvrtc.getSupportedArchs()))
    if capability in known:
        return f"sm_{capability}"
    return f"compute_{max(each for each in known if each < capability)}"


def _compiled(nvrtc: Any, text: str, options: tuple[str, ...]) -> bytes:
    program = nvrtc.createProgram(text, "fold.cu", (), ())
    try:
        nvrtc.compileProgram(program, options)
        if options[-1].startswith("-arch=sm_"):
            return bytes(nvrtc.getCUBIN(program))
        return bytes(nvrtc.getPTX(program))
    except nvrtc.NVRTCError as error:
        said = nvrtc.getProgramLog(program).strip() or "nothing more"
        raise DeviceError(
            f"kernels cannot be compiled with {options[-1]}: {error}: {said}"
        ) from None
    finally:
        nvrtc.destroyProgram(program)


def _keep(path: Path, data: bytes) -> None:
    """Whole or not at all, and only if it can be: several ranks do so at once."""
    draft = None
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            draft = Path(file.name)
            file.write(data)
        draft.replace(path)
        draft = None
    if draft is not None:
        with contextlib.suppress(OSError):
            draft.unlink()
