"""Whether this machine can start so many ranks at all: processes, open files, memory.

Only what is certain is refused, and before anything starts: every need is counted from below. Half
a job that the kernel then kills, or the launcher with it, tells nobody what was missing.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

from transports.allowances import available_memory, group_folders, number_in

SYSTEM = Path("/proc")

# What one rank is known to take, measured as memory of its own (Anonymous in smaps_rollup) with
# eight ranks of CPython 3.11 on Linux, numpy 2: 3.1 MB for an empty script, 19.8 MB once it has
# called `collectives.init()`. Below both, since other builds are smaller and a refusal is final.
INTERPRETER_BYTES = 3_000_000
MEMBER_BYTES = 16_000_000

DESCRIPTORS_PER_RANK = 3  # two pipes and a pidfd: see `launch.processes`
_OTHER_DESCRIPTORS = 8  # the selector, the guard's pipe, the port, what starting a rank takes
_OTHER_PROCESSES = 1  # the guard

_EXEMPT = (1 << 21) | (1 << 24)  # CAP_SYS_ADMIN, CAP_SYS_RESOURCE: RLIMIT_NPROC does not bind them


def check_room(ranks: int, *, descriptors: int, memory: int) -> None:
    """Refuses more ranks than can be started.

    Args:
        ranks: how many.
        descriptors: files that each keeps open in this process.
        memory: bytes that each takes at least.

    Raises:
        ValueError: something will not do; the text says what is needed and what is there.
    """
    short = [
        text
        for text in (
            _short_of_processes(ranks + _OTHER_PROCESSES),
            _short_of_files(ranks * descriptors),
            _short_of_memory(ranks, memory),
        )
        if text
    ]
    if short:
        raise ValueError(f"{ranks:,} ranks cannot be started here: " + "; ".join(short))


def _short_of_processes(needed: int) -> str:
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    bound = limit != resource.RLIM_INFINITY and not _is_exempt()
    if bound and needed > (left := limit - own_threads()):
        return (
            f"{needed:,} processes needed, {max(0, left):,} of {limit:,} left "
            "(RLIMIT_NPROC, ulimit -u)"
        )
    for folder in group_folders("pids"):
        allowed, current = number_in(folder / "pids.max"), number_in(folder / "pids.current") or 0
        if allowed is not None and needed > allowed - current:
            left = max(0, allowed - current)
            return f"{needed:,} processes needed, {left:,} left ({folder / 'pids.max'})"
    for name in ("pid_max", "threads-max"):
        path = SYSTEM / "sys" / "kernel" / name
        allowed = number_in(path)
        if allowed is not None and needed > allowed:
            return f"{needed:,} processes needed, {allowed:,} on the whole machine ({path})"
    return ""


def _short_of_files(needed: int) -> str:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return ""
    left = limit - len(list((SYSTEM / "self" / "fd").iterdir())) - _OTHER_DESCRIPTORS
    if needed <= left:
        return ""
    return (
        f"{needed:,} open files needed by the launcher, {max(0, left):,} of {limit:,} left "
        "(RLIMIT_NOFILE, ulimit -n)"
    )


def _short_of_memory(ranks: int, each: int) -> str:
    left, where = available_memory()
    needed = ranks * each
    if needed <= left:
        return ""
    return (
        f"at least {needed / 1e9:,.1f} GB of memory needed ({each / 1e6:.0f} MB a rank), "
        f"{left / 1e9:,.1f} GB available ({where})"
    )


def _is_exempt() -> bool:
    """Whether RLIMIT_NPROC does not bind this process, as the kernel decides it."""
    if os.getuid() == 0:
        return True
    return bool(int(_fields(SYSTEM / "self" / "status").get("CapEff", "0"), 16) & _EXEMPT)


def own_threads(system: Path = SYSTEM) -> int:
    """Threads of this user that can be seen: what RLIMIT_NPROC counts."""
    found = 0
    for folder in system.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if folder.stat().st_uid == os.getuid():
                found += int(_fields(folder / "status").get("Threads", "1"))
        except OSError:  # it has ended meanwhile
            continue
    return found


def _fields(path: Path) -> dict[str, str]:
    try:
        parts = [line.partition(":") for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {name: text.strip() for name, _, text in parts}
