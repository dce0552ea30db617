"""`init`: from what a launcher left in the environment to a communicator of all ranks."""

from __future__ import annotations

import platform
import sys

from collectives import settings
from collectives.arguments import check_timeout
from collectives.communicator import Communicator
from collectives.faults import parse_faults
from collectives.specs import nearest
from collectives.tuned import machine_table
from collectives.which_device import own_device
from transports.mpi.connection import Group
from transports.mpi.world import world
from transports.rendezvous.identity import host_identity

_TRANSPORTS = ("auto", "shm", "mpi", "cuda_ipc")
_OF_LATER = ("tcp",)
DEFAULT_TIMEOUT = 1800.0


def init(transport: str = "auto", timeout: float = DEFAULT_TIMEOUT) -> Communicator:
    """Connect to the other ranks of this job.

    The ranks are those that `collectives run`, `launch.spawn`, torchrun, mpiexec or srun started; a
    process that none of them started is a world of one.

    Args:
        transport: "shm": the ranks are on one host and share its memory, which is all that calls
            carry. "auto": so they do, and from the first call with an array on a device their
            devices share memory, too. "cuda_ipc": that from the beginning, every rank on the device
            that its number on the host gives it, in turn where there are fewer devices. "mpi": all
            that ranks of mpiexec send each other goes by MPI, within a host as well; "auto" uses
            MPI only between hosts.
        timeout: seconds that any wait may take, this one included.

    Returns:
        The communicator of all ranks; close it, or use it as a context manager.

    Raises:
        ValueError: no such transport, or the environment makes no sense.
        ModuleNotFoundError: "cuda_ipc" without cupy; several hosts, or "mpi", without mpi4py.
        CollectiveTimeout: some ranks did not come in time; the text names them.
        CollectiveError: the ranks do not fit together.
    """
    if transport not in _TRANSPORTS:
        if transport in _OF_LATER:
            raise ValueError(
                f"transport {transport!r} does not exist yet; expected auto, shm, mpi or cuda_ipc"
            )
        raise ValueError(
            f"transport must be one of {', '.join(_TRANSPORTS)}, found {transport!r}"
            + nearest(str(transport), _TRANSPORTS)
        )
    timeout = check_timeout(timeout)
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise OSError(
            "collectives runs on Linux on x86-64 and aarch64, found "
            f"{sys.platform} on {platform.machine()}"
        )
    place = settings.place_in_job()
    group = _group(transport, place, timeout)
    host_id = settings.host_id_override()
    if transport == "mpi":
        host_id = f"{host_identity(host_id)}/rank {place.rank}"
    try:
        faults = parse_faults(settings.injected_faults())
    except ValueError as error:
        raise ValueError(f"COLLECTIVES_INJECT: {error}") from None
    device = own_device(settings.local_rank()) if transport == "cuda_ipc" else None
    return Communicator(
        rank=place.rank,
        size=place.size,
        job=place.job,
        secret=place.secret,
        geometry=settings.geometry(several_hosts=group is not None),
        table=machine_table(),
        timeout=timeout,
        host_id=host_id,
        faults=[fault for fault in faults if fault.rank == place.rank],
        devices=transport != "shm",
        device=device,
        group=group,
    )


def _group(transport: str, place: settings.Place, timeout: float) -> Group | None:
    """The ranks by MPI, if they need it; None if shared memory is all they need."""
    by_mpi = place.launcher == "mpiexec"
    # Of ranks that play several hosts nobody knows yet which.
    plays = by_mpi and transport == "auto" and settings.host_id_override() is not None
    if transport != "mpi" and place.local_size == place.size and not plays:
        return None
    if not by_mpi and place.launcher != "none":
        raise ValueError(
            f"{place.size} ranks, {place.local_size} of them on this host, which "
            f'{place.launcher} has started: ranks of several hosts, or transport="mpi", expected '
            "those that mpiexec or srun starts (`collectives run --launcher mpi` does)"
        )
    if transport in ("shm", "cuda_ipc"):
        raise ValueError(
            f"transport {transport!r} ends at the host, and the ranks may be on several: expected "
            'transport "auto" or "mpi"'
        )
    found = world(timeout, settings.silence_seconds())
    if (found.rank, found.size) != (place.rank, place.size):
        raise ValueError(
            f"the environment says rank {place.rank} of {place.size}, {found.library.name} says "
            f"rank {found.rank} of {found.size}: expected the same"
        )
    return Group(found, tuple(range(found.size)))
