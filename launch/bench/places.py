"""Where ranks are measured that an mpiexec starts: on several hosts, or on this one over MPI."""

from __future__ import annotations

import os
import random
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from launch.bench.contenders import Contender, ContenderMissing
from launch.mpi_command import Request, forwarded_names, type_command
from launch.mpi_library import mpi_family
from launch.mpi_start import MpiStart, find_mpiexec

_PORTS = range(20000, 30000)  # below those that systems give out by themselves


@dataclass(frozen=True)
class Places:
    """How every contender's ranks are started and find the benchmark.

    Attributes:
        start: by which mpiexec, and where.
        transport: what our own take.
        token: what only ranks of this run know.
    """

    start: MpiStart
    transport: str
    token: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def address(self) -> str:
        """Of this machine, as the hosts reach it."""
        if not self.start.hosts:
            return "127.0.0.1"
        first = self.start.hosts[0].name.rpartition("@")[2]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((first, 9))  # sends nothing
            return str(probe.getsockname()[0])

    def describe(self, ranks: int) -> str:
        """One line for the head of the run."""
        return f"{self.start.describe(ranks)}; ours over {self.transport}"

    def on(self, contender: Contender) -> Contender:
        """The contender with its ranks there."""
        if contender.library == "deepspeed":
            raise ContenderMissing(f"{contender.name}: is measured on one host only")
        start = self.start
        mpiexec, family, version = start.mpiexec, start.family, start.version
        if contender.library == "mpi":
            mpiexec, family, version = find_mpiexec(None, contender.python)
        options = dict(contender.options)
        environment, settings = dict(contender.environment), dict(contender.settings)
        if contender.library == "ours":
            options["transport"] = self.transport
        if contender.library == "torch_distributed":
            first = start.hosts[0].name.rpartition("@")[2] if start.hosts else "127.0.0.1"
            options["master"] = [first, random.choice(_PORTS)]
            for name in ("GLOO_SOCKET_IFNAME",):
                chosen = os.environ.get(name)
                if start.hosts:
                    environment.pop(name, None)
                    settings.pop(name, None)
                if chosen:
                    environment[name] = settings[name] = chosen

        def typed(ranks: int, program: Sequence[str]) -> list[str]:
            request = Request(
                mpiexec=mpiexec,
                ranks=ranks,
                hosts=start.hosts,
                remote_shell=start.remote_shell,
                extra=start.extra if family == mpi_family(start.version) else (),
                as_root=os.getuid() == 0,
                forwarded=forwarded_names([*os.environ, *environment]),
            )
            words, more = type_command(family, request, program, version)
            environment.update(more)
            return words

        return replace(
            contender, mpiexec=[mpiexec], typed=typed, options=options, environment=environment,
            settings=settings,
        )  # fmt: skip
