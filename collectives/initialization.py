"""`init`: from what a launcher left in the environment to a communicator of all ranks."""

from __future__ import annotations

import os
import platform
import sys

from collectives import settings
from collectives.arguments import check_timeout
from collectives.communicator import Communicator
from collectives.faults import parse_faults
from collectives.specs import nearest
from collectives.tuned import machine_table
from collectives.which_device import own_device

_TRANSPORTS = ("auto", "shm", "cuda_ipc")
_OF_LATER = ("mpi", "tcp")
DEFAULT_TIMEOUT = 1800.0


def init(transport: str = "auto", timeout: float = DEFAULT_TIMEOUT) -> Communicator:
    """Connect to the other ranks of this job.

    The ranks are those that `collectives run`, `launch.spawn` or torchrun started; a process that
    none of them started is a world of one.

    Args:
        transport: "shm": the ranks are on one host and share its memory, which is all that calls
            carry. "auto": so they do, and from the first call with an array on a device their
            devices share memory, too. "cuda_ipc": that from the beginning, every rank on the device
            that its number on the host gives it, in turn where there are fewer devices.
        timeout: seconds that any wait may take, this one included.

    Returns:
        The communicator of all ranks; close it, or use it as a context manager.

    Raises:
        ValueError: no such transport, or the environment makes no sense.
        ModuleNotFoundError: "cuda_ipc" without cupy.
        CollectiveTimeout: some ranks did not come in time; the text names them.
        CollectiveError: the ranks do not fit together.
    """
    if transport not in _TRANSPORTS:
        if transport in _OF_LATER:
            raise ValueError(
                f"transport {transport!r} does not exist yet; expected auto, shm or cuda_ipc"
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
    if place.launcher == "none":
        settings.refuse_foreign_launchers(os.environ)
    if place.local_size != place.size:
        raise ValueError(
            f"{place.size} ranks, but {place.local_size} on this host: ranks on several hosts are "
            "not carried yet, expected all on one"
        )
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
        geometry=settings.geometry(),
        table=machine_table(),
        timeout=timeout,
        host_id=settings.host_id_override(),
        faults=[fault for fault in faults if fault.rank == place.rank],
        devices=transport != "shm",
        device=device,
    )
