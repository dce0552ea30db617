"""Asked in a process of its own: our native module, shared memory, the kernel, tuning files.

Prints a JSON object of names, each with a value or the error that was met instead.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Numbers of system calls that the C library does not wrap: membarrier, futex.
_CALLS = {"x86_64": (324, 202), "aarch64": (283, 98)}
_QUERY = 0
_EXPEDITED = 1 << 1 | 1 << 2  # MEMBARRIER_CMD_GLOBAL_EXPEDITED, and to register for it
_FUTEX_WAKE = 1


def kernel_set() -> str:
    """The set of reduction kernels that was chosen for this processor."""
    from transports import _native

    return _native.instruction_set()


def channel_bytes(ranks: int) -> int:
    """The memory that the channels of so many ranks take, with the settings of this environment."""
    from collectives import settings
    from transports import _native

    return _native.region_bytes(**settings.geometry().for_ranks(ranks))


def memory_source() -> dict[str, Any]:
    """Where shared memory comes from, and whether nobody can shrink it under a mapping."""
    from transports.shm.memory import allocate

    descriptor = allocate(os.sysconf("SC_PAGE_SIZE"))
    try:
        place = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        memfd = place.startswith("/memfd:")
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) if memfd else 0
        return {"memfd": memfd, "sealed": bool(seals & fcntl.F_SEAL_SHRINK)}
    finally:
        os.close(descriptor)


def tuning() -> dict[str, Any]:
    """Where the files of `collectives tune` lie or would, and whether they are there and usable."""
    from collectives import tuned

    folder = tuned.folder()
    tuned.machine_table()
    tuned.machine_model()
    there = folder is not None and (folder / tuned.TABLE).exists()
    return {"folder": None if folder is None else str(folder), "there": there}


def kernel_calls() -> dict[str, bool]:
    """Which of the calls there are by which ranks wait and are watched."""
    return {"membarrier": _has_membarrier(), "futex": _has_futex(), "pidfd_open": _has_pidfd()}


def looked_at(look: Callable[[], Any]) -> dict[str, Any]:
    """The value, or the error: one that is missing leaves the others."""
    try:
        return {"value": look()}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _has_membarrier() -> bool:
    """Whether one who goes to sleep can fence for all (transports/native/expedited.hpp)."""
    number, _ = _CALLS.get(platform.machine(), (0, 0))
    answer = ctypes.CDLL(None).syscall(number, _QUERY, 0, 0) if number else -1
    return answer >= 0 and answer & _EXPEDITED == _EXPEDITED


def _has_futex() -> bool:
    """Whether a wait can sleep in the kernel."""
    _, number = _CALLS.get(platform.machine(), (0, 0))
    word = ctypes.c_uint32(0)
    call = (number, ctypes.byref(word), _FUTEX_WAKE, 1, None, None, 0)
    return bool(number) and ctypes.CDLL(None).syscall(*call) >= 0


def _has_pidfd() -> bool:
    """Whether the end of a process can be watched by who did not start it."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


if __name__ == "__main__":
    answers = {
        "kernels": looked_at(kernel_set),
        "channels": looked_at(lambda: channel_bytes(int(sys.argv[1]))),
        "memory": looked_at(memory_source),
        "kernel_calls": looked_at(kernel_calls),
        "tuning": looked_at(tuning),
    }
    print(json.dumps(answers))
