"""What a process holds of ours, to compare before and after: mappings, descriptors, threads."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import NamedTuple

_PATIENCE = 3.0  # seconds for threads on their way out


class Held(NamedTuple):
    """How many of each."""

    mappings: int
    descriptors: int
    threads: int


NOTHING = Held(mappings=0, descriptors=1 << 30, threads=1 << 30)
"""No mapping; how many descriptors and threads a process may have is not known yet."""


def held() -> Held:
    """What this process holds now."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    return Held(
        mappings=maps.count("/memfd:collectives") + maps.count("/dev/shm/collectives"),
        descriptors=len(list(Path("/proc/self/fd").iterdir())),
        threads=len(list(Path("/proc/self/task").iterdir())),
    )


def left_over(before: Held) -> str:
    """What this process holds more than before, in words; waits for threads that are ending."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        gc.collect()  # each time: what such a thread has held may be in a circle
        more = [
            f"{name}: {then} before, {now} now"
            for name, then, now in zip(Held._fields, before, held(), strict=True)
            if now > then
        ]
        if not more or time.monotonic() > deadline:
            return ", ".join(more)
        time.sleep(0.01)
