"""From what the user asks of `--launcher mpi` to a job that can start: all that can be is checked.

The mpiexec must be of the MPI that mpi4py loads in this Python: one that starts ranks of another
makes each of them a world of one.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.environment import MASTER_ADDRESS, JobIdentity
from launch.hosts import Host, first_of_nodes
from launch.mpi_command import FAMILIES, Request, Typed, forwarded_names, type_command
from launch.mpi_job import BEGINNING, MpiJob
from launch.mpi_library import PROBE, mpi_family, mpiexec_beside
from launch.mpi_rank import REFUSED, Orders
from launch.orphans import LAUNCHER_VARIABLE, launcher_mark
from launch.processes import RankCommand
from launch.sweeping import JOB_VARIABLE

ANSWERS_WITHIN = 60.0  # seconds
INSTALL = "pip install 'collectives-runtime[mpi]' brings one with its mpi4py"

_PORTS = range(20000, 30000)  # below those that systems give out by themselves
_FILE = str(Path(__file__).with_name("mpi_rank.py"))

# Run by every host's own shell, so that what is missing there is said in words.
LOOK = (
    '[ -x "$1" ] && [ -r "$4" ] && exec "$@"; '
    'echo "collectives, on host $(hostname): expected the Python $1 and the file $4, as on the '
    'host that started this: install the same environment at the same place on every host" >&2; '
    f"exit {REFUSED}"
)


@dataclass(frozen=True, kw_only=True)
class MpiStart:
    """How an mpiexec is to start the ranks.

    Attributes:
        mpiexec: its path.
        family: whose it is.
        version: what it says of itself.
        hosts: where, and how many on each; none: on this machine, or where an allocation says.
        remote_shell: what runs a command on another host, with its arguments.
        extra: the user's own arguments for mpiexec.
        beginning: seconds that all ranks have to begin.
        environment: of this process.
    """

    mpiexec: str
    family: str
    version: str
    hosts: Sequence[Host] = ()
    remote_shell: Sequence[str] = ()
    extra: Sequence[str] = ()
    beginning: float = BEGINNING
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def describe(self, ranks: int) -> str:
        """One line of what is started where."""
        if self.hosts:
            where = "on " + ", ".join(f"{host.name}:{host.slots}" for host in self.hosts)
        else:
            where = "where Slurm has them" if self._in_slurm else "on this machine"
        return f"{ranks} rank{'' if ranks == 1 else 's'} {where}, by {self.mpiexec} ({self.family})"

    def job(
        self,
        identity: JobIdentity,
        command: Sequence[str],
        base: Mapping[str, str],
        say: Callable[[Sequence[bytes]], None],
        *,
        bind: bool,
        threads: int | None,
    ) -> MpiJob:
        """The job that starts `command` as the ranks.

        Args:
            identity: of the job; its port is free on this machine.
            command: what every rank runs.
            base: the environment that ranks get.
            say: shows lines of the mpiexec.
            bind: share each host's cores out among its ranks.
            threads: OMP_NUM_THREADS of each.
        """
        address, here = self.master()
        orders = Orders(
            job=identity.job,
            run=identity.run or identity.job,
            restart=identity.restart,
            max_restarts=identity.max_restarts,
            slots=[host.slots for host in self.hosts],
            master_address=address,
            master_port=identity.master_port if here else drawn_port(),
            folder=str(Path.cwd()),
            bind=bind,
            threads=threads,
        )
        variables = {
            **base,
            JOB_VARIABLE: identity.job,
            LAUNCHER_VARIABLE: launcher_mark(),
            "COLLECTIVES_SECRET": identity.secret,
        }
        shell = ["/bin/sh", "-c", LOOK, "sh", sys.executable, "-I", "-S", _FILE, orders.text()]
        typed = self.typed(identity.ranks, [*shell, *command], variables)
        mpiexec = RankCommand(
            command=typed.words,
            environment={**variables, **typed.environment},
            reads_stdin=identity.restart == 0 and not os.isatty(0),
        )
        return MpiJob(
            identity.job,
            mpiexec,
            identity.ranks,
            say,
            shown=shlex.join(typed.words[: typed.words.index(shell[0])]) + " …",
            hint=self._hint(),
            beginning=self.beginning,
        )

    def typed(self, ranks: int, command: Sequence[str], variables: Iterable[str]) -> Typed:
        """The command line that starts `command` as so many ranks, which need these variables."""
        request = Request(
            mpiexec=self.mpiexec,
            ranks=ranks,
            hosts=self.hosts,
            remote_shell=self.remote_shell,
            extra=self.extra,
            in_slurm=self._in_slurm,
            as_root=os.getuid() == 0,
            forwarded=forwarded_names(variables),
        )
        return type_command(self.family, request, command, self.version)

    def _hint(self) -> str:
        """An mpiexec may end before it has shown what the remote shell said."""
        if not self.hosts:
            return ""
        host = self.hosts[-1].name
        tried = shlex.join([*(self.remote_shell or ["ssh"]), host, "true"])
        return f"; try whether hosts are reached without a password: {tried}"

    @property
    def _in_slurm(self) -> bool:
        return "SLURM_JOB_NODELIST" in self.environment

    def master(self) -> tuple[str, bool]:
        """Where others reach rank 0's host, and whether that is this machine."""
        own = {"localhost", MASTER_ADDRESS, socket.gethostname(), socket.getfqdn()}
        if len(self.hosts) > 1:
            first = self.hosts[0].name.rpartition("@")[2]
        elif self.hosts or not self._in_slurm:
            return MASTER_ADDRESS, not self.hosts or self.hosts[0].name in own
        else:
            first = first_of_nodes(self.environment["SLURM_JOB_NODELIST"])
        loops = first in ("localhost", MASTER_ADDRESS)
        return socket.gethostname() if loops else first, first in own


