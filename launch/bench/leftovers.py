"""Shared-memory files that contenders' libraries would leave behind when their ranks are killed.

Ours have no names, hence nothing to leave. Others do: MPICH and DeepSpeed keep files in /dev/shm
until their ranks end by themselves. So what ranks have mapped there is noted while they live, and
removed after them if nobody else has it mapped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

SHARED = Path("/dev/shm")


def mapped_files(pids: Iterable[int], folder: Path = SHARED) -> set[Path]:
    """The files in `folder` that these processes have mapped, but for those without a name now."""
    pattern = re.compile(rf" ({re.escape(str(folder))}/\S+)$", re.MULTILINE)
    found: set[Path] = set()
    for pid in pids:
        with suppress(OSError):  # it has ended, or is another user's
            found |= {Path(name) for name in pattern.findall(Path(f"/proc/{pid}/maps").read_text())}
    return found


def remove_leftovers(files: Iterable[Path], folder: Path = SHARED) -> None:
    """Removes those of the files that still exist and that no process has mapped."""
    left = {file for file in files if file.exists()}
    if not left:
        return
    everyone = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    for file in left - mapped_files(everyone, folder):
        with suppress(OSError):
            file.unlink()
