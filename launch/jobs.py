"""Runs one program as the ranks of a job, from start to exit code: what `collectives run` does."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.binding import binding_line, rank_cores, rank_threads
from launch.console import Console, own_streams
from launch.environment import JobIdentity, ReservedPort, rank_environment
from launch.failures import Failure, first_failure
from launch.processes import Job, RankCommand
from launch.report import Report
from launch.watching import StopRequest, Watch


def module_command(module: str, arguments: Sequence[str] = ()) -> list[str]:
    """The command that runs `module` as `python -m` does, in this very interpreter, unbuffered."""
    return [sys.executable, "-u", "-m", module, *arguments]


def script_command(script: str, arguments: Sequence[str] = ()) -> list[str]:
    """The command that runs a Python file, in this very interpreter, unbuffered."""
    return [sys.executable, "-u", script, *arguments]


def run_job(
    command: Sequence[str],
    ranks: int,
    *,
    bind: bool = True,
    threads: int | None = None,
    log_directory: Path | None = None,
    prefix: bool = True,
    all_tracebacks: bool = False,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Starts `ranks` processes of `command`, shows what they print, and waits for their end.

    Must be called from the main thread, since it takes the signals that stop a program.

    Args:
        command: program (a path or a name found on PATH) and its arguments, equal on every rank.
        ranks: how many; each learns its own from the environment (RANK, WORLD_SIZE, ...).
        bind: share the cores out among the ranks, each bound to its own.
        threads: OMP_NUM_THREADS of each rank; by default the user's own setting, else cores //
        ranks.
        log_directory: write what rank r prints to `rank-r.log` in this folder, too.
        prefix: begin every line with the rank that wrote it.
        all_tracebacks: show those of all failed ranks whole, not only what differs.
        environment: further variables for every rank.

    Returns:
        0 if every rank ended with 0; otherwise the exit code of the rank that failed first, or
        128 + signal if a signal ended it; 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        ValueError: ranks or threads below one.
        FileNotFoundError: no such program.
        OSError: the log folder cannot be made.
    """
    check_counts(ranks, threads)
    _occupy_closed_streams()
    program = find_program(command[0])
    base = {**os.environ, **(environment or {})}
    if threads is None:
        threads = rank_threads(ranks, base)
    shares = rank_cores(ranks, bind)
    console = Console(*own_streams(), prefix=prefix)
    _offer_width(base, ranks if prefix else 0)
    stop = StopRequest()
    with ReservedPort() as port:
        identity = JobIdentity(ranks=ranks, master_port=port.number)
        commands = [
            RankCommand(
                command=[program, *command[1:]],
                environment=rank_environment(rank, identity, base, threads),
                cores=shares[rank],
                # A terminal belongs to one session, and ranks have sessions of their own.
                reads_stdin=rank == 0 and not os.isatty(0),
            )
            for rank in range(ranks)
        ]
        shown = str(threads) if threads is not None else base["OMP_NUM_THREADS"]
        job = Job(identity.job, commands)
        with (
            Report(console, job.pid, ranks, log_directory, all_tracebacks=all_tracebacks) as report,
            stop.listening(kill=lambda: job.send_signal(signal.SIGKILL)),
        ):
            console.show_notice(f"collectives: {binding_line(shares, shown, bind)}")
            with job:
                Watch(job, report, stop).until_end()
            return _conclude(report, stop)


def check_counts(ranks: int, threads: int | None) -> None:
    """Refuses numbers of ranks or threads below one."""
    for name, number in (("ranks", ranks), ("threads per rank", threads)):
        if number is not None and number < 1:
            raise ValueError(f"the number of {name} must be at least 1, not {number}")


def find_program(name: str) -> str:
    """The path of a program, given as a path or found on PATH."""
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"no program {name!r}: neither an executable file nor on PATH")
    return found


def _conclude(report: Report, stop: StopRequest) -> int:
    """Shows what was kept back and finds the exit code."""
    first: Failure | None = None
    if stop.signal is None:
        first = first_failure(report.failures)
    report.show_kept(first)
    if stop.signal is not None:
        return 128 + stop.signal
    if first is not None:
        report.show_first(first)
        return first.exit_code
    if report.error is not None:
        if report.error.errno == errno.EPIPE:  # `collectives run … | head` has had enough
            return 128 + signal.SIGPIPE
        print(f"collectives: cannot write: {report.error.strerror}", file=sys.stderr)
        return 1
    return 0


def _offer_width(environment: dict[str, str], ranks: int) -> None:
    """Tells programs, which see a pipe and would assume 80 columns, how wide our terminal is."""
    if "COLUMNS" not in environment and os.isatty(1):
        mark = len(f"[{ranks - 1}] ") if ranks else 0
        environment["COLUMNS"] = str(max(20, os.get_terminal_size(1).columns - mark))


def _occupy_closed_streams() -> None:
    """Opens what of stdin, stdout and stderr was closed, lest a file of ours take its number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Takes the lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