def drawn_port() -> int:
    """One of a host where we cannot ask which are free."""
    return random.choice(_PORTS)


def find_mpiexec(named: str | None, python: str = sys.executable) -> tuple[str, str, str]:
    """The mpiexec to take, whose it is, and what it says of itself.

    Args:
        named: by the user, as a path or found on PATH; by default the one beside `python`, else the
            first on PATH.
        python: that of the ranks.

    Raises:
        ValueError: there is none, it does not answer, or it is of no MPI that we know.
    """
    found = shutil.which(named) if named else mpiexec_beside(python) or shutil.which("mpiexec")
    if found is None and named:
        raise ValueError(f"--mpiexec {named}: neither an executable file nor on PATH")
    if found is None:
        raise ValueError(
            f"no mpiexec: expected one beside {python} or on PATH: {INSTALL}; a cluster's own "
            "often appears by `module load`"
        )
    try:
        done = subprocess.run(
            [found, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=ANSWERS_WITHIN,
        )  # fmt: skip
        said = f"{done.stdout}{done.stderr}"
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"{found} --version does not answer ({type(error).__name__})") from None
    family = mpi_family(said)
    if family not in FAMILIES:
        first = next((line.strip() for line in said.splitlines() if line.strip()), "nothing")
        raise ValueError(
            f"{found} is the mpiexec of no MPI that we know: expected one of {', '.join(FAMILIES)}"
            f", found one that says {first[:100]!r} of itself"
        )
    return str(Path(found).absolute()), family, said


def check_library(mpiexec: str, family: str, python: str = sys.executable) -> None:
    """Refuses an mpiexec of another MPI than the one that mpi4py loads in `python`.

    Raises:
        ValueError: so it is, or there is no mpi4py, or it finds no MPI.
    """
    try:
        done = subprocess.run(
            [python, "-P", "-c", PROBE, "mpi4py"], stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="replace", timeout=ANSWERS_WITHIN,
        )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise ValueError(
            f"{python} does not say which MPI its mpi4py loads ({type(error).__name__})"
        ) from None
    if found["missing"]:
        raise ValueError(f"ranks of {mpiexec} need mpi4py, which {python} has not: {INSTALL}")
    if "broken" in found:
        raise ValueError(f"mpi4py finds no MPI in {python} ({found['broken']}): {INSTALL}")
    loads = mpi_family(found["mpi"])
    if loads != family:
        name = loads or found["mpi"].split("\n")[0][:100]
        raise ValueError(
            f"{mpiexec} is of {family}, but mpi4py loads {name} in {python}: each rank would be a "
            f"world of one. Give --mpiexec the one of {name}, or install mpi4py for {family}"
        )


def find_remote_shell(words: Sequence[str]) -> list[str]:
    """The command with its program's whole path.

    Raises:
        ValueError: there is no such program, or no mpiexec could call it.
    """
    found = shutil.which(words[0]) if words else None
    if found is None:
        raise ValueError(
            f"--remote-shell: expected a program as ssh, found {' '.join(words)!r}, which is "
            "neither an executable file nor on PATH"
        )
    path = str(Path(found).absolute())
    if len(path.split()) > 1:  # an mpiexec writes it into command lines as it is
        raise ValueError(f"--remote-shell: expected a path without spaces, found {path!r}")
    return [path, *words[1:]]
