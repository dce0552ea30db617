"""`collectives run`: any program as the ranks of a job on this machine."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from launch.commands import CommandError
from launch.launcher_options import WITH_VALUE, configure_launcher, read_launcher

HELP = "run a script, a module or any program on several ranks, of this machine or of several"
DESCRIPTION = """\
Run a program on several ranks, of this machine or by an MPI of several:

    collectives run -n 4 script.py ARGUMENTS...
    collectives run -n 4 -m package.module ARGUMENTS...
    collectives run -n 4 ./program ARGUMENTS...
    collectives run --launcher mpi --hosts a:4,b:4 script.py ARGUMENTS...

Python files run in this very interpreter, as `python script.py` does. Every rank finds torchrun's
environment variables (RANK, WORLD_SIZE, MASTER_ADDR, ...) and what `collectives.init()` needs.
The exit code is that of the rank that failed first, 128 + signal if a signal ended it.

When a rank fails, the others are ended soon after. With --keep-going they are left to themselves:
comm.shrink() goes on with those that are left. With --max-restarts K all ranks are started anew, at
most K times; they find in TORCHELASTIC_RESTART_COUNT how often that was. Ctrl-C ends it all.

With --launcher mpi the MPI's own mpiexec starts the ranks; all else is as above. Every host has the
same Python and the same folder at the same place. Inside an allocation of Slurm, which says where
ranks go, --hosts is not needed."""


OPTIONS_WITH_VALUE = (
    "-n",
    "--ranks",
    "--threads",
    "--max-restarts",
    "--log-dir",
    "--tracebacks",
    "--inject",
    *WITH_VALUE,
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options; whatever follows the program belongs to the program."""
    parser.usage = f"{parser.prog} -n N [options] (SCRIPT | -m MODULE | PROGRAM) [ARGUMENTS...]"
    parser.add_argument(
        "-n",
        "--ranks",
        type=int,
        metavar="N",
        help="how many ranks to start; not needed where the hosts say it",
    )
    parser.add_argument(
        "--no-bind", action="store_true", help="let every rank use all cores instead of its share"
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="K",
        help="OMP_NUM_THREADS of each rank (default: as set by you, else cores / ranks)",
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="K",
        help="start all ranks anew after a failure, at most K times (default 0)",
    )
    parser.add_argument(
        "--keep-going",
        action="store_true",
        help="leave the other ranks running when one fails; the exit code tells of it all the same",
    )
    parser.add_argument(
        "--inject",
        action="append",
        default=[],
        metavar="FAULT",
        help='a fault on purpose, as "kill rank=1 op=57", "freeze rank=2 op=10 for=3s", '
        '"raise rank=0 op=5", "slow rank=1 by=2ms"; may be given several times',
    )
    parser.add_argument(
        "--log-dir", type=Path, metavar="DIR", help="also write rank R's output to DIR/rank-R.log"
    )
    parser.add_argument(
        "--no-prefix", action="store_true", help="do not begin each line with its rank"
    )
    parser.add_argument(
        "--tracebacks",
        choices=("first", "all"),
        default="first",
        help="after a failure: the first cause and what differs from it (default), or all ranks'",
    )
    configure_launcher(parser)


def separate(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our own options, and what follows them: the program with its arguments, left as they are."""
    position = 0
    while position < len(words) and words[position].startswith("-"):
        if words[position] in ("-m", "--"):
            break
        position += 2 if words[position] in OPTIONS_WITH_VALUE else 1
    return list(words[:position]), list(words[position:])


def execute(arguments: argparse.Namespace) -> int:
    """Checks everything that can be checked, then starts the ranks."""
    from launch.jobs import run_job

    command = rank_command(arguments.rest)
    try:
        ranks, mpi = read_launcher(arguments, python=command[0] == sys.executable)
        if ranks is None:
            raise ValueError("expected -n N, how many ranks to start")
        return run_job(
            command,
            ranks,
            environment=_faults(arguments.inject, ranks),
            mpi=mpi,
            bind=not arguments.no_bind,
            threads=arguments.threads,
            max_restarts=arguments.max_restarts,
            keep_going=arguments.keep_going,
            log_directory=arguments.log_dir,
            prefix=not arguments.no_prefix,
            all_tracebacks=arguments.tracebacks == "all",
        )
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from error


def _faults(texts: Sequence[str], ranks: int) -> dict[str, str]:
    """The variable that tells ranks of them."""
    if not texts:
        return {}
    from collectives.faults import parse_faults

    joined = "; ".join(texts)
    for fault in parse_faults(joined):
        if fault.rank >= ranks:
            raise ValueError(f"fault {fault.text!r}: rank is below {ranks}, found {fault.rank}")
    return {"COLLECTIVES_INJECT": joined}


def rank_command(words: Sequence[str]) -> list[str]:
    """The command every rank runs, from what follows the options on the command line."""
    from launch.jobs import module_command, script_command

    if words[:1] == ["--"]:
        words = words[1:]
    if not words:
        raise CommandError("expected SCRIPT, -m MODULE or PROGRAM, found nothing")
    first, rest = words[0], words[1:]
    if first == "-m":
        if not rest:
            raise CommandError("expected a module after -m, found nothing")
        _check_module(rest[0])
        return module_command(rest[0], rest[1:])
    path = Path(first)
    if path.is_dir():
        raise CommandError(f"expected a program to run, found a directory: {first}")
    if path.suffix == ".py":
        if not path.exists():
            raise CommandError(f"no such script: {first}{_nearest(path)}")
        if not os.access(path, os.R_OK):
            raise CommandError(f"cannot read the script {first}")
        return script_command(first, rest)
    if path.is_file() and os.access(path, os.X_OK):
        return [str(path.absolute()), *rest]
    if path.exists():
        raise CommandError(
            f"expected a Python script (*.py) or an executable program, found neither: {first}"
        )
    if shutil.which(first) is None:
        raise CommandError(
            f"no such program: {first!r} is neither a file nor a command on PATH{_nearest(path)}"
        )
    return list(words)


def _nearest(path: Path) -> str:
    """A file beside the missing one with nearly its name, as a question."""
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    except OSError:
        return f" (the folder {path.parent} does not exist)" if not path.parent.exists() else ""
    close = difflib.get_close_matches(path.name, names, n=1)
    return f". Did you mean {path.parent / close[0]}?" if close else ""


def _check_module(name: str) -> None:
    # The outermost package only: looking for what is inside a package would run it.
    outermost = name.partition(".")[0]
    with _path_of_a_module():
        try:
            found = importlib.util.find_spec(outermost) is not None
        except ValueError:  # a module that was imported in an unusual way has no spec
            found = True
    if not found:
        raise CommandError(f"no module named {outermost!r} for `python -m {name}`")


@contextmanager
def _path_of_a_module() -> Iterator[None]:
    """sys.path as `python -m` will see it: the current folder first."""
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
