"""Ranks forked from a process that has imported everything and has no communicator: quick to start.

Each has an output and a result of its own, in memory files, and dies with whoever forked it.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import pickle
import resource
import secrets
import select
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# What `collectives.init` would import; torch only where it is used.
import collectives.communicator
import collectives.initialization  # noqa: F401

STACKS = signal.SIGUSR1
"""Lets a rank print the stacks of all its threads."""

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 0.005
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Ending:
    """How a rank ended.

    Attributes:
        code: exit code, negative for a signal.
        value: what its function returned; None if it did not.
        output: what it printed.
        is_late: whether it had to be killed.
    """

    code: int
    value: Any = None
    output: str = ""
    is_late: bool = False


def new_job(size: int, environment: dict[str, str]) -> dict[str, str]:
    """The variables of a new job; each rank adds its RANK."""
    return {
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "COLLECTIVES_JOB": f"soak-{secrets.token_hex(8)}",
        "COLLECTIVES_SECRET": secrets.token_hex(16),
        "COLLECTIVES_TUNING": "off",
        **environment,
    }


class Forked:
    """One rank.

    Attributes:
        pid: its process.
    """

    def __init__(self, function: Callable[[int], Any], rank: int) -> None:
        """Fork; the child calls `function(rank)` and never returns from here."""
        self._output = os.memfd_create("soak-output")
        self._result = os.memfd_create("soak-result")
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _be_rank(function, rank, parent, self._output, self._result)
        self._pidfd = os.pidfd_open(self.pid)
        self._code: int | None = None

    def has_ended(self) -> bool:
        """Whether it has; it is reaped then."""
        if self._code is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code is not None

    def wake(self) -> None:
        """Let it go on, if it was stopped."""
        self.send(signal.SIGCONT)

    def send(self, number: int) -> None:
        """A signal, if it has not ended."""
        if not self.has_ended():
            os.kill(self.pid, number)

    def ending(self, *, is_late: bool) -> Ending:
        """How it ended; it is killed if it has not."""
        if not self.has_ended():
            os.kill(self.pid, signal.SIGKILL)
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert self._code is not None
        raw = _content(self._result)
        value = None
        with contextlib.suppress(EOFError, pickle.UnpicklingError):
            value = pickle.loads(raw)
        output = _content(self._output).decode(errors="replace")
        for descriptor in (self._pidfd, self._output, self._result):
            os.close(descriptor)
        return Ending(self._code, value, output, is_late)

    @property
    def pidfd(self) -> int:
        """A descriptor that becomes readable when it ends."""
        return self._pidfd


def run(
    functions: Sequence[Callable[[int], Any]],
    limit: float,
    watch: Callable[[list[Forked]], bool] = lambda ranks: False,
) -> list[Ending]:
    """Fork a rank for each function and see all of them end.

    Args:
        functions: `functions[r](r)` is what rank r does.
        limit: seconds after which those still running print their stacks and are killed.
        watch: called often meanwhile; True ends all that still run, which is then no delay.
    """
    deadline = time.monotonic() + limit
    ranks: list[Forked] = []
    late: set[int] = set()
    try:
        for rank, function in enumerate(functions):
            ranks.append(Forked(function, rank))
        while running := [rank for rank in ranks if not rank.has_ended()]:
            if watch(ranks):
                break
            if time.monotonic() > deadline:
                late = {rank.pid for rank in running}
                for rank in running:
                    rank.send(STACKS)
                    rank.send(signal.SIGCONT)
                time.sleep(0.5)
                break
            select.select([rank.pidfd for rank in running], [], [], _LOOK_SECONDS)
    finally:
        endings = [rank.ending(is_late=rank.pid in late) for rank in ranks]
    return endings


def die_with(parent: int) -> None:
    """In a forked process: be killed when the parent ends, however it does."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _be_rank(
    function: Callable[[int], Any], rank: int, parent: int, output: int, result: int
) -> None:
    code = 1
    try:
        die_with(parent)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(output, 1)
        os.dup2(output, 2)
        faulthandler.register(STACKS, file=2, all_threads=True)
        value = function(rank)
        with open(result, "wb", closefd=False) as file:
            pickle.dump(value, file)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
