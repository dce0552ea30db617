"""Ranks on hosts that have a network between them: namespaces, and MPI over TCP."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from harness import namespaces
from harness.conformance import Case, run_case
from harness.namespaces import hosts, sweep
from harness.under_mpi import TESTS, run_under

COUNTS = (0, 1, 1000, 300000)
ROOT = TESTS.parent


@pytest.fixture(scope="module")
def network():
    with hosts(2, rate="1gbit") as found:
        yield found


def seen(comm):
    import socket

    devices = sorted(each.name for each in Path("/sys/class/net").iterdir())
    files = {each.name for each in Path("/dev/shm").iterdir()}
    return comm.transport, comm.hosts, socket.gethostname(), devices, files


def test_each_host_is_one_by_itself(network):
    """Nothing but its namespace says which host a rank is on."""
    found = network.spawn(seen, 4)
    assert {each[:2] for each in found} == {("mpi", (0, 0, 1, 1))}
    assert [each[2] for each in found] == ["host1", "host1", "host2", "host2"]
    assert all(each[3] == ["eth0", "lo"] for each in found)
    assert not found[0][4] & found[2][4]


def test_hosts_may_have_unequal_numbers_of_ranks(network):
    assert {each[1] for each in network.spawn(seen, 3)} == {(0, 0, 1)}


def calls(comm):
    """Every rank makes each call; what is wrong."""
    problems = []
    for count in COUNTS:
        for collective in ("allreduce", "broadcast", "alltoall"):
            for root in range(comm.size) if collective == "broadcast" else (0,):
                case = Case(collective, "", "numpy", "float32", count, "sum", root)
                problems.append(run_case(comm, case))
        # Each to the next, around both hosts.
        given = np.arange(count, dtype=np.float64) * (comm.rank + 1)
        before, after = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
        sending = comm.isend(given, after)
        taken = np.empty(count)
        comm.recv(taken, before)
        sending.wait()
        if not np.array_equal(taken, np.arange(count) * (before + 1.0)):
            problems.append(f"rank {comm.rank}: wrong {count} from rank {before}")
    return [each for each in problems if each]


def test_calls_give_what_numpy_does(network):
    before = network.sent(1), network.sent(2)
    assert network.spawn(calls, 4) == [[]] * 4
    # Not by memory that both happen to reach: what the alltoall of the most has for the other host.
    for host, sent in enumerate(before, 1):
        assert network.sent(host) - sent > 4 * 300000 * 4


CUT = """
import subprocess, sys
import collectives
import numpy as np
from mpi4py.MPI import COMM_WORLD

def cut():
    if COMM_WORLD.rank == 2:
        subprocess.run("ip route add unreachable 10.99.0.1/32".split(), check=True)

COMM_WORLD.Barrier()
COMM_WORLD.gather(None)  # when rank 0 has them, nobody is in the barrier any more
if COMM_WORLD.rank == 0:
    COMM_WORLD.send(None, 2)
elif COMM_WORLD.rank == 2:
    COMM_WORLD.recv(None, 0)
if sys.argv[1] == "before":
    cut()
try:
    with collectives.init(timeout=2) as comm:
        comm.barrier()
        cut()
        comm.allreduce(np.ones(300000))
except collectives.CollectiveError as error:
    print(f"{type(error).__name__}: {error}", flush=True)
    COMM_WORLD.Abort(5)
"""
"""Host 2 cannot send to host 1 any more; mpiexec, which is on neither, still reaches both."""


@pytest.mark.parametrize(
    "when, told",
    [
        (
            "before",
            r"rank 0 has waited 2\S* s for ranks 2, 3 of 4 to come to the rendezvous over MPI",
        ),
        (
            "amid",
            r"allreduce .*: rank \d has waited 2\S* s for a message from rank \d .* on host\d",
        ),
    ],
    ids=["before", "amid"],
)
def test_a_wire_that_is_cut_is_told_in_time(when, told):
    with hosts(2) as network:
        command = [sys.executable, "-c", CUT, when]
        ended = run_under(network.mpi(4), 4, command, {"PYTHONPATH": str(ROOT)}, timeout=40)
    assert ended.code == 5
    assert re.search(f"CollectiveTimeout: {told}", ended.stdout), ended


def test_a_device_without_a_route_is_told_by_mpi_itself():
    """It ends while MPI begins, long before there is anything of ours."""
    with hosts(2) as network:
        for host in (1, 2):
            network.ip(host, "link add eth1 type veth peer name eth2")
            network.ip(host, f"address add 10.98.{host}.1/24 dev eth1")
            network.ip(host, "link set eth1 up")
            network.ip(host, "link set eth2 up")
        with pytest.raises(AssertionError, match=r"nic=eth1: Network is unreachable"):
            network.spawn(seen, 2, environment={"FI_TCP_IFACE": "eth1"}, timeout=40)


MAKER = """
import os, signal, subprocess, sys
from harness.namespaces import hosts

with hosts(2) as network:
    command = [*network.on(2), "echo there; exec sleep 1000 > /dev/null"]
    subprocess.Popen(command, stdout=subprocess.PIPE).stdout.readline()
    print(network.name, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_maker_leaves_is_swept():
    with hosts(1) as mine:
        environment = os.environ | {"PYTHONPATH": f"{TESTS}:{ROOT}"}
        killed = subprocess.run(
            [sys.executable, "-c", MAKER], env=environment, stdout=subprocess.PIPE, text=True
        )
        name = killed.stdout.strip()
        assert killed.returncode == -signal.SIGKILL
        sweep()
        assert not list(namespaces.FOLDER.glob(f"{name}-*"))
        mine.ip(1, "link show eth0")  # its maker lives
    assert not list(namespaces.FOLDER.glob(f"{mine.name}-*"))


def test_what_still_runs_on_a_host_at_the_end_is_told_and_ended(monkeypatch):
    monkeypatch.setattr(namespaces, "GRACE", 0.1)
    told = r"left on hosts of a network:\n  \d+ in collectives-.*: sleep 1000"
    with pytest.raises(AssertionError, match=told), hosts(1) as network:
        command = [*network.on(1), "echo there; exec sleep 1000"]
        left = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert left.stdout.readline()
    left.stdout.close()
    assert left.wait() == -signal.SIGKILL


def test_without_the_tools_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    told = "no privilege: .* iproute2 and util-linux"
    with pytest.raises(pytest.skip.Exception, match=told), hosts(2):
        pass


def test_where_none_can_be_made_it_says_why(monkeypatch):
    def refused(command, check=True):
        if check:
            raise RuntimeError(f"{command}: Operation not permitted")
        return ""

    monkeypatch.setattr(namespaces, "_run", refused)
    told = "no privilege: .* netns add .* not permitted"
    with pytest.raises(pytest.skip.Exception, match=told), hosts(2):
        pass
