"""Runs one program as the ranks of a job, from start to exit code: what `collectives run` does.

The ranks are processes of ours on this machine, or an mpiexec's on any (`launch.mpi_job`); what is
done with what they write, with the first failure, with signals and restarts is the same.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch.binding import binding_line, rank_cores, rank_threads
from launch.capacity import DESCRIPTORS_PER_RANK, INTERPRETER_BYTES, check_room
from launch.console import Console, own_streams
from launch.environment import JobIdentity, ReservedPort, rank_environment
from launch.failures import Failure, first_failure
from launch.mpi_job import MpiJob
from launch.mpi_start import MpiStart
from launch.processes import Job, RankCommand
from launch.rank_shim import CANNOT_EXECUTE
from launch.report import Report
from launch.watching import STOPPING, StopRequest, Watch

RESTART_PAUSE = 0.2  # seconds between the end of a failed job and the start of the next


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
    max_restarts: int = 0,
    keep_going: bool = False,
    stopping: float = STOPPING,
    log_directory: Path | None = None,
    prefix: bool = True,
    all_tracebacks: bool = False,
    environment: Mapping[str, str] | None = None,
    mpi: MpiStart | None = None,
) -> int:
    """Starts `ranks` processes of `command`, shows what they print, and waits for their end.

    Must be called from the main thread, since it takes the signals that stop a program.

    Args:
        command: program (a path or a name found on PATH) and its arguments, equal on every rank.
        ranks: how many; each learns its own from the environment (RANK, WORLD_SIZE, ...).
        bind: share the cores out among the ranks, each bound to its own.
        threads: OMP_NUM_THREADS of each rank; by default the user's own setting, else cores //
        ranks.
        max_restarts: how often all ranks are started anew after one has failed.
        keep_going: leave the others running when a rank fails, as they may go on without it.
        stopping: seconds that ranks get to end by themselves when a signal stops the job.
        log_directory: write what rank r prints to `rank-r.log` in this folder, too.
        prefix: begin every line with the rank that wrote it.
        all_tracebacks: show those of all failed ranks whole, not only what differs.
        environment: further variables for every rank.
        mpi: how an mpiexec starts them; by default they are started here, by this process.

    Returns:
        0 if every rank ended with 0; otherwise the exit code of the rank that failed first, or
        128 + signal if a signal ended it; 130 after Ctrl-C, 143 after SIGTERM. After restarts it is
        that of the last start.

    Raises:
        ValueError: ranks or threads below one, restarts below zero, more ranks than this machine
        can start, or restarts of a job that is to keep going.
        FileNotFoundError: no such program.
        OSError: the log folder cannot be made.
    """
    check_counts(
        1 if mpi else ranks,  # what other hosts can start is not known here
        threads,
        max_restarts,
        # A rank that is no Python may be tiny; the interpreter that starts it lives for an instant.
        memory=INTERPRETER_BYTES if command[0] == sys.executable else 0,
        descriptors=DESCRIPTORS_PER_RANK + (log_directory is not None),
    )
    if keep_going and max_restarts:
        raise ValueError(
            "ranks either go on without one that has failed or are all started anew: expected one "
            f"of keeping going and restarts, found both ({max_restarts} restarts)"
        )
    _occupy_closed_streams()
    words = [find_program(command[0]), *command[1:]]
    base = {**os.environ, **(environment or {})}
    shares: Sequence[Sequence[int]] = ()
    if mpi is None:
        if threads is None:
            threads = rank_threads(ranks, base)
        shares = rank_cores(ranks, bind)
    console = Console(*own_streams(), prefix=prefix)
    _offer_width(base, ranks if prefix else 0)
    if mpi is None:
        shown = str(threads) if threads is not None else base["OMP_NUM_THREADS"]
        notice = f"collectives: {binding_line(shares, shown, bind)}"
    else:
        notice = f"collectives: {mpi.describe(ranks)}"
    start = _Start(
        words=words,
        base=base,
        threads=threads,
        shares=shares,
        console=console,
        log_directory=log_directory,
        all_tracebacks=all_tracebacks,
        keep_going=keep_going,
        stopping=stopping,
        bind=bind,
        mpi=mpi,
    )
    stop = StopRequest()
    jobs: list[Job | MpiJob] = []

    def kill() -> None:
        for job in jobs[-1:]:
            job.send_signal(signal.SIGKILL)

    identity = JobIdentity(ranks=ranks, master_port=0, max_restarts=max_restarts)
    with stop.listening(kill):
        while True:
            code, again = _run_once(start, identity, stop, jobs, notice)
            if not again or identity.restart == max_restarts:
                return code
            if stop.comes_within(RESTART_PAUSE) and stop.signal is not None:
                console.show_notice(f"{signal.Signals(stop.signal).name}: not restarted")
                return 128 + stop.signal
            identity = identity.restarted()
            notice = f"collectives: restart {identity.restart} of {max_restarts}"


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What is the same each time that the ranks of a run are started."""

    words: Sequence[str]
    base: Mapping[str, str]
    threads: int | None
    shares: Sequence[Sequence[int]]
    console: Console
    log_directory: Path | None
    all_tracebacks: bool
    keep_going: bool
    stopping: float
    bind: bool
    mpi: MpiStart | None

    def job(self, identity: JobIdentity) -> Job | MpiJob:
        """The next job of the run, not started yet."""
        if self.mpi is not None:
            return self.mpi.job(
                identity, self.words, self.base, self.console.show_text,
                bind=self.bind, threads=self.threads,
            )  # fmt: skip
        commands = [
            RankCommand(
                command=self.words,
                environment=rank_environment(rank, identity, self.base, self.threads),
                cores=self.shares[rank],
                # A terminal belongs to one session, and ranks have sessions of their own. What an
                # earlier job has read of it, a later one would miss.
                reads_stdin=rank == 0 and identity.restart == 0 and not os.isatty(0),
            )
            for rank in range(identity.ranks)
        ]
        return Job(identity.job, commands)


