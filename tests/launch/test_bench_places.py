"""`collectives bench` with ranks that an mpiexec starts: on hosts, and over MPI within one."""

from __future__ import annotations

import socket
import sys

import pytest
from harness.namespaces import FOLDER, OVER_TCP, hosts

from launch.bench.contenders import OURS, Contender, ContenderMissing
from launch.bench.places import Places
from launch.bench.results import read_results
from launch.hosts import Host
from launch.mpi_start import MpiStart

QUICK = ("--min", "8", "--max", "64K", "--factor", "1024", "--rounds", "2", "--round-ms", "2")


def test_over_mpi_within_one_host(launcher):
    done = launcher("bench", "allreduce", "-n", "2", "--launcher", "mpi", "--transport", "mpi",
                    *QUICK, "--algorithm", "auto,mpi", "--against", "mpi,gloo",
                    "--json", "run.jsonl")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "transport mpi" in done.stdout and "on this machine" in done.stdout
    _, results = read_results(launcher.folder / "run.jsonl")
    assert {result.who for result in results} == {"ours", "MPICH", "gloo"}
    assert {result.variant for result in results if result.who == "ours"} == {"auto", "mpi"}
    assert all(result.wrong == 0 and len(result.rounds) == 2 for result in results)


@pytest.mark.full
def test_on_hosts_with_a_network(launcher, monkeypatch):
    with hosts(2) as network:
        for name, text in {"TEST_NETWORK": network.name, **OVER_TCP}.items():
            monkeypatch.setenv(name, text)
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
        places = ",".join(f"{network.address(host)}:2" for host in (1, 2))
        typed = network.mpi(4).mpiexec
        shell = typed[typed.index("-launcher-exec") + 1]
        process = launcher.start(
            "bench", "allreduce", "--launcher", "mpi", "--hosts", places, "--remote-shell", shell,
            "--mpi-args=-localhost 10.99.0.254", *QUICK, "--against", "ring,mpi,gloo",
            command=("nsenter", f"--net={FOLDER}/{network.name}-switch", sys.executable, "-m",
                     "launch"),
        )  # fmt: skip
        stdout, stderr = process.communicate(timeout=90)
        assert process.returncode == 0, stdout + stderr
        assert "10.99.0.1:2, 10.99.0.2:2" in stdout and "did not take part" not in stdout


@pytest.mark.parametrize(
    "words, said",
    [
        (("--transport", "mpi"), "--transport mpi expected --launcher mpi"),
        (("--hosts", "a:2"), "--hosts is for --launcher mpi, found --launcher local"),
        (("--launcher", "mpi", "--device", "cuda"), "measures collectives in host memory only"),
        (("--launcher", "mpi", "--hosts", "a:2,b:1", "-n", "4"), "4"),
    ],
)
def test_what_does_not_fit_is_refused(launcher, words, said):
    done = launcher("bench", "allreduce", *words)
    assert done.returncode != 0 and said in done.stderr


def test_a_library_of_one_host_is_refused():
    places = Places(MpiStart(mpiexec="mpiexec", family="MPICH", version="HYDRA"), "auto")
    with pytest.raises(ContenderMissing, match="DeepSpeed: is measured on one host only"):
        places.on(Contender(name="DeepSpeed", library="deepspeed"))


def test_every_rank_is_typed_for_its_host():
    start = MpiStart(mpiexec="/m/mpiexec", family="MPICH", version="HYDRA",
                     hosts=[Host("127.0.0.1", 2), Host("b", 1)])  # fmt: skip
    places = Places(start, "auto")
    words = places.on(OURS).command(3, "{}")
    assert words[:1] == ["/m/mpiexec"] and "127.0.0.1:2,b:1" in words and "{}" in words
    assert places.on(OURS).options["transport"] == "auto"
    assert places.address == "127.0.0.1"
    loops = {"GLOO_SOCKET_IFNAME": "lo"}  # as it is where all ranks are on this host
    gloo = places.on(
        Contender(name="gloo", library="torch_distributed", environment=loops, settings=loops)
    )
    assert gloo.options["master"][0] == socket.gethostname()  # others reach it by that
    assert "GLOO_SOCKET_IFNAME" not in gloo.environment


def test_who_has_no_token_is_no_rank():
    """Somebody else on the network connects, and says that it is one."""
    from launch.bench.groups import Group

    start = MpiStart(mpiexec="mpiexec", family="MPICH", version="HYDRA")
    group = Group(OURS, 2, cores=[[], []], threads=1, cache_bytes=1, places=Places(start, "auto"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        line = group_line(group, ours)
        assert not group._is_ours(line, {"rank": 0, "token": "wrong"})
        assert line not in group._strangers and theirs.recv(1) == b""


def group_line(group, connection):
    from launch.bench.groups import _Line

    line = _Line(connection, is_known=False)
    group._strangers.append(line)
    return line
