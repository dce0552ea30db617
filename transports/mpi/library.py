"""The MPI library that mpi4py has loaded: whether it serves, and where its functions are."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transports.errors import CollectiveError

FUNCTIONS = (
    "MPI_Isend", "MPI_Irecv", "MPI_Recv_init", "MPI_Start", "MPI_Test", "MPI_Cancel",
    "MPI_Request_free", "MPI_Error_string",
)  # fmt: skip
"""What a carrier calls, in the order it takes their addresses."""

ALLREDUCE = "MPI_Allreduce"

SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE", "SLURM_NTASKS")
"""Where those that start ranks of MPI say how many they have started."""

_HANDLE_BITS = (1 << 64) - 1


class MpiError(CollectiveError):
    """There is no MPI here that can carry what collectives send."""


@dataclass(frozen=True)
class Library:
    """MPI as mpi4py has it, begun, with all its threads allowed to call it.

    Attributes:
        mpi: the module `mpi4py.MPI`.
        name: what the library calls itself.
        functions: addresses of FUNCTIONS.
        allreduce: that of MPI_Allreduce.
    """

    mpi: Any
    name: str
    functions: tuple[int, ...]
    allreduce: int

    def handle_of(self, thing: Any) -> int:
        """What the library's functions take for a communicator or a type."""
        return int(self.mpi._handleof(thing)) & _HANDLE_BITS


def load(environment: Mapping[str, str] | None = None) -> Library:
    """Let MPI begin, unless it has already.

    Raises:
        ModuleNotFoundError: there is no mpi4py.
        MpiError: it finds no MPI library, or one that ends at this process or lets only one thread
            call it.
    """
    environment = os.environ if environment is None else environment
    try:
        from mpi4py import MPI
    except ModuleNotFoundError as error:
        if error.name != "mpi4py":
            raise
        raise ModuleNotFoundError(
            "ranks on several hosts are carried by MPI, which needs mpi4py and an MPI library: "
            "pip install collectives-runtime[mpi] brings both (of a cluster's own MPI, "
            "pip install mpi4py is enough)",
            name="mpi4py",
        ) from None
    except (ImportError, RuntimeError) as error:  # its wheel looks for a library by itself
        raise MpiError(
            f"mpi4py is installed, but cannot load an MPI library: {error}\n"
            "pip install mpich brings one; of a cluster's own, its folder must be in "
            "LD_LIBRARY_PATH, or mpi4py be built for it"
        ) from None
    name = _first_line(MPI.Get_library_version())
    _check_world(MPI, name, environment)
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise MpiError(
            f"{name} lets only one thread call it, as it was begun; expected MPI.THREAD_MULTIPLE: "
            'leave mpi4py.rc.thread_level as it is ("multiple"), and do not begin MPI before'
        )
    *functions, allreduce = _addresses(MPI, (*FUNCTIONS, ALLREDUCE))
    return Library(MPI, name, tuple(functions), allreduce)


def _check_world(mpi: Any, name: str, environment: Mapping[str, str]) -> None:
    """An mpiexec of another library than that of its ranks makes each of them a world of one."""
    if mpi.COMM_WORLD.Get_size() > 1:
        return
    for variable in SIZE_VARIABLES:
        told = environment.get(variable, "1")
        if variable == "SLURM_NTASKS" and "SLURM_PROCID" not in environment:
            continue  # of the allocation, not of what srun started
        if told.isdigit() and int(told) > 1:
            raise MpiError(
                f"{variable} says {told} ranks, but {name}, which mpi4py has loaded, knows of one: "
                "they were started by the mpiexec of another MPI. Start them with its own, or "
                "install mpi4py for the other"
            )


def _addresses(mpi: Any, names: Sequence[str]) -> tuple[int, ...]:
    library = ctypes.CDLL(mpi.__file__)  # with those it is linked to, already loaded
    found = []
    for name in names:
        try:
            function = getattr(library, name)
        except AttributeError:
            raise MpiError(f"the MPI library of {mpi.__file__} has no {name}") from None
        address = ctypes.cast(function, ctypes.c_void_p).value
        found.append(address or 0)
    return tuple(found)


def _first_line(version: str) -> str:
    return " ".join(version.replace("\0", "").split("\n")[0].split(",")[0].split())
