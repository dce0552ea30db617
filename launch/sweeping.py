"""Ends every process that belongs to a job, even one whose launcher was killed.

A process belongs to a job if COLLECTIVES_JOB in the environment it was started with says so. Ranks
hand that variable on to whatever they start, so grandchildren are found even when they have left
their parent, its process group and its session. Before it is ended a process is held by its pidfd,
and looked at once more, so that a number that is used anew meanwhile is not mistaken for ours.

Run as a script, this file is the job's *guard*: a small process that waits until its launcher has
gone, however that came about, and then ends what is left of the job. It imports nothing of ours, so
that it starts in milliseconds (`python -I -S`).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

JOB_VARIABLE = "COLLECTIVES_JOB"

# The guard looks this often whether its launcher has gone without closing the pipe: a process that
# the launcher forked may hold the other end open.
GUARD_LOOKS_EVERY = 1.0

# A process that is starting a program has no environment for a moment, and must not be missed.
_LOOKS = 5
_BETWEEN_LOOKS = 0.005
PATIENCE = 1.0  # seconds that what ranks leave behind gets to end by itself


def job_members(job: str) -> list[int]:
    """The processes that belong to `job`, ourselves excepted."""
    return sorted(pid for pid, started in environments() if _is_of(job, started))


def _is_of(job: str, started: bytes) -> bool:
    return f"{JOB_VARIABLE}={job}".encode() in started.split(b"\0")


def environments() -> Iterator[tuple[int, bytes]]:
    """What every process that we may ask was started with, ourselves excepted."""
    asked = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    for look in range(_LOOKS):
        undecided = []
        for pid in asked:
            environment = None if pid == os.getpid() else _environment(pid)
            if environment == b"":
                undecided.append(pid)
            elif environment is not None:
                yield pid, environment
        if not undecided or look == _LOOKS - 1:
            break
        asked = undecided
        time.sleep(_BETWEEN_LOOKS)


def _environment(pid: int) -> bytes | None:
    """What a process was started with; empty while it starts a program; None if it is not ours."""
    folder = Path("/proc") / str(pid)
    try:
        found = (folder / "environ").read_bytes()
        if not found:
            (folder / "exe").readlink()  # the kernel's own and what has ended have none
    except OSError:  # of another user, or it ends while we look
        return None
    return found


def sweep_job(job: str, patience: float = PATIENCE, timeout: float = 5.0) -> list[int]:
    """Ends every member of `job`: asks first, kills those that have not gone after `patience`.

    The patience matters: helpers such as multiprocessing's resource tracker free what their dead
    parent held, and end by themselves right after.

    Returns:
        The members that outlive even the kill by `timeout` (stuck in the kernel); normally none.
    """
    began = time.monotonic()
    asked: set[int] = set()
    while members := job_members(job):
        waited = time.monotonic() - began
        if waited > patience + timeout:
            break
        for pid in members:
            number = signal.SIGTERM if waited < patience else signal.SIGKILL
            if number == signal.SIGKILL or pid not in asked:
                with contextlib.suppress(OSError):  # it has ended, or is not ours to end
                    if _signal_member(job, pid, number):
                        asked.add(pid)
        time.sleep(0.01)
    return members


def _signal_member(job: str, pid: int, number: int) -> bool:
    """Whether it is a member, and has got the signal."""
    pidfd = os.pidfd_open(pid)
    try:
        # Read by number while the process is held: if it still runs, the number was its own.
        is_member = _is_of(job, _environment(pid) or b"")
        if is_member:
            signal.pidfd_send_signal(pidfd, number)
        return is_member
    finally:
        os.close(pidfd)


def guard_job(job: str, launcher: int, pipe: int) -> None:
    """Waits for the launcher to end or to say that all is well, then sweeps in the first case."""
    while os.getppid() == launcher:
        readable, _, _ = select.select([pipe], [], [], GUARD_LOOKS_EVERY)
        if readable:
            if os.read(pipe, 1):
                return  # the launcher has ended the job itself
            break
    sweep_job(job)


if __name__ == "__main__":
    # Whoever ends the launcher by its terminal or its process group must not end the guard first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    guard_job(sys.argv[1], launcher=int(sys.argv[2]), pipe=0)
