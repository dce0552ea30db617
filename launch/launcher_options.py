"""The options that say who starts the ranks, and where: those of every command that starts some."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launch.mpi_start import MpiStart

WITH_VALUE = ("--launcher", "--hosts", "--hostfile", "--mpiexec", "--remote-shell", "--mpi-args")


def configure_launcher(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    group = parser.add_argument_group("hosts")
    group.add_argument(
        "--launcher",
        choices=("local", "mpi"),
        default="local",
        help="who starts the ranks: ourselves, on this machine (default), or an MPI's mpiexec",
    )
    group.add_argument(
        "--hosts",
        metavar="A:4,B:4",
        help="with mpi: where, and how many ranks on each; without numbers they are shared out",
    )
    group.add_argument(
        "--hostfile",
        type=Path,
        metavar="FILE",
        help="with mpi: the same from a file, a line each: HOST, HOST:4 or HOST slots=4",
    )
    group.add_argument(
        "--mpiexec",
        metavar="PATH",
        help="with mpi: which one (default: the one beside this Python, else the first on PATH)",
    )
    group.add_argument(
        "--remote-shell",
        metavar="COMMAND",
        help="with mpi: what runs a command on another host, called as ssh is (default: mpiexec's)",
    )
    group.add_argument(
        "--mpi-args", metavar="ARGUMENTS", help='with mpi: more of mpiexec\'s, as "-iface eth1"'
    )


def read_launcher(
    arguments: argparse.Namespace, *, python: bool = True
) -> tuple[int | None, MpiStart | None]:
    """How many ranks are asked for, and how an mpiexec starts them; None: we do, ourselves.

    Args:
        arguments: what the options gave; `ranks` may be None.
        python: whether ranks are Python programs, which need mpi4py.

    Raises:
        ValueError: options do not fit together, or something that they need is missing.
    """
    if arguments.launcher == "local":
        for option in WITH_VALUE[1:]:
            if getattr(arguments, option[2:].replace("-", "_")) is not None:
                raise ValueError(f"{option} is for --launcher mpi, found --launcher local")
        return arguments.ranks, None
    from launch.hosts import parse_hosts, read_hostfile, share_ranks
    from launch.mpi_start import MpiStart, check_library, find_mpiexec, find_remote_shell

    if arguments.hosts is not None and arguments.hostfile is not None:
        raise ValueError("expected --hosts or --hostfile, found both")
    hosts, ranks = [], arguments.ranks
    if ranks is not None and ranks < 1:
        raise ValueError(f"the number of ranks must be at least 1, not {ranks}")
    if arguments.hosts is not None or arguments.hostfile is not None:
        named = (
            parse_hosts(arguments.hosts)
            if arguments.hosts is not None
            else read_hostfile(arguments.hostfile)
        )
        hosts = share_ranks(named, ranks)
        ranks = sum(host.slots for host in hosts)
    shell = _words("--remote-shell", arguments.remote_shell)
    if arguments.remote_shell is not None:
        shell = find_remote_shell(shell)
    extra = _words("--mpi-args", arguments.mpi_args)
    mpiexec, family, version = find_mpiexec(arguments.mpiexec)
    if python:
        check_library(mpiexec, family)
    return ranks, MpiStart(
        mpiexec=mpiexec,
        family=family,
        version=version,
        hosts=hosts,
        remote_shell=shell,
        extra=extra,
        environment=dict(os.environ),
    )


def _words(option: str, text: str | None) -> list[str]:
    try:
        return shlex.split(text or "")
    except ValueError as error:
        raise ValueError(f"{option}: expected words as a shell has them: {error}") from None
