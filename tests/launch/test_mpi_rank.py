"""What starts a rank on its host: its place and variables, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from collectives.settings import place_in_job
from collectives.under_mpi import UnderMpi
from launch import mpi_rank, mpi_start
from launch.environment import HostShare
from launch.mpi_rank import Orders, environment_of, share_of

TOKEN = "0123456789abcdef"
ORDERS = Orders(job=TOKEN, run="run", restart=1, max_restarts=2, master_address="a", master_port=7)
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "7"}


def start(
    tmp_path, environment, orders=ORDERS, command=("true",)
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", mpi_rank.__file__, orders.text(), *command],
        env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (0, HostShare(local_rank=0, local_size=4, host=0, hosts=2)),
        (3, HostShare(local_rank=3, local_size=4, host=0, hosts=2)),
        (4, HostShare(local_rank=0, local_size=3, host=1, hosts=2)),
        (6, HostShare(local_rank=2, local_size=3, host=1, hosts=2)),
    ],
)
def test_a_rank_is_placed_by_the_hosts(rank, expected):
    # Of hosts with one name, a machine that plays two, an mpiexec may say what it likes.
    variables = {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    assert share_of(UnderMpi("Open MPI", rank, 7, 1, "job"), (4, 3), variables) == expected


@pytest.mark.parametrize(
    ("local_size", "variables", "expected"),
    [
        (4, {"MPI_LOCALRANKID": "1"}, HostShare(local_rank=1, local_size=4, host=1, hosts=2)),
        (4, {"SLURM_LOCALID": "3"}, HostShare(local_rank=3, local_size=4, host=1, hosts=2)),
        (0, {}, HostShare(local_rank=5, local_size=8)),
    ],
)
def test_without_hosts_a_rank_is_where_its_mpiexec_says(local_size, variables, expected):
    assert share_of(UnderMpi("hydra", 5, 8, local_size, "job"), (), variables) == expected


def test_a_rank_finds_torchruns_variables_and_that_it_is_of_mpi():
    place = UnderMpi("Open MPI", 5, 7, 3, "Open MPI/x")
    share = HostShare(local_rank=1, local_size=3, host=1, hosts=2, master_address="a")
    found = environment_of(place, share, ORDERS, {**OPEN_MPI, "COLLECTIVES_SECRET": "s"})
    expected = {
        "RANK": "5", "WORLD_SIZE": "7", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3",
        "GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "7",
        "TORCHELASTIC_RUN_ID": "run", "TORCHELASTIC_RESTART_COUNT": "1",
        "TORCHELASTIC_MAX_RESTARTS": "2", "COLLECTIVES_JOB": f"{TOKEN}.5",
        "COLLECTIVES_SECRET": "s", **OPEN_MPI,
    }  # fmt: skip
    assert expected.items() <= found.items()
    at = place_in_job(found)
    assert (at.rank, at.size, at.launcher, at.secret) == (5, 7, "mpiexec", "s")
    # A job of another launcher inside a rank is that launcher's.
    inner = {**found, "RANK": "0", "WORLD_SIZE": "2", "COLLECTIVES_JOB": "inner"}
    at = place_in_job(inner)
    assert (at.rank, at.size, at.launcher, at.job) == (0, 2, "collectives", "inner")


def test_one_rank_of_mpiexec_is_a_world_of_one():
    alone = {"PMI_RANK": "0", "PMI_SIZE": "1", "COLLECTIVES_JOB": "j", "COLLECTIVES_MPI_JOB": "j"}
    assert place_in_job(alone).size == 1
    assert place_in_job(alone).job == f"alone-{os.getpid()}"


def test_without_an_mpiexec_there_is_no_rank(tmp_path):
    done = start(tmp_path, {"PATH": os.environ["PATH"]})
    assert done.returncode == mpi_rank.REFUSED
    assert "expected that the mpiexec says a rank that we know, PMI_RANK" in done.stderr


def test_a_folder_that_a_host_lacks_is_named(tmp_path):
    orders = Orders(job=TOKEN, run="", folder="/no/such")
    done = start(tmp_path, {"PMI_RANK": "0", "PMI_SIZE": "1"}, orders)
    assert done.returncode == mpi_rank.REFUSED
    assert "the folder /no/such is the same on every host: No such file" in done.stderr


def test_a_rank_may_not_be_more_than_a_number(tmp_path):
    done = start(tmp_path, {"PMI_RANK": "x", "PMI_SIZE": "1"})
    assert done.returncode == mpi_rank.REFUSED
    assert "PMI_RANK, which hydra sets, must be an integer" in done.stderr


@pytest.mark.parametrize("python, file", [("/no/python", __file__), (sys.executable, "/no/file")])
def test_what_a_host_lacks_is_named(python, file):
    done = subprocess.run(
        ["/bin/sh", "-c", mpi_start.LOOK, "sh", python, "-I", "-S", file],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == mpi_rank.REFUSED
    assert f"expected the Python {python} and the file {file}" in done.stderr
    assert "the same environment at the same place on every host" in done.stderr


def test_orders_come_through_a_command_line():
    assert Orders(**json.loads(ORDERS.text())) == Orders(**{**vars(ORDERS), "slots": []})
    assert Path(mpi_rank.__file__).exists()
