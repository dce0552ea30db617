"""Any MPI, through mpi4py: buffers, never pickles; MPI.IN_PLACE in place."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from collectives.bench.cases import POINT_TO_POINT, Case, NotCarried
from collectives.bench.libraries import OrdinaryMemory
from collectives.bench.streams import ping_pong, stream
from collectives.bench.tasks import Operation
from collectives.mpi_names import OPS, TYPES

RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
"""Where MPI libraries say which rank a process is before MPI has begun."""


class Mpi(OrdinaryMemory):
    """MPI.COMM_WORLD as a library to measure."""

    def __init__(self, settings: dict[str, str]) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = MPI.COMM_WORLD
        self._settings = settings
        self.rank: int = self._comm.Get_rank()
        self.size: int = self._comm.Get_size()

    def describe(self) -> dict[str, str]:
        """Version of the library and of mpi4py, and the settings it was started with."""
        import mpi4py

        version = self._mpi.Get_library_version().split("\n")[0].split(",")[0]
        name = " ".join(version.replace("\0", "").split())
        return {"library": name, "mpi4py": mpi4py.__version__, **self._settings}

    def barrier(self) -> None:
        """Return once every rank has come here."""
        self._comm.Barrier()

    def operation(self, case: Case, variant: str, x: Any, out: Any) -> Operation:
        """A call of the communicator's upper-case method."""
        comm, name, in_place = self._comm, case.collective, case.place == "in"
        if name == "barrier":
            return partial(comm.Barrier)
        kind = self._datatype(case.dtype)
        sent: Any = self._mpi.IN_PLACE if in_place else [x, kind]
        got: Any = [out, kind]
        if name in POINT_TO_POINT:
            exchange = ping_pong if name == "pingpong" else stream
            return exchange(self.rank, partial(comm.Send, [x, kind]), partial(comm.Recv, got))
        is_root = self.rank == case.root
        if name == "broadcast":
            give = partial(comm.Bcast, got, case.root)
            return give if in_place or not is_root else partial(_copy_then, out, x, give)
        if name == "allreduce":
            return partial(comm.Allreduce, sent, got, self._op(case))
        if name == "reduce_scatter":
            return partial(comm.Reduce_scatter_block, sent, got, self._op(case))
        if name == "allgather":
            return partial(comm.Allgather, sent, got)
        if name == "alltoall":
            return partial(comm.Alltoall, sent, got)
        if not is_root:
            sent, got = ([x, kind], None) if name != "scatter" else (None, got)
        if name == "reduce":
            return partial(comm.Reduce, sent, got, self._op(case), case.root)
        return partial(getattr(comm, name.capitalize()), sent, got, case.root)

    def begin(self, case: Case, variant: str, x: Any, out: Any) -> Operation:
        """An asynchronous allreduce; its `wait()` ends it."""
        kind = self._datatype(case.dtype)
        return partial(self._comm.Iallreduce, [x, kind], [out, kind], self._op(case))

    def _op(self, case: Case) -> Any:
        if case.op not in OPS:
            raise NotCarried(f"MPI has no {case.op}")
        return getattr(self._mpi, OPS[case.op])

    def _datatype(self, dtype: str) -> Any:
        if dtype not in TYPES:
            raise NotCarried(f"MPI has no {dtype} that every library can reduce")
        return getattr(self._mpi, TYPES[dtype])


def own_rank(environment: dict[str, str]) -> int:
    """This process's rank, before MPI has begun; 0 where nobody says."""
    return next((int(environment[name]) for name in RANK_VARIABLES if name in environment), 0)


def connect(options: dict[str, Any]) -> Mpi:
    """Takes this rank's cores, as the others do, then lets MPI begin."""
    cores = options["cores"][own_rank(dict(os.environ))]
    if cores:
        os.sched_setaffinity(0, cores)
    return Mpi(options["settings"])


def _copy_then(out: Any, x: Any, give: Operation) -> None:
    out[...] = x
    give()
