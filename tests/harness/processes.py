"""Ranks that a test may kill: started without the launcher, which would end the others too.

Each runs a function of no communicator: it may call `collectives.init`, or not.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import cloudpickle

from harness.prepared import SERVERS, forked_rank
from transports.readable import becomes_readable

PROGRAM = """
import pickle, sys
sys.path[:], what = pickle.load(sys.stdin.buffer)
import harness.processes
sys.exit(harness.processes.answer(what, int(sys.argv[1])))
"""


@dataclass(frozen=True)
class Outcome:
    """How a rank ended.

    Attributes:
        code: its exit code, negative for a signal.
        value: what the function returned.
        error: name of the class of what it raised, or "".
        text: of what it raised.
    """

    code: int
    value: Any = None
    error: str = ""
    text: str = ""


def answer(what: bytes, descriptor: int) -> int:
    """In a rank: make the call and leave its outcome."""
    function, args = cloudpickle.loads(what)
    try:
        outcome = Outcome(0, value=function(*args))
    except BaseException as error:
        outcome = Outcome(1, error=type(error).__name__, text=str(error))
    with open(descriptor, "wb") as file:
        cloudpickle.dump(outcome, file)
    return outcome.code


def answer_from_stdin(descriptor: int) -> int:
    """In a rank that has been forked: the same."""
    _, what = pickle.load(sys.stdin.buffer)
    return answer(what, descriptor)


class Ranks:
    """Processes 0..size-1 of a job; whoever is left at the end of the block is killed."""

    def __init__(
        self,
        function: Callable[..., Any],
        size: int,
        *args: Any,
        environment: dict[str, str] | None = None,
        each: Callable[[int], dict[str, str]] = lambda rank: {},
        only: Sequence[int] | None = None,
        users: dict[int, int] | None = None,
    ) -> None:
        """`each(rank)` adds to a rank's environment; `only` starts some; `users` sets user ids."""
        base = {name: text for name, text in os.environ.items() if name not in FOREIGN}
        base |= {
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "COLLECTIVES_JOB": f"test-{secrets.token_hex(8)}",
            "COLLECTIVES_SECRET": secrets.token_hex(16),
            **(environment or {}),
        }
        what = cloudpickle.dumps((function, args))
        self.processes: list[subprocess.Popen[bytes]] = []
        self._results: list[int] = []
        for rank in range(size) if only is None else only:
            result = os.memfd_create(f"test-result-{rank}")
            self._results.append(result)
            mine = {**base, "RANK": str(rank), "LOCAL_RANK": str(rank), **each(rank)}
            process = None if users else forked_rank(what, result, mine)
            if process is None:
                process = subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, str(result)],
                    env=mine, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[result],
                    user=(users or {}).get(rank),
                )  # fmt: skip
            self.processes.append(process)
            assert process.stdin is not None
            pickle.dump((sys.path, what), process.stdin)
            process.stdin.flush()  # left open: see told

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process, result in zip(self.processes, self._results, strict=True):
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
            os.close(result)

    def said(self, index: int) -> str:
        """The next line that a process has printed (flushed)."""
        return self._pipe(index, "stdout").readline().decode().strip()

    def tell(self, index: int) -> None:
        """Lets `told()` in a process return."""
        pipe = self._pipe(index, "stdin")
        pipe.write(b"go\n")
        pipe.flush()

    def kill(self, index: int, number: int = signal.SIGKILL) -> None:
        """Sends a signal."""
        self.processes[index].send_signal(number)

    def outcome(self, index: int, timeout: float = 30.0) -> Outcome:
        """How a process ended; waits for it."""
        process = self.processes[index]
        watched = os.pidfd_open(process.pid) if process.poll() is None else None
        if watched is not None:
            ended = becomes_readable(watched, timeout)
            os.close(watched)
            assert ended, f"process {index} has not ended within {timeout:g} s"
        code = process.wait()
        with open(self._results[index], "rb", closefd=False) as file:
            file.seek(0)
            content = file.read()
        if not content:
            return Outcome(code)
        found: Outcome = cloudpickle.loads(content)
        return found

    def outcomes(self, timeout: float = 30.0) -> list[Outcome]:
        """How all of them ended."""
        return [self.outcome(index, timeout) for index in range(len(self.processes))]

    def _pipe(self, index: int, name: str) -> BinaryIO:
        pipe: BinaryIO = getattr(self.processes[index], name)
        return pipe


FOREIGN = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "COLLECTIVES_JOB", "COLLECTIVES_SECRET",
)  # fmt: skip
"""Variables of a launcher, should the tests themselves run under one."""


def say(word: str) -> None:
    """In a rank: print a line for `Ranks.said`."""
    print(word, flush=True)


def told() -> None:
    """In a rank: wait for `Ranks.tell`."""
    sys.stdin.buffer.readline()


def open_descriptors() -> dict[int, str]:
    """The descriptors of this process, and what they are; but for those to `prepared` servers."""
    found = {}
    servers = {str(server.descriptor) for server in SERVERS.values()}
    for entry in Path("/proc/self/fd").iterdir():
        if entry.name in servers:
            continue
        with contextlib.suppress(FileNotFoundError):  # the one that listed the folder
            found[int(entry.name)] = str(entry.readlink())
    return found