def _run_once(
    start: _Start, identity: JobIdentity, stop: StopRequest, jobs: list[Job | MpiJob], notice: str
) -> tuple[int, bool]:
    """One job from its start to its end: its exit code, and whether a restart may do better.

    The job is added to `jobs`, for a signal handler that cannot wait for this to return.
    """
    with ReservedPort() as port:
        identity = replace(identity, master_port=port.number)
        job = start.job(identity)
        jobs.append(job)
        with Report(
            start.console,
            job.pid,
            identity.ranks,
            start.log_directory,
            all_tracebacks=start.all_tracebacks,
            restart=notice if identity.restart else "",
        ) as report:
            start.console.show_notice(notice)
            with job:
                Watch(
                    job, report, stop, keep_going=start.keep_going, stopping=start.stopping
                ).until_end()
            code, again = _conclude(report, stop)
            if isinstance(job, MpiJob) and job.failure and stop.signal is None:
                report.notice(f"collectives: {job.failure}")
                return code or job.exit_code, again and code != 0
            return code, again


def check_counts(
    ranks: int,
    threads: int | None,
    max_restarts: int = 0,
    *,
    memory: int = INTERPRETER_BYTES,
    descriptors: int = DESCRIPTORS_PER_RANK,
) -> None:
    """Refuses numbers of ranks or threads below one, and more ranks than can be started here.

    Args:
        ranks: how many.
        threads: of each; None where nothing is said.
        max_restarts: how often they may be started anew.
        memory: bytes that a rank takes at least.
        descriptors: files that a rank keeps open in this process.
    """
    for name, number in (("ranks", ranks), ("threads per rank", threads)):
        if number is not None and number < 1:
            raise ValueError(f"the number of {name} must be at least 1, not {number}")
    if max_restarts < 0:
        raise ValueError(f"the number of restarts must be at least 0, not {max_restarts}")
    check_room(ranks, descriptors=descriptors, memory=memory)


def find_program(name: str) -> str:
    """The path of a program, given as a path or found on PATH."""
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"no program {name!r}: neither an executable file nor on PATH")
    return found


def _conclude(report: Report, stop: StopRequest) -> tuple[int, bool]:
    """Shows what was kept back; the exit code, and whether a restart may do better."""
    first: Failure | None = None
    if stop.signal is None:
        first = first_failure(report.failures)
    report.show_kept(first)
    if stop.signal is not None:
        return 128 + stop.signal, False
    if first is not None:
        report.show_first(first)
        # A program that cannot be executed is a mistake in the command line.
        return first.exit_code, first.code != CANNOT_EXECUTE and report.error is None
    if report.error is not None:
        if report.error.errno == errno.EPIPE:  # `collectives run … | head` has had enough
            return 128 + signal.SIGPIPE, False
        print(f"collectives: cannot write: {report.error.strerror}", file=sys.stderr)
        return 1, False
    return 0, False


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
