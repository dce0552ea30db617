"""`launch.spawn`: one function on several local ranks, its results by rank, or what it raised.

The function travels by cloudpickle, so that lambdas, closures and functions of a notebook or of a
`__main__` script work, without an `if __name__ == "__main__"` guard. Call and results lie in memory
files (memfd) that the ranks inherit, not in pipes: nobody has to read while somebody writes, and
nothing has a name that could be left behind.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle

from launch.binding import rank_cores, rank_threads
from launch.capacity import DESCRIPTORS_PER_RANK, MEMBER_BYTES
from launch.console import Console, own_streams
from launch.environment import JobIdentity, ReservedPort, rank_environment
from launch.failures import Failure, RankFailedError, ending, first_failure
from launch.jobs import check_counts
from launch.processes import Job, RankCommand
from launch.report import Report
from launch.watching import JobTimeout, Watch

T = TypeVar("T")

SPAWNED_RANK = Path(__file__).with_name("spawned_rank.py")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a rank has left (see `launch.spawned_rank`)."""

    header: dict[str, Any]
    pickled: bytes

    @property
    def raised(self) -> bool:
        """Whether the function raised an exception."""
        return bool(self.header["kind"] == "raised")


def spawn(
    function: Callable[..., T],
    nprocs: int,
    *args: Any,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
    bind: bool = True,
) -> list[T]:
    """Calls `function(comm, *args)` on `nprocs` new local ranks; `comm` is `collectives.init()`.

    Args:
        function: any function, lambdas and closures included.
        nprocs: how many ranks.
        *args: what follows the communicator, equal on every rank.
        timeout: seconds after which the ranks are ended; None waits as long as they take.
        environment: further variables for every rank.
        bind: share the cores out among the ranks, each bound to its own.

    Returns:
        What the function returned, by rank.

    Raises:
        TypeError: function, arguments or a result cannot be pickled.
        ValueError: nprocs below one, or more than this machine can start.
        TimeoutError: the timeout has passed; it names the ranks that had not ended.
        RankFailedError: a rank was killed, or left by `sys.exit`, before it returned.
        Exception: what the first failing rank raised, of the same type where that can be pickled,
        with
            that rank's traceback in its notes.
    """
    if not callable(function):
        raise TypeError(f"expected a function to spawn, found {type(function).__name__}")
    if isinstance(nprocs, bool) or not isinstance(nprocs, int):
        raise TypeError(f"nprocs must be an integer, found {nprocs!r}")
    # Besides the usual ones, every rank's result is a file of ours.
    check_counts(nprocs, None, memory=MEMBER_BYTES, descriptors=DESCRIPTORS_PER_RANK + 1)
    call = _pickled_call(function, args)
    base = {**os.environ, **(environment or {})}
    threads = rank_threads(nprocs, base)
    shares = rank_cores(nprocs, bind)
    deadline = None if timeout is None else time.monotonic() + timeout
    with ReservedPort() as port, ExitStack() as files:
        identity = JobIdentity(ranks=nprocs, master_port=port.number)
        call_file = _memory_file(files, "call", call)
        results = [_memory_file(files, f"result-{rank}") for rank in range(nprocs)]
        commands = [
            RankCommand(
                command=_rank_command(call_file, results[rank]),
                environment=rank_environment(rank, identity, base, threads),
                cores=shares[rank],
                inherited=(call_file, results[rank]),
            )
            for rank in range(nprocs)
        ]
        job = Job(identity.job, commands)
        with Report(Console(*own_streams()), job.pid, nprocs) as report:
            try:
                with job:
                    Watch(job, report, deadline=deadline).until_end()
            except JobTimeout as late:
                ranks = ", ".join(map(str, late.running))
                raise TimeoutError(
                    f"spawn: rank {ranks} had not ended after {timeout} seconds"
                ) from None
            finally:
                report.show_kept(None)
            answers = [_read_answer(descriptor) for descriptor in results]
    _raise_first(report.failures, answers)
    return [_unpickled_result(rank, answer) for rank, answer in enumerate(answers)]


def _pickled_call(function: Callable[..., Any], args: Sequence[Any]) -> bytes:
    """Where to import from, as JSON on the first line, then function and arguments."""
    try:
        with _found_by_ranks(function):
            call = cloudpickle.dumps((function, args))
    except Exception as error:
        raise TypeError(
            f"spawn cannot send {getattr(function, '__qualname__', function)!s} and its arguments "
            f"to other processes: {error}"
        ) from error
    # Functions of modules travel by name, so the ranks look where this process looks.
    setting = json.dumps({"path": sys.path, "argv": sys.argv})
    return setting.encode() + b"\n" + bytes(call)


@contextmanager
def _found_by_ranks(function: Callable[..., Any]) -> Iterator[None]:
    """Lets a function of a module that cannot be imported by its name travel whole, as lambdas do.

    Such modules are made by whoever loads files by their path: pytest's importlib mode, for one.
    """
    module = sys.modules.get(getattr(function, "__module__", None) or "__main__")
    if module is None or module.__name__ == "__main__" or _importable(module.__name__):
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _importable(name: str) -> bool:
    outermost = name.partition(".")[0]
    return any(finder.find_spec(outermost, None) is not None for finder in sys.meta_path)


def _memory_file(files: ExitStack, name: str, content: bytes = b"") -> int:
    descriptor = os.memfd_create(f"collectives-{name}")
    files.callback(os.close, descriptor)
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    return descriptor


def _rank_command(call: int, result: int) -> list[str]:
    return [sys.executable, "-u", str(SPAWNED_RANK), str(call), str(result)]


def _read_answer(descriptor: int) -> Answer | None:
    """What a rank has left; None if it ended before it could."""
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)  # the rank has moved the position, which is shared
        try:
            header = json.loads(file.readline())
        except json.JSONDecodeError:
            return None
        return Answer(header=header, pickled=file.read())


def _raise_first(failures: Sequence[Failure], answers: Sequence[Answer | None]) -> None:
    """Raises what the first failing rank raised; returns if none failed."""
    first = first_failure(_as_answered(failure, answers[failure.rank]) for failure in failures)
    if first is None:
        return
    who = f"rank {first.rank} (pid {first.pid})"
    answer = answers[first.rank]
    if answer is None or not answer.raised:
        raise RankFailedError(f"{who} failed first: {ending(first.code)}", first.rank, first.code)
    error = _unpickled_error(answer.pickled)
    if error is None:
        text = f"{who} raised {answer.header['summary']}"
        error = RankFailedError(text, first.rank, first.code)
    error.add_note(f"\n{who} raised this:\n{answer.header['traceback']}")
    raise error


def _as_answered(failure: Failure, answer: Answer | None) -> Failure:
    """A failure with what only the rank itself could know about it."""
    if answer is None or not answer.raised:
        return failure
    return replace(failure, time=answer.header["time"], consequence=answer.header["consequence"])


def _unpickled_error(pickled: bytes) -> Exception | None:
    try:
        error = cloudpickle.loads(pickled)
    except Exception:  # a class that is not to be found here, a constructor that does anything
        return None
    return error if isinstance(error, Exception) else None


def _unpickled_result(rank: int, answer: Answer | None) -> Any:
    if answer is None:
        raise RankFailedError(
            f"rank {rank} ended with exit code 0 before its function returned", rank, 0
        )
    try:
        return cloudpickle.loads(answer.pickled)
    except Exception as error:
        raise TypeError(f"the result of rank {rank} cannot be unpickled here: {error}") from error
