"""What a process owes its communicators when it forks, ends, or is ended by an exception."""

from __future__ import annotations

import atexit
import os
import sys
import time
import weakref
from types import TracebackType
from typing import TYPE_CHECKING

from transports import _native
from transports.errors import CollectiveError
from transports.mpi.world import begun_world
from transports.telling import tell

if TYPE_CHECKING:
    from collectives.communicator import Communicator

_EXIT_SECONDS = 5.0
_ALIVE: weakref.WeakSet[Communicator] = weakref.WeakSet()


def look_after(communicator: Communicator) -> None:
    """From now on, as long as it lives."""
    _ALIVE.add(communicator)
    _watch_for_uncaught()


def not_the_rank(rank: int) -> str:
    """What a forked child of a rank is told."""
    return (
        f"this process was forked from rank {rank} and is no rank itself: collectives belong to "
        "the process that called init"
    )


def _forsake_in_child() -> None:
    """A forked child holds copies of the parent's communicators; it must not speak for it."""
    _native.forget_threads()
    for each in _ALIVE:
        each._forsake_devices()
        each._engine.forsake()
        each._queue.forsake(not_the_rank(each.rank))


def _close_at_exit() -> None:
    """Threads of ours must have ended, and users' left us, before the interpreter goes away."""
    for each in list(_ALIVE):
        try:
            each.close()
        except CollectiveError as error:  # too late to raise it
            tell(f"{type(error).__name__}: {error}")
        each._queue.join(_EXIT_SECONDS)
    # Daemon threads in a call: it ends now, but they want the interpreter's lock once more.
    deadline = time.monotonic() + _EXIT_SECONDS
    while _native.threads_outside() > 0 and time.monotonic() < deadline:
        time.sleep(0.001)
    if (reached := begun_world()) is not None:
        reached.finish()


def _watch_for_uncaught() -> None:
    """From now on an exception that ends the script reaches the other ranks, too."""
    if getattr(sys.excepthook, "tells_other_ranks", False):
        return
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        for each in list(_ALIVE):
            each.abort(error)
        if (reached := begun_world()) is not None:
            reached.has_failed = True
        before(kind, error, trace)

    hook.tells_other_ranks = True  # type: ignore[attr-defined]
    sys.excepthook = hook


os.register_at_fork(after_in_child=_forsake_in_child)
atexit.register(_close_at_exit)
