"""What is looked for, and refused, before an mpiexec is started."""

from __future__ import annotations

import os
import sys

import pytest

from launch import mpi_start
from launch.environment import JobIdentity
from launch.hosts import Host
from launch.mpi_start import MpiStart, check_library, find_mpiexec, find_remote_shell

MPICH = "HYDRA build details:\\n    Version: 5.0.2"


@pytest.fixture
def executable(tmp_path):
    """Writes a program of the shell and returns its path."""

    def write(code: str, name: str = "mpiexec") -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{code}\n")
        path.chmod(0o755)
        return str(path)

    return write


def test_the_mpiexec_beside_python_comes_before_that_on_the_path(executable, monkeypatch, tmp_path):
    ours = executable(f"printf '{MPICH}'")
    path, family, version = find_mpiexec(None, python=str(tmp_path / "python"))
    assert (path, family) == (ours, "MPICH")
    assert "5.0.2" in version
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert find_mpiexec(None, python="/nowhere/python")[0] == ours
    assert find_mpiexec("mpiexec", python="/nowhere/python")[0] == ours


def test_without_an_mpiexec_what_to_install_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"no mpiexec: expected one beside /nowhere/python.*\[mpi\]"
    ):
        find_mpiexec(None, python="/nowhere/python")
    with pytest.raises(ValueError, match="--mpiexec mine: neither an executable file nor on PATH"):
        find_mpiexec("mine")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("echo 'slurm 23.02'", "no MPI that we know: expected one of MPICH, .*'slurm 23.02'"),
        ("exit 1", "found one that says 'nothing' of itself"),
        ("exec sleep 100", r"--version does not answer \(TimeoutExpired\)"),
    ],
)
def test_an_mpiexec_of_no_known_mpi_is_refused(executable, monkeypatch, code, words):
    monkeypatch.setattr(mpi_start, "ANSWERS_WITHIN", 2.0)
    with pytest.raises(ValueError, match=words):
        find_mpiexec(executable(code))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ('{"missing": ["mpi4py"]}', r"ranks of m need mpi4py, which .*python has not: pip install"),
        ('{"missing": [], "broken": "OSError: x"}', r"finds no MPI in .*\(OSError: x\): pip inst"),
        ('{"missing": [], "mpi": "Open MPI v5.0.8"}',
         "m is of MPICH, but mpi4py loads Open MPI in .*world of one. Give --mpiexec the one of"),
        ('{"missing": [], "mpi": "Cray 1"}', "m is of MPICH, but mpi4py loads Cray 1 in"),
        ("no JSON", r"python does not say which MPI its mpi4py loads \(JSONDecodeError\)"),
    ],
)  # fmt: skip
def test_an_mpiexec_that_is_not_mpi4pys_is_refused(executable, answer, words):
    python = executable(f"echo '{answer}'", "python")
    with pytest.raises(ValueError, match=words):
        check_library("m", "MPICH", python)


def test_our_own_mpi_fits():
    path, family, _ = find_mpiexec(None)
    check_library(path, family)


def test_a_remote_shell_is_found_on_the_path():
    assert find_remote_shell(["sh", "-x"])[0].endswith("/sh")


def test_what_cannot_be_a_remote_shell_is_refused(executable):
    with pytest.raises(ValueError, match="expected a program as ssh, found '/no -p 2', which"):
        find_remote_shell(["/no", "-p", "2"])
    with pytest.raises(ValueError, match=r"expected a path without spaces, found '.*a shell'"):
        find_remote_shell([executable("", "a shell")])


def started(monkeypatch, hosts=(), **variables: str) -> tuple[str, list[str]]:
    """What a start says of itself, and the command line that it types."""
    monkeypatch.setattr(mpi_start.socket, "gethostname", lambda: "here")
    monkeypatch.setattr(mpi_start.socket, "getfqdn", lambda: "here.site")
    start = MpiStart(mpiexec="/m", family="MPICH", version="", hosts=hosts, environment=variables)
    job = start.job(JobIdentity(ranks=3, master_port=7), ["x"], {}, print, bind=True, threads=2)
    job.close()
    return start.describe(3), list(job._inner._commands[0].command)


@pytest.mark.parametrize(
    ("hosts", "variables", "where", "address", "here"),
    [
        ([], {}, "on this machine", "127.0.0.1", True),
        ([Host("here", 3)], {}, "on here:3", "127.0.0.1", True),
        ([Host("far", 3)], {}, "on far:3", "127.0.0.1", False),
        ([Host("here.site", 1), Host("b", 2)], {}, "on here.site:1, b:2", "here.site", True),
        ([Host("localhost", 1), Host("b", 2)], {}, "on localhost:1, b:2", "here", True),
        ([Host("me@a", 1), Host("b", 2)], {}, "on me@a:1, b:2", "a", False),
        ([], {"SLURM_JOB_NODELIST": "n[4-5]"}, "where Slurm has them", "n4", False),
    ],
)
def test_rank_0s_host_is_where_the_others_reach_it(
    monkeypatch, hosts, variables, where, address, here
):
    said, words = started(monkeypatch, hosts, **variables)
    assert said == f"3 ranks {where}, by /m (MPICH)"
    (text,) = [word for word in words if word.startswith('{"job"')]
    orders = mpi_start.Orders(**mpi_start.json.loads(text))
    assert orders.master_address == address
    assert (orders.master_port == 7) == here
    assert (orders.threads, orders.bind, orders.slots) == (2, True, [host.slots for host in hosts])
    assert ("-launcher" in words) == (not hosts and not variables)
    assert sys.executable in words
