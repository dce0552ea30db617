"""On what a run was made: machine, versions, cores; for the header of its records."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from collectives.version import __version__
from transports import _native
from transports.caches import last_level_cache_bytes


def run_facts() -> dict[str, Any]:
    """Date, machine and versions."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": processor_name(),
            "cores": len(os.sched_getaffinity(0)),
            "threads_per_core": _threads_per_core(),
            "last_level_cache_bytes": last_level_cache_bytes(),
            "memory_bytes": psutil.virtual_memory().total,
            "kernel": platform.release(),
            "kernels": _native.instruction_set(),
        },
        "versions": {
            "collectives": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "command": sys.argv[1:],
    }


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model as the system names it."""
    try:
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
    except OSError:
        pass
    return platform.machine()


def _threads_per_core() -> int:
    """Hardware threads of a core, those that this process may use."""
    from launch.binding import core_place

    cores = os.sched_getaffinity(0)
    return len(cores) // max(1, len({core_place(core) for core in cores}))
