"""What is typed for each family's mpiexec, without running any."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launch.hosts import Host
from launch.mpi_command import FAMILIES, Request, forwarded_names, type_command

TWO = (Host("a", 4), Host("b", 3))
PROGRAM = ["python", "x.py"]
OPEN_MPI_4 = "mpiexec (OpenRTE) 4.1.4"
OPEN_MPI_5 = "mpiexec (Open MPI) 5.0.8"


def typed(family: str, version: str = "", **wanted: object) -> tuple[str, dict[str, str]]:
    asked = {"mpiexec": "mpiexec", "ranks": 7, **wanted}
    words, environment = type_command(family, Request(**asked), PROGRAM, version)
    return " ".join(words), environment


@pytest.mark.parametrize(
    ("family", "version", "words"),
    [
        ("MPICH", "", "mpiexec -bind-to none -launcher fork -n 7 python x.py"),
        ("Intel MPI", "", "mpiexec -bootstrap fork -n 7 python x.py"),
        ("Open MPI", OPEN_MPI_5,
         "mpiexec --bind-to none --map-by :OVERSUBSCRIBE -n 7 python x.py"),
    ],
)  # fmt: skip
def test_without_hosts_ranks_are_here(family, version, words):
    assert typed(family, version)[0] == words


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("MPICH", "mpiexec -bind-to none -n 7 python x.py"),
        ("Intel MPI", "mpiexec -n 7 python x.py"),
        ("Open MPI", "mpiexec --bind-to none -x A -n 7 python x.py"),
    ],
)
def test_in_an_allocation_each_mpiexec_knows_the_hosts_itself(family, words):
    assert typed(family, in_slurm=True, forwarded=["A"])[0] == words


@pytest.mark.parametrize(
    ("family", "version", "words"),
    [
        ("MPICH", "", "mpiexec -bind-to none -hosts a:4,b:3 -n 7 python x.py"),
        ("Intel MPI", "", "mpiexec -host a -n 4 python x.py : -host b -n 3 python x.py"),
        ("Open MPI", OPEN_MPI_5,
         "mpiexec --bind-to none --map-by slot --host a:4,b:3 -x A -x B -n 7 python x.py"),
    ],
)  # fmt: skip
def test_hosts_take_their_ranks_in_blocks(family, version, words):
    assert typed(family, version, hosts=TWO, forwarded=["A", "B"])[0] == words


@pytest.mark.parametrize(
    ("family", "version", "words", "variable"),
    [
        ("MPICH", "", "-launcher ssh -launcher-exec /bin/rsh",
         {"HYDRA_LAUNCHER_EXTRA_ARGS": "-p '2 2'"}),
        ("Intel MPI", "", "-bootstrap ssh -bootstrap-exec /bin/rsh -bootstrap-exec-args -p '2 2'",
         {}),
        ("Open MPI", OPEN_MPI_4, "--mca plm_rsh_agent /bin/rsh -p '2 2'", {}),
        ("Open MPI", OPEN_MPI_5, "--prtemca plm_ssh_agent /bin/rsh -p '2 2'", {}),
    ],
)  # fmt: skip
def test_a_remote_shell_is_named_with_its_arguments(family, version, words, variable):
    line, environment = typed(family, version, hosts=TWO, remote_shell=["/bin/rsh", "-p", "2 2"])
    assert words in line
    assert variable.items() <= environment.items()
    line, environment = typed(family, version, hosts=TWO, remote_shell=["/bin/rsh"])
    assert "/bin/rsh" in line and "-p" not in line.split()
    assert "HYDRA_LAUNCHER_EXTRA_ARGS" not in environment


def test_what_a_user_adds_comes_before_the_program():
    for family in FAMILIES:
        line, _ = typed(family, hosts=TWO, extra=["-iface", "eth1"])
        assert line.index("-iface eth1") < line.index("-n ") < line.index("python")


def test_root_is_what_open_mpi_wants_to_be_told_of():
    assert "--allow-run-as-root" in typed("Open MPI", as_root=True)[0]
    assert "--allow-run-as-root" not in typed("MPICH", as_root=True)[0]


def test_another_mpiexec_is_refused():
    with pytest.raises(ValueError, match="expected the mpiexec of MPICH, Intel MPI, Open MPI, fou"):
        typed("")


def test_other_hosts_are_given_what_ranks_need():
    names = [
        "COLLECTIVES_LEND",
        "HOME",
        "OMP_NUM_THREADS",
        "UCX_TLS",
        "PATH",
        "COLLECTIVES_HOST_ID",
    ]
    assert forwarded_names(names) == ["COLLECTIVES_LEND", "OMP_NUM_THREADS", "PATH", "UCX_TLS"]
    # Every variable that ours read begins so.
    text = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    ours = set(re.findall(r"`(COLLECTIVES_\w+)`", text)) - {"COLLECTIVES_HOST_ID"}
    assert set(forwarded_names(ours)) == ours
