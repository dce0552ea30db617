"""The command line of each MPI's own mpiexec: the same request, typed as that one wants it.

Pure: nothing here looks at the machine or starts anything. Binding is left to what starts a rank on
its host (`launch.mpi_rank`), so that it is ours under every MPI; each mpiexec's own is turned off.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from launch.hosts import Host

FAMILIES = ("MPICH", "Intel MPI", "Open MPI")

FORWARDED = (
    "COLLECTIVES_", "CUDA_", "FI_", "GLOO_", "I_MPI_", "KMP_", "MASTER_", "MKL_", "MPICH_",
    "MPIR_CVAR_", "NCCL_", "OMPI_MCA_", "OMP_", "PMIX_MCA_", "PRTE_MCA_", "PYTHON", "TORCH", "UCX_",
)  # fmt: skip
"""How variables begin that ranks on other hosts get, where an mpiexec does not hand on all."""

FORWARDED_WHOLE = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")

OF_ONE_HOST = ("COLLECTIVES_HOST_ID",)
"""Not for others: what says which host this is would make one of all."""


class Typed(NamedTuple):
    """A command line, and the variables that the mpiexec itself reads."""

    words: list[str]
    environment: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of an mpiexec.

    Attributes:
        mpiexec: its path.
        ranks: how many to start.
        hosts: where, and how many on each; none: on this machine, or in Slurm's allocation.
        remote_shell: what runs a command on another host, with its arguments; none: as mpiexec does
            by itself.
        extra: the user's own arguments for mpiexec.
        in_slurm: whether we are in an allocation, which says by itself where ranks go.
        as_root: whether the user is root.
        forwarded: names of variables that ranks need.
    """

    mpiexec: str
    ranks: int
    hosts: Sequence[Host] = ()
    remote_shell: Sequence[str] = ()
    extra: Sequence[str] = ()
    in_slurm: bool = False
    as_root: bool = False
    forwarded: Sequence[str] = ()


def type_command(family: str, request: Request, command: Sequence[str], version: str = "") -> Typed:
    """The command line that starts `command` as the ranks that are asked for.

    Args:
        family: whose mpiexec it is, of FAMILIES.
        request: what is asked.
        command: what every rank runs.
        version: what the mpiexec says of itself.

    Raises:
        ValueError: a family that we do not know to type for.
    """
    if family == "MPICH":
        return _mpich(request, command)
    if family == "Intel MPI":
        return _intel(request, command)
    if family == "Open MPI":
        return _open_mpi(request, command, old="OpenRTE" in version)
    raise ValueError(f"expected the mpiexec of {', '.join(FAMILIES)}, found {family or 'another'}")


def forwarded_names(names: Iterable[str]) -> list[str]:
    """Of the variables of this process, those that ranks on other hosts need too."""
    return sorted(
        name
        for name in names
        if (name.startswith(FORWARDED) or name in FORWARDED_WHOLE) and name not in OF_ONE_HOST
    )


def _mpich(request: Request, command: Sequence[str]) -> Typed:
    """Hydra hands the whole environment to every rank by itself."""
    words, environment = [request.mpiexec, "-bind-to", "none"], {}
    if request.remote_shell:
        shell, *arguments = request.remote_shell
        words += ["-launcher", "ssh", "-launcher-exec", shell]
        if arguments:  # -launcher-exec takes a path alone
            environment["HYDRA_LAUNCHER_EXTRA_ARGS"] = shlex.join(arguments)
    elif not request.hosts and not request.in_slurm:
        words += ["-launcher", "fork"]
    if request.hosts:
        words += ["-hosts", ",".join(f"{host.name}:{host.slots}" for host in request.hosts)]
    return Typed([*words, *request.extra, "-n", str(request.ranks), *command], environment)


def _intel(request: Request, command: Sequence[str]) -> Typed:
    """Its -hosts knows no slots, so that each host gets an argument set of its own."""
    words = [request.mpiexec]
    if request.remote_shell:
        shell, *arguments = request.remote_shell
        words += ["-bootstrap", "ssh", "-bootstrap-exec", shell]
        if arguments:
            words += ["-bootstrap-exec-args", shlex.join(arguments)]
    elif not request.hosts and not request.in_slurm:
        words += ["-bootstrap", "fork"]
    words += request.extra
    for at, host in enumerate(request.hosts):
        words += [":"] if at else []
        words += ["-host", host.name, "-n", str(host.slots), *command]
    if not request.hosts:
        words += ["-n", str(request.ranks), *command]
    # Signals that we send to mpiexec are for the ranks.
    return Typed(words, {"I_MPI_PIN": "0", "I_MPI_JOB_SIGNAL_PROPAGATION": "1"})


def _open_mpi(request: Request, command: Sequence[str], *, old: bool) -> Typed:
    """Those before 5 (OpenRTE) have another name for the remote shell."""
    words = [request.mpiexec, "--bind-to", "none"]
    if request.as_root:
        words.append("--allow-run-as-root")
    if request.remote_shell:
        words += ["--mca", "plm_rsh_agent"] if old else ["--prtemca", "plm_ssh_agent"]
        words.append(shlex.join(request.remote_shell))
    if request.hosts:
        words += ["--map-by", "slot"]
        words += ["--host", ",".join(f"{host.name}:{host.slots}" for host in request.hosts)]
    elif not request.in_slurm:  # it counts cores, of which there may be fewer than ranks
        words += ["--map-by", ":OVERSUBSCRIBE"]
    if request.hosts or request.in_slurm:
        for name in request.forwarded:
            words += ["-x", name]
    return Typed([*words, *request.extra, "-n", str(request.ranks), *command], {})
