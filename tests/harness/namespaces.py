"""Several hosts on one machine, with a real network between them: network namespaces.

    host 1                 switch                 host 2
    eth0 10.99.0.1 ══════ port1 ─ br0 ─ port2 ══════ eth0 10.99.0.2
                          10.99.0.254

The switch is a namespace, too, and mpiexec runs there: outside there is nothing but the names of
namespaces, and with them all ends. They begin with `collectives-PID`, so what a process that was
killed has left is found by the next.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.under_mpi import MPICH, Mpi, mpi_spawn
from transports.readable import becomes_readable

TOOLS = {"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}
"""What is called, and Debian's package of it."""

OVER_TCP = {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "eth0"}
"""MPICH's way over the wire that is nearest to all of it; UCX, its own choice, takes it, too."""

SHAPED = "burst 128kb latency 20ms"
"""Of the token bucket: two packets of 64 KiB, which veth does not split.

At 1 Gbit/s TCP then has 0.955 of it in each direction, which is all but the headers.
"""

FOLDER = Path("/run/netns")
"""Where `ip` keeps the names."""

GRACE = 5.0
"""Seconds for processes on their way out."""

_PROXY = Path(__file__).with_name("enter_host.sh")
_SWITCH = "10.99.0.254"
_NUMBERS = itertools.count(1)


class Network:
    """Hosts 1, 2, ... and the wires between them."""

    def __init__(self, name: str, count: int) -> None:
        """The namespaces `name-1`, `name-2`, ..., and `name-switch`, once `hosts` has made them."""
        self.name = name
        self.count = count

    def address(self, host: int) -> str:
        """Of a host on the network."""
        return f"10.99.0.{host}"

    def on(self, host: int) -> tuple[str, ...]:
        """The words before a command for a shell that make it run on a host."""
        return ("env", f"TEST_NETWORK={self.name}", str(_PROXY), self.address(host))

    def ip(self, place: int | str, command: str, tool: str = "ip") -> None:
        """Calls `ip`, or `tc`, for a host or for the "switch"."""
        _run(f"{tool} -n {self.name}-{place} {command}")

    def sent(self, host: int) -> int:
        """Bytes that a host has sent so far, with all their headers."""
        said = _run(f"ip -j -s -n {self.name}-switch link show port{host}")
        return int(json.loads(said)[0]["stats64"]["rx"]["bytes"])

    def mpi(self, size: int, environment: dict[str, str] | None = None) -> Mpi:
        """An mpiexec that puts so many ranks on the hosts, in blocks."""
        share, more = divmod(size, self.count)
        shares = [share + (host < more) for host in range(self.count)]
        places = [f"{self.address(host)}:{each}" for host, each in enumerate(shares, 1) if each]
        return Mpi(
            ("nsenter", f"--net={FOLDER}/{self.name}-switch", *MPICH.mpiexec, "-launcher", "ssh",
             "-launcher-exec", str(_PROXY), "-localhost", _SWITCH, "-hosts", ",".join(places)),
            {"TEST_NETWORK": self.name, **MPICH.environment, **OVER_TCP, **(environment or {})},
        )  # fmt: skip

    def spawn(
        self,
        function: Callable[..., Any],
        size: int,
        *args: Any,
        transport: str = "auto",
        environment: dict[str, str] | None = None,
        timeout: float = 100,
    ) -> list[Any]:
        """As `harness.under_mpi.mpi_spawn`, with the ranks on the hosts, in blocks."""
        return mpi_spawn(
            function, size, *args, mpi=self.mpi(size, environment), transport=transport,
            timeout=timeout,
        )  # fmt: skip

    def _connect(self, rate: str | None) -> None:
        _run(f"ip netns add {self.name}-switch")
        self.ip("switch", "link add br0 type bridge")
        self.ip("switch", f"address add {_SWITCH}/24 dev br0")
        self.ip("switch", "link set br0 up")
        self.ip("switch", "link set lo up")
        for host in range(1, self.count + 1):
            port, here = f"port{host}", f"{self.name}-{host}"
            _run(f"ip netns add {here}")
            self.ip("switch", f"link add {port} type veth peer name eth0 netns {here}")
            self.ip("switch", f"link set {port} master br0 up")
            self.ip(host, f"address add {self.address(host)}/24 dev eth0")
            self.ip(host, "link set lo up")
            self.ip(host, "link set eth0 up")
            if rate:
                for place, device in ((host, "eth0"), ("switch", port)):
                    self.ip(place, f"qdisc add dev {device} root tbf rate {rate} {SHAPED}", "tc")


@contextlib.contextmanager
def hosts(count: int, rate: str | None = None) -> Iterator[Network]:
    """Hosts on a switch; a test is skipped where there can be none.

    Args:
        count: how many.
        rate: of each host's wire, in each direction, as `tc` has it: "1gbit"; None: what the
            kernel can.

    Raises:
        AssertionError: processes on the hosts have not ended by themselves, and were killed.
    """
    if lacking := sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)}):
        pytest.skip(f"no privilege: network namespaces need Debian's {' and '.join(lacking)}")
    sweep()
    network = Network(f"collectives-{os.getpid()}-{next(_NUMBERS)}", count)
    try:
        try:
            network._connect(rate)
            _run(" ".join([*network.on(1), "true"]))
        except RuntimeError as error:
            pytest.skip(f"no privilege: network namespaces ({error})")
        yield network
    finally:
        left = _remove(f"{network.name}-", GRACE)
    assert not left, "left on hosts of a network:\n  " + "\n  ".join(left)


def sweep() -> None:
    """Removes what those have left that made networks and were killed."""
    for path in FOLDER.glob("*"):
        found = re.fullmatch(r"collectives-(\d+)-\d+-(\d+|switch)", path.name)
        if found and not Path(f"/proc/{found[1]}").exists():
            _remove(path.name, 0)


def _remove(prefix: str, grace: float) -> list[str]:
    """Ends namespaces and what runs there; what did not end in time by itself."""
    deadline = time.monotonic() + grace
    killed = []
    for name in sorted(path.name for path in FOLDER.glob(f"{prefix}*")):
        for process in map(int, _run(f"ip netns pids {name}", check=False).split()):
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(process)
                try:
                    if becomes_readable(handle, max(0.0, deadline - time.monotonic())):
                        continue
                    killed.append(f"{process} in {name}: {_command(process)}")
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                finally:
                    os.close(handle)
        _run(f"ip netns del {name}", check=False)  # another may sweep, too
    return killed


def _command(process: int) -> str:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{process}/cmdline").read_bytes()
        return words.replace(b"\0", b" ").decode(errors="replace")[:200]
    return "ended"


def _run(command: str, check: bool = True) -> str:
    done = subprocess.run(command.split(), capture_output=True, text=True, timeout=30)
    if check and done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip()}")
    return done.stdout
