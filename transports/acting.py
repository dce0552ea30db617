"""Whether anything in this process could act while its program waits.

A rank that waits is blamed for a circle of waits only if nothing in it could still do what the
others wait for. What cannot be known is taken to be able to: a circle that is missed is reported
by the silence, a healthy program that is blamed is broken.
"""

from __future__ import annotations

import os
import platform
import signal
import threading
from pathlib import Path

_MESSAGES = "collectives-msg"  # the native thread that moves messages, see progress_thread.cpp
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine())
_WAITS = (0, 9)  # FUTEX_WAIT and FUTEX_WAIT_BITSET
_PRIVATE = 0x80


def is_alone(ours: str) -> bool:
    """Whether nothing could act but one thread of Python, and those of names beginning `ours`."""
    threads = threading.enumerate()
    if sum(not each.name.startswith(ours) for each in threads) != 1 or _handles_signals():
        return False
    if threading.get_ident() not in {each.ident for each in threads}:
        return False  # one that Python does not know asks, so the one that it knows may act
    tasks = list(Path("/proc/self/task").iterdir())
    known = {threading.get_native_id(), *(each.native_id for each in threads)}
    # In a forked child the thread that forked, now the main one, is still known by its number in
    # the parent.
    main = threading.main_thread()
    if main in threads and str(main.native_id) not in {task.name for task in tasks}:
        known.add(os.getpid())
    # Threads that Python does not know, or only while they call it: numpy's and torch's, or such
    # as may call into Python next.
    return all(int(task.name) in known or not _could_act(task) for task in tasks)


def _handles_signals() -> bool:
    """Whether the program has handlers of its own, which run in the midst of a wait."""
    return any(
        callable(handler) and handler is not signal.default_int_handler
        for handler in map(signal.getsignal, signal.valid_signals())
    )


def _could_act(task: Path) -> bool:
    """Of a thread; one that waits for another thread of this process, however long, cannot."""
    try:
        if (task / "comm").read_text().rstrip("\n") == _MESSAGES:
            return False
        # The number of the system call and its arguments; "running" if it is in none.
        call, *arguments = (task / "syscall").read_text().split()
    except OSError:
        return task.exists()  # the kernel does not tell; or the thread has ended
    if call != str(_FUTEX):
        return True
    operation, timeout = int(arguments[1], 16), int(arguments[3], 16)
    return not (operation & _PRIVATE and operation & 0x7F in _WAITS and timeout == 0)
