"""Where ranks are measured that an mpiexec starts: on several hosts, or on this one over MPI."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from launch.bench.contenders import Contender, ContenderMissing
from launch.mpi_start import MpiStart, drawn_port, find_mpiexec

_INTERFACE = "GLOO_SOCKET_IFNAME"


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
        options = dict(contender.options)
        environment, settings = dict(contender.environment), dict(contender.settings)
        if contender.library == "ours":
            options["transport"] = self.transport
        elif contender.library == "mpi":  # its mpiexec is typed for these places, too
            mpiexec, family, version = find_mpiexec(None, contender.python)
            extra = start.extra if family == start.family else ()
            start = replace(start, mpiexec=mpiexec, family=family, version=version, extra=extra)
            settings.pop("mpiexec", None)
            options["settings"] = settings
        elif contender.library == "torch_distributed":
            options["master"] = [start.master()[0], drawn_port()]
            if start.hosts and settings.get(_INTERFACE) == "lo":
                del environment[_INTERFACE], settings[_INTERFACE]
            if _INTERFACE in os.environ:
                environment[_INTERFACE] = settings[_INTERFACE] = os.environ[_INTERFACE]

        def typed(ranks: int, program: Sequence[str]) -> list[str]:
            words, more = start.typed(ranks, program, [*os.environ, *environment])
            environment.update(more)
            return words

        return replace(
            contender, mpiexec=[start.mpiexec], typed=typed, options=options, settings=settings,
            environment=environment,
        )  # fmt: skip
