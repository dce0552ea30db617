"""Ranks that an mpiexec starts, each of which calls a function with a communicator.

As `launch.spawn`, but for who starts them. One machine plays several hosts: `hosts="aab"` puts
ranks 0 and 1 on one and rank 2 on another.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle

from harness.processes import FOREIGN

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mpi:
    """An MPI library with its mpiexec.

    Attributes:
        mpiexec: the command, with options that any run wants.
        environment: what its ranks need.
        python: which has an mpi4py for it.
    """

    mpiexec: tuple[str, ...]
    environment: dict[str, str]
    python: str = sys.executable


MPICH = Mpi((os.environ.get("MPIEXEC", str(Path(sys.executable).with_name("mpiexec"))),), {})
"""The one of our own environment, or that of a machine without one."""


@dataclass(frozen=True)
class Finished:
    """How a job ended: mpiexec's exit code, and what all ranks printed."""

    code: int
    stdout: str
    stderr: str


def run_under(
    mpi: Mpi,
    size: int,
    command: Sequence[str],
    environment: dict[str, str] | None = None,
    timeout: float = 100,
) -> Finished:
    """`command` as so many ranks, until all have ended.

    Raises:
        subprocess.TimeoutExpired: they have not in time, and were killed.
    """
    variables = {name: text for name, text in os.environ.items() if name not in FOREIGN}
    variables |= {"PYTHONPATH": str(TESTS), "PYTHONFAULTHANDLER": "1", "UCX_LOG_LEVEL": "error"}
    variables |= mpi.environment | (environment or {})
    process = subprocess.Popen(
        [*mpi.mpiexec, "-n", str(size), *command], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=variables, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except BaseException:
        process.terminate()  # mpiexec ends what it has started
        try:
            process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        raise
    return Finished(process.returncode, stdout, stderr)


def told_by_ranks(
    program: str,
    what: str,
    size: int,
    folder: Path,
    environment: dict[str, str] | None = None,
    timeout: float = 100,
) -> tuple[Finished, dict[int, str]]:
    """Run a program whose ranks leave what they say in files of their numbers; all of that.

    Its arguments are `what` and the folder for that.
    """
    script, said = folder / "program.py", folder / "said"
    script.write_text(program)
    said.mkdir()
    command = [sys.executable, str(script), what, str(said)]
    ended = run_under(MPICH, size, command, environment, timeout)
    return ended, {int(each.name): each.read_text() for each in said.iterdir()}


def mpi_spawn(
    function: Callable[..., Any],
    size: int,
    *args: Any,
    mpi: Mpi = MPICH,
    hosts: str = "",
    transport: str = "auto",
    environment: dict[str, str] | None = None,
    timeout: float = 100,
) -> list[Any]:
    """Call `function(comm, *args)` on every rank; what they return, by rank.

    Raises:
        AssertionError: a rank raised; the text has its traceback, and what all printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task"
        task.write_bytes(cloudpickle.dumps((function, args, hosts, transport)))
        command = [mpi.python, "-m", "harness.under_mpi", str(task)]
        try:
            ended = run_under(mpi, size, command, environment, timeout)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"not ended in {timeout} s: {error.output}") from None
        found = [Path(f"{task}.{rank}") for rank in range(size)]
        outcomes = [cloudpickle.loads(each.read_bytes()) for each in found if each.exists()]
        problems = [text for text, _ in outcomes if text]
        if problems or len(outcomes) < size or ended.code:
            said = f"exit code {ended.code}\n{ended.stdout}{ended.stderr}"
            raise AssertionError("\n".join([*problems, said]))
        return [value for _, value in outcomes]


def _own_rank() -> int:
    names = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")
    return next(int(os.environ[name]) for name in names if name in os.environ)


def main() -> int:
    """In a rank: call, and leave what came of it."""
    task = Path(sys.argv[1])
    function, args, hosts, transport = cloudpickle.loads(task.read_bytes())
    if hosts:
        os.environ["COLLECTIVES_HOST_ID"] = f"host {hosts[_own_rank()]}"
    import collectives

    text, value = "", None
    try:
        with collectives.init(transport) as comm:
            value = function(comm, *args)
    except BaseException as error:
        text = f"rank {_own_rank()}: " + "".join(traceback.format_exception(error))
    Path(f"{task}.{_own_rank()}").write_bytes(cloudpickle.dumps((text, value)))
    return 1 if text else 0


if __name__ == "__main__":
    sys.exit(main())
