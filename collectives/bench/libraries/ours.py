"""Our own collectives, by whatever algorithm, over private or over symmetric memory."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np

from collectives.bench.cases import POINT_TO_POINT, Case
from collectives.bench.libraries import OrdinaryMemory
from collectives.bench.libraries.mpi import own_rank
from collectives.bench.streams import ping_pong, stream
from collectives.bench.tasks import Memory, Operation
from collectives.by_mpi import NAME as MPI

AUTO = "auto"
"""The variant that leaves the choice of the algorithm to the selection table."""

SYMMETRIC = "symmetric"
"""The variant whose arrays are from `comm.empty`; `symmetric:ring` names an algorithm too."""


class Ours(OrdinaryMemory):
    """A communicator of ours as a library to measure."""

    def __init__(self, comm: Any) -> None:
        self.comm = comm
        self.rank: int = comm.rank
        self.size: int = comm.size

    def describe(self) -> dict[str, str]:
        """Version, transport and kernels."""
        from collectives.version import __version__
        from transports import _native

        return {
            "library": f"collectives {__version__}",
            "transport": self.comm.transport,
            "kernels": _native.instruction_set(),
        }

    def barrier(self) -> None:
        """Return once every rank has come here."""
        self.comm.barrier()

    def memory(self, nbytes: int, variant: str) -> Memory:
        """Private or symmetric memory, as the variant has it."""
        if variant.partition(":")[0] != SYMMETRIC:
            return super().memory(nbytes, variant)
        # Every rank must ask for the same, also where only the root has a result.
        most = max(self.comm.allgather_object(nbytes))
        found: Memory = self.comm.empty((most,), np.uint8)[:nbytes]
        return found

    def array(self, memory: Memory, dtype: str, variant: str) -> Any:
        """A numpy array, or for bfloat16 one of torch, over that memory."""
        if dtype != "bfloat16":
            return memory
        import torch

        return torch.from_numpy(memory.view(np.int16)).view(torch.bfloat16)

    def operation(self, case: Case, variant: str, x: Any, out: Any) -> Operation:
        """A call of the communicator's method."""
        comm, name, size = self.comm, case.collective, self.size
        if name in POINT_TO_POINT:
            exchange = ping_pong if name == "pingpong" else stream
            return exchange(self.rank, partial(comm.send, x), partial(comm.recv, out))
        if name == "barrier":
            return partial(comm.barrier, algorithm=algorithm_of(variant))
        options: dict[str, Any] = {"out": out, "algorithm": algorithm_of(variant)}
        if case.op:
            options["op"] = case.op
        if name in ("reduce", "broadcast", "scatter", "gather"):
            options["root"] = case.root
        is_root = self.rank == case.root
        if name in ("reduce", "gather") and not is_root:
            del options["out"]
        if name in ("allgather", "gather") and out.shape[0]:
            options["out"] = out.reshape(size, -1)
        if name == "scatter" and not is_root:
            x = None
        elif name in ("reduce_scatter", "scatter", "alltoall"):
            x = x.reshape(size, -1)
            if name == "alltoall":
                options["out"] = out.reshape(size, -1)
        return partial(getattr(comm, name), x, **options)

    def expected(self, case: Case, variant: str, x: Any) -> dict[str, Any]:
        """The algorithm that will run, and the seconds that the model of this machine predicts.

        The model is of calls whose arrays are in the caches.
        """
        if case.collective in POINT_TO_POINT or not hasattr(self.comm, "explain"):
            return {}
        if algorithm_of(variant) == MPI:  # of which no model is ours
            return {"chosen": MPI, "predicted": None}
        if case.collective in ("reduce_scatter", "scatter", "alltoall"):
            x = x.reshape(self.size, -1)
        explanation = self.comm.explain(
            case.collective,
            None if case.collective == "barrier" else x,
            root=case.root,
            op=case.op or None,
            algorithm=algorithm_of(variant),
        )
        (seconds,) = (each.predicted for each in explanation.candidates if each.chosen)
        return {
            "chosen": explanation.algorithm,
            # The model is that of one host, too.
            "predicted": None if case.cold or len(set(self.comm.hosts)) > 1 else seconds,
        }

    def reached(self) -> int:
        """Calls that have run one-sided by the kernel's copies."""
        return getattr(self.comm._engine, "reached", 0)  # an older build has no such calls

    def instead(self, collective: str) -> str:
        """What such a call runs."""
        from collectives.catalogue import REACHING

        return REACHING[collective].name

    def begin(self, case: Case, variant: str, x: Any, out: Any) -> Any:
        """An asynchronous call; its `wait()` ends it."""
        return partial(self.operation(case, variant, x, out), async_op=True)  # type: ignore[call-arg]


def algorithm_of(variant: str) -> str | None:
    """The algorithm that a variant names, if any."""
    name = variant.partition(":")[2] if variant.partition(":")[0] == SYMMETRIC else variant
    return None if name in ("", AUTO) else name


def connect(options: dict[str, Any]) -> Ours:
    """Meets the other ranks of the job."""
    from collectives.initialization import init

    if "transport" in options and (cores := options["cores"][own_rank(dict(os.environ))]):
        os.sched_setaffinity(0, cores)  # an mpiexec has started this rank, and binds nobody
    return Ours(init(options.get("transport", "auto"), timeout=options["timeout"]))
