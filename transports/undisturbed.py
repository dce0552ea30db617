"""Lines between which no signal handler runs: what they have opened is in hands that close it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

_NOT_TO_BE_BLOCKED = {
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGKILL, signal.SIGSTOP,
}  # fmt: skip


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let signals wait until the block has ended; for a few lines that never wait.

    Python's handlers run between any two steps, also between the call that opens a descriptor and
    the line that notes its number: what they raise there would leave it open.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _NOT_TO_BE_BLOCKED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
