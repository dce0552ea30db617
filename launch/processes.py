"""The processes of one job: starts them, says what they write and when they end, and ends them.

Each rank is the leader of a session of its own, so that a signal reaches it together with what it
has started, and so that Ctrl-C at the terminal reaches the launcher alone, which decides. Nothing
outlives a `Job`: leaving its `with` block ends every member; if the launcher is killed, the kernel
kills the ranks (parent-death signal) and the guard what they had started (see `launch.sweeping`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

from launch.sweeping import JOB_VARIABLE, sweep_job

READ_SIZE = 1 << 16

# Where the kernel cannot tell of a process's end through a file descriptor (before Linux 5.3), we
# look this often.
LOOK_EVERY = 0.02

FOLDER = Path(__file__).parent
ISOLATED_PYTHON = [sys.executable, "-I", "-S"]


class Stream(Enum):
    """Which of its two outputs a rank wrote to."""

    OUT = "stdout"
    ERR = "stderr"


@dataclass(frozen=True)
class Output:
    """A rank has written something; empty data: it has closed the stream."""

    rank: int
    stream: Stream
    data: bytes


@dataclass(frozen=True)
class Ended:
    """A rank has ended: its exit code, or minus the signal that ended it."""

    rank: int
    code: int


@dataclass(frozen=True, kw_only=True)
class RankCommand:
    """How to start one rank."""

    command: Sequence[str]
    environment: Mapping[str, str]
    cores: Sequence[int] = ()
    inherited: Sequence[int] = ()  # file descriptors it finds under the same numbers
    reads_stdin: bool = False  # ours; otherwise it finds an empty one


@dataclass(frozen=True)
class _Pipe:
    rank: int
    stream: Stream


@dataclass(frozen=True)
class _Exit:
    rank: int


class Job:
    """The ranks of one job as processes; a context manager, used from one thread.

    That thread must live as long as the job: the kernel's parent-death signal follows the thread.
    """

    def __init__(self, job: str, commands: Sequence[RankCommand]) -> None:
        self.job = job
        self._commands = commands
        self._processes: list[subprocess.Popen[bytes]] = []
        self._codes: dict[int, int] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self._selector = selectors.DefaultSelector()
        self._open: dict[_Pipe, int] = {}
        self._looking = False
        self._exits: dict[int, int] = {}

    def __enter__(self) -> Self:
        try:
            self._start_guard()
            for rank in range(len(self._commands)):
                self._start_rank(rank)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def running(self) -> list[int]:
        """The ranks that have not ended."""
        return [rank for rank in range(len(self._processes)) if rank not in self._codes]

    def pid(self, rank: int) -> int:
        """The process number of `rank`."""
        return self._processes[rank].pid

    def watch_descriptor(self, descriptor: int) -> None:
        """Makes `events` return when `descriptor` is readable (who owns it, reads it)."""
        self._selector.register(descriptor, selectors.EVENT_READ, None)

    def events(self, timeout: float | None) -> list[Output | Ended]:
        """Waits until something happens, at most `timeout` seconds, and says what.

        What a rank wrote before it ended comes before its end.
        """
        if self._looking and self.running:
            timeout = LOOK_EVERY if timeout is None else min(timeout, LOOK_EVERY)
        happened: list[Output | Ended] = []
        ended: set[int] = set(self.running) if self._looking else set()
        for key, _ in self._selector.select(timeout):
            source = key.data
            if isinstance(source, _Pipe):
                happened += self._read(source, READ_SIZE)
            elif isinstance(source, _Exit):
                ended.add(source.rank)
        for rank in sorted(ended):
            happened += self._reap(rank)
        return happened

    def send_signal(self, number: int) -> None:
        """Sends a signal to every rank that is running, and to what it started in its own group."""
        for rank in self.running:
            # Not reaped yet, so the number is still this rank's: only `_reap` waits for it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._processes[rank].pid, number)

    def sweep(self) -> list[Output | Ended]:
        """Ends what ended ranks have left behind; returns the last that was written."""
        sweep_job(self.job)
        happened: list[Output | Ended] = []
        for pipe in list(self._open):
            while pipe in self._open and (output := self._read(pipe, READ_SIZE)):
                happened += output
        return happened

    def close(self) -> None:
        """Ends all members of the job at once and frees everything; never waits for long."""
        self.send_signal(signal.SIGKILL)
        for rank in self.running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._codes[rank] = self._processes[rank].wait(timeout=5)
        sweep_job(self.job)
        if self._guard is not None and self._guard.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.write(b".")
                self._guard.stdin.close()
            self._guard.wait()
            self._guard = None
        for descriptor in (*self._open.values(), *self._exits.values()):
            os.close(descriptor)
        self._open.clear()
        self._exits.clear()
        self._selector.close()

    def _start_guard(self) -> None:
        # Not marked as a member of any job: a launcher may itself run inside a rank, and the guard
        # must outlive it.
        environment = {name: text for name, text in os.environ.items() if name != JOB_VARIABLE}
        self._guard = subprocess.Popen(
            [*ISOLATED_PYTHON, str(FOLDER / "sweeping.py"), self.job, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=environment,
            start_new_session=True,
        )

    def _start_rank(self, rank: int) -> None:
        wanted = self._commands[rank]
        cores = ",".join(map(str, wanted.cores))
        shim = [*ISOLATED_PYTHON, str(FOLDER / "rank_shim.py"), str(os.getpid()), cores]
        pipes = {stream: os.pipe() for stream in Stream}
        try:
            process = subprocess.Popen(
                [*shim, *wanted.command],
                stdin=None if wanted.reads_stdin else subprocess.DEVNULL,
                stdout=pipes[Stream.OUT][1],
                stderr=pipes[Stream.ERR][1],
                env=wanted.environment,
                pass_fds=wanted.inherited,
                start_new_session=True,
            )
        except BaseException:
            for reading, _ in pipes.values():
                os.close(reading)
            raise
        finally:
            for _, writing in pipes.values():
                os.close(writing)
        self._processes.append(process)
        for stream, (reading, _) in pipes.items():
            os.set_blocking(reading, False)
            self._open[_Pipe(rank, stream)] = reading
            self._selector.register(reading, selectors.EVENT_READ, _Pipe(rank, stream))
        try:
            descriptor = os.pidfd_open(process.pid)
        except (AttributeError, OSError):
            self._looking = True
        else:
            self._exits[rank] = descriptor
            self._selector.register(descriptor, selectors.EVENT_READ, _Exit(rank))

    def _read(self, pipe: _Pipe, size: int) -> list[Output]:
        descriptor = self._open.get(pipe)
        if descriptor is None:
            return []
        try:
            data = os.read(descriptor, size)
        except BlockingIOError:
            return []
        if not data:
            self._selector.unregister(descriptor)
            os.close(descriptor)
            del self._open[pipe]
        return [Output(pipe.rank, pipe.stream, data)]

    def _reap(self, rank: int) -> list[Output | Ended]:
        process = self._processes[rank]
        code = process.poll()
        if code is None or rank in self._codes:
            return []
        happened: list[Output | Ended] = []
        for stream in Stream:
            pipe = _Pipe(rank, stream)
            # Its last words are in the pipe now. Not more than the pipe holds: a grandchild that
            # has the other end may go on writing.
            remaining = _capacity(self._open.get(pipe))
            while remaining > 0 and (output := self._read(pipe, READ_SIZE)):
                remaining -= len(output[0].data) or remaining
                happened += output
        self._codes[rank] = code
        if rank in self._exits:
            descriptor = self._exits.pop(rank)
            self._selector.unregister(descriptor)
            os.close(descriptor)
        return [*happened, Ended(rank, code)]


def _capacity(descriptor: int | None) -> int:
    return 0 if descriptor is None else fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
