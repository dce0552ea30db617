"""Which rank of which job a process is that an mpiexec has started, before MPI has begun."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class UnderMpi(NamedTuple):
    """What the launcher says; `local_size` is 0 where it does not say it, `job` then empty."""

    launcher: str
    rank: int
    size: int
    local_size: int
    job: str


def place_under_mpi(environment: Mapping[str, str]) -> UnderMpi | None:
    """What the environment of Open MPI's, MPICH's or Intel MPI's mpiexec or of Slurm's srun says.

    Raises:
        ValueError: a variable makes no sense.
    """
    if "OMPI_COMM_WORLD_RANK" in environment:
        job = environment.get("PMIX_NAMESPACE") or environment.get("OMPI_MCA_ess_base_jobid", "")
        return _place(environment, "Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                      "OMPI_COMM_WORLD_LOCAL_SIZE", job)  # fmt: skip
    if "PMI_RANK" in environment:
        return _place(environment, "hydra", "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS",
                      _started_by("PMI_RANK"))  # fmt: skip
    if "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:
        job = f"{environment.get('SLURM_JOB_ID', '')}.{environment['SLURM_STEP_ID']}"
        one = environment.get("SLURM_STEP_NUM_NODES") == "1"
        return _place(environment, "Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS",
                      "SLURM_STEP_NUM_TASKS" if one else "", job)  # fmt: skip
    return None


def _place(
    environment: Mapping[str, str], launcher: str, rank: str, size: str, local: str, job: str
) -> UnderMpi:
    found = []
    for name, least in ((rank, 0), (size, 1)):
        text = environment.get(name)
        if text is None or not text.isdigit() or int(text) < least:
            raise ValueError(
                f"{name}, which {launcher} sets, must be an integer of at least {least}, "
                f"found {text!r}"
            )
        found.append(int(text))
    if found[0] >= found[1]:
        raise ValueError(f"{rank} must be below {size} = {found[1]}, found {found[0]}")
    told = environment.get(local, "")
    local_size = int(told) if told.isdigit() and job else 0
    return UnderMpi(launcher, found[0], found[1], local_size, f"{launcher}/{job}")


def _started_by(variable: str) -> str:
    """The process that has started all ranks of this host: the next one that is none itself.

    Its number and when it began are the same for all of them, and for no other job.
    """
    process = os.getppid()
    while process > 1:
        folder = Path("/proc") / str(process)
        try:
            own = (folder / "environ").read_bytes().split(b"\0")
            status = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        if not any(entry.startswith(f"{variable}=".encode()) for entry in own):
            return f"{process}@{status[19]}"
        process = int(status[1])
    return ""
