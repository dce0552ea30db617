"""What an mpiexec or srun says of a rank, and ranks of one host that it has started."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from harness.under_mpi import MPICH, mpi_spawn, run_under

from collectives import settings
from collectives.under_mpi import place_under_mpi

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-vm-7@1",
}  # fmt: skip
SLURM = {
    "SLURM_PROCID": "3", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "17", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "1",
}  # fmt: skip


def test_open_mpi():
    found = place_under_mpi(OPEN_MPI)
    assert found[1:] == (1, 4, 2, "Open MPI/prterun-vm-7@1")
    place = settings.place_in_job(OPEN_MPI)
    assert (place.rank, place.size, place.local_size, place.launcher) == (1, 4, 2, "mpiexec")


def test_slurm():
    assert place_under_mpi(SLURM)[1:] == (3, 4, 4, "Slurm/17.0")
    several = place_under_mpi(SLURM | {"SLURM_STEP_NUM_NODES": "2"})
    assert several.local_size == 0  # it does not say
    assert place_under_mpi({"SLURM_JOB_ID": "17", "SLURM_PROCID": "0"}) is None  # no step of srun


def test_hydra_names_a_job_by_who_has_started_its_ranks():
    found = place_under_mpi({"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"})
    assert found[1:4] == (0, 2, 2)
    assert found.job.startswith(f"hydra/{os.getppid()}@")
    # What Slurm says of the process that started the mpiexec does not count.
    assert place_under_mpi(SLURM | {"PMI_RANK": "0", "PMI_SIZE": "2"}).launcher == "hydra"


def test_nobody_and_alone():
    assert place_under_mpi({}) is None
    assert settings.place_in_job({"PMI_RANK": "0", "PMI_SIZE": "1"}).launcher == "none"


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"PMI_RANK": "x", "PMI_SIZE": "2"}, "PMI_RANK, which hydra sets, must be an integer.*'x'"),
        ({"PMI_RANK": "0"}, "PMI_SIZE, which hydra sets.*at least 1, found None"),
        ({"PMI_RANK": "2", "PMI_SIZE": "2"}, "PMI_RANK must be below PMI_SIZE = 2, found 2"),
    ],
)
def test_what_makes_no_sense(wrong, words):
    with pytest.raises(ValueError, match=words):
        place_under_mpi(wrong)


def added_up(comm):
    return comm.transport, comm.hosts, comm.allreduce(np.ones(3))[0], "mpi4py" in sys.modules


@pytest.mark.parametrize("transport", ["auto", "shm"])
def test_ranks_of_one_host_share_memory_and_need_no_mpi(transport):
    found = mpi_spawn(added_up, 3, transport=transport)
    assert found == [("shm", (0, 0, 0), 3.0, False)] * 3


def test_a_shell_between_mpiexec_and_rank():
    program = (
        "import collectives; c = collectives.init(timeout=20); c.barrier(); "
        "print(f'{c.size}\\n', end='', flush=True)"  # in one piece, whatever comes between
    )
    ended = run_under(MPICH, 2, ["sh", "-c", f'{sys.executable} -c "{program}"; true'])
    assert ended.code == 0 and ended.stdout.split() == ["2", "2"], ended.stderr


def test_by_mpi_alone():
    code = "import collectives; c = collectives.init('mpi'); print(c.size, c.transport, c.hosts)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["1", "shm", "(0,)"], done.stderr
