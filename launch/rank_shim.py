"""The first instants of a rank: takes its cores, ties its life to the launcher's, then execs.

A script of its own rather than code between fork and exec: the launcher may have threads (a
notebook has), and after a fork only the forking thread goes on, with whatever locks the others
held. It is started as `python -I -S rank_shim.py LAUNCHER CORES PROGRAM ARGUMENTS...` and imports
nothing of ours; exec leaves the process number, the cores and the parent-death signal as they are.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
CANNOT_EXECUTE = 126  # as shells have it

# Python ignores these, and what is ignored stays ignored through exec; a shell's background job has
# SIGINT ignored. The program is to find what it would find when started from a terminal.
RESTORED_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGQUIT)


def become(launcher: int, cores: set[int], command: list[str]) -> None:
    """Turns this process into `command`; returns only by an exception."""
    for number in RESTORED_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != launcher:  # it ended before we could ask to be told
        os.kill(os.getpid(), signal.SIGKILL)
    if cores:
        os.sched_setaffinity(0, cores)
    os.execv(command[0], command)


if __name__ == "__main__":
    wanted = {int(core) for core in sys.argv[2].split(",") if core}
    try:
        become(int(sys.argv[1]), wanted, sys.argv[3:])
    except OSError as error:
        print(f"cannot execute {sys.argv[3]}: {error.strerror}", file=sys.stderr)
        sys.exit(CANNOT_EXECUTE)
