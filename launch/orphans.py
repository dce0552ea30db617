"""Processes of our jobs whose launcher has gone and that nothing has ended.

The kernel ends the ranks of a launcher that is killed, and the job's guard what they had started
(see `launch.sweeping`). What is left nevertheless has had its guard killed as well, or has asked
the kernel not to be ended with its parent.

Whoever ends such processes must be sure whom he meets. A process is an orphan if it says in the
environment it was started with both its job and its launcher, the latter by number and start, so
that a number used anew is no living launcher. It is held by a pidfd before it is looked at, and
ended through that, so that no number is believed twice. Of other users, of other pid or time
namespaces, and of ranks that other launchers have started nothing is known, and nothing is touched.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from launch.sweeping import JOB_VARIABLE, environments

LAUNCHER_VARIABLE = "COLLECTIVES_LAUNCHER"
GRACE = 2.0  # seconds that an orphan gets to end by itself

_PROC = Path("/proc")
_NAMESPACES = ("pid", "time")  # in which numbers and starts of processes mean what they mean here
_SHOWN = 120


@dataclass(frozen=True, kw_only=True)
class Orphan:
    """One of them; `pidfd` belongs to who asked for it."""

    pid: int
    age: float
    command: str
    job: str
    pidfd: int


def launcher_mark() -> str:
    """How a launcher's ranks name it: by number and start of this process."""
    return f"{os.getpid()}.{_status(os.getpid())[_START]}"


def launcher_lives(mark: str) -> bool:
    """Whether the launcher of that mark runs; true if that cannot be told."""
    try:
        pid, start = map(int, mark.split("."))
        with contextlib.closing(_Held(pid)) as held:
            return int(_status(pid)[_START]) == start and not held.ended()
    except (ProcessLookupError, FileNotFoundError):
        return False
    except (ValueError, OSError):
        return True


def find_orphans(stack: ExitStack, job: str | None = None) -> list[Orphan]:
    """All that there are, or those of one job; `stack` closes their pidfds.

    Raises:
        OSError: this kernel, or a filter of system calls, has no pidfds.
    """
    with contextlib.closing(_Held(os.getpid())):
        pass
    spared = set(_ancestors(os.getpid()))
    found = []
    for pid, _ in environments():
        with ExitStack() as held, contextlib.suppress(OSError, ValueError):
            if pid in spared or not _comparable(pid) or _is_starting(pid):
                continue
            process = held.enter_context(contextlib.closing(_Held(pid)))
            orphan = _looked_at(process, job)
            if orphan is not None:
                found.append(orphan)
                held.pop_all()
                stack.callback(process.close)
    return sorted(found, key=lambda orphan: orphan.pid)


def end_orphans(orphans: Sequence[Orphan], grace: float = GRACE) -> list[Orphan]:
    """Ends them: asks first, kills those that have not gone after `grace` seconds.

    Returns:
        Those that outlive even the kill (stuck in the kernel); normally none.
    """
    left = list(orphans)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for orphan in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(orphan.pidfd, number)
        deadline = time.monotonic() + grace
        while left and (seconds := deadline - time.monotonic()) > 0:
            _readable([orphan.pidfd for orphan in left], seconds)
            left = [orphan for orphan in left if not _has_ended(orphan.pidfd)]
    return left


class _Held:
    """A process by its pidfd, which means the same one for good."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)

    def ended(self) -> bool:
        """Whether all its threads have, reaped or not."""
        return _has_ended(self.pidfd)

    def close(self) -> None:
        os.close(self.pidfd)


def _looked_at(process: _Held, job: str | None) -> Orphan | None:
    """The orphan that the process is, if it is one."""
    folder = _PROC / str(process.pid)
    started_with = dict(_variables((folder / "environ").read_bytes()))
    of_job, launcher = started_with.get(JOB_VARIABLE), started_with.get(LAUNCHER_VARIABLE)
    if not of_job or not launcher or job not in (None, of_job) or launcher_lives(launcher):
        return None
    words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    since_boot = float((_PROC / "uptime").read_text().split()[0])
    started = int(_status(process.pid)[_START]) / os.sysconf("SC_CLK_TCK")
    # All this was read by number; if it still runs, the number was its own all the while.
    if process.ended():
        return None
    return Orphan(
        pid=process.pid,
        age=max(0.0, since_boot - started),
        command=" ".join(words).strip()[:_SHOWN],
        job=of_job,
        pidfd=process.pidfd,
    )


def _variables(environment: bytes) -> Iterator[tuple[str, str]]:
    for line in environment.split(b"\0"):
        name, _, value = line.decode(errors="replace").partition("=")
        yield name, value


_PARENT, _START = 1, 19  # of the fields behind the command, which may hold anything


def _status(pid: int) -> list[str]:
    return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()


def _comparable(pid: int) -> bool:
    """Whether a process is this user's, and its numbers mean the same as ours."""
    folder = _PROC / str(pid)
    if folder.stat().st_uid != os.getuid():
        return False
    return all(
        (folder / "ns" / name).readlink() == (_PROC / "self" / "ns" / name).readlink()
        for name in _NAMESPACES
        if (_PROC / "self" / "ns" / name).exists()
    )


def _ancestors(pid: int) -> Iterator[int]:
    """The processes above `pid`: whoever calls from one must not end it."""
    while pid > 1:
        try:
            pid = int(_status(pid)[_PARENT])
        except OSError:
            return
        yield pid


def _is_starting(pid: int) -> bool:
    """Whether it is about to run a program for this process, whose environment it shows still."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    own = Path("/proc/self/cmdline").read_bytes()
    return command == own and next(_ancestors(pid), 0) == os.getpid()


def _has_ended(pidfd: int) -> bool:
    return _readable([pidfd], 0.0)


def _readable(pidfds: Sequence[int], seconds: float) -> bool:
    """Whether one of the processes ends in that time, or has."""
    ending = select.poll()
    for pidfd in pidfds:
        ending.register(pidfd, select.POLLIN)
    return bool(ending.poll(seconds * 1000))
