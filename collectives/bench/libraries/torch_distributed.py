"""Any backend of torch.distributed: gloo, on tensors of the host or of a GPU, and nccl on GPUs.

Its reductions and its broadcast work in place only. So out of place means for them what a user does
who needs the input again: copy, then reduce the copy.
"""

from __future__ import annotations

import datetime
import os
from functools import partial
from typing import Any

from collectives.bench.cases import POINT_TO_POINT, Case, NotCarried
from collectives.bench.libraries import OrdinaryMemory
from collectives.bench.libraries.mpi import own_rank
from collectives.bench.streams import ping_pong, stream
from collectives.bench.tasks import Memory, Operation

_OPS = {
    "sum": "SUM",
    "prod": "PRODUCT",
    "min": "MIN",
    "max": "MAX",
    "avg": "AVG",
    "band": "BAND",
    "bor": "BOR",
    "bxor": "BXOR",
}


class TorchDistributed(OrdinaryMemory):
    """The default process group as a library to measure."""

    def __init__(self, backend: str, device: str, settings: dict[str, str]) -> None:
        import torch
        from torch import distributed

        self._torch: Any = torch
        self.distributed: Any = distributed
        self._backend = backend
        self._device = device
        self._settings = settings
        self.rank: int = distributed.get_rank()
        self.size: int = distributed.get_world_size()

    def describe(self) -> dict[str, str]:
        """Versions, threads and settings."""
        torch = self._torch
        found = {"library": f"{self._backend} of torch {torch.__version__}"}
        if self._backend == "nccl":
            found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        if self._device != "cpu":
            found["device"] = torch.cuda.get_device_name()
        return {**found, "threads": str(torch.get_num_threads()), **self._settings}

    def barrier(self) -> None:
        """Return once every rank has come here."""
        self.distributed.barrier()

    def array(self, memory: Memory, dtype: str, variant: str) -> Any:
        """A tensor over that memory, or on this rank's GPU."""
        torch = self._torch
        if dtype == "bfloat16":
            memory = memory.view("int16")
        try:
            tensor = torch.from_numpy(memory)
        except TypeError as error:
            raise NotCarried(f"torch has no {dtype}: {error}") from None
        if dtype == "bfloat16":
            tensor = tensor.view(torch.bfloat16)
        return tensor if self._device == "cpu" else tensor.to(self._device)

    def send_in(self, array: Any, memory: Memory) -> None:
        """To the GPU."""
        if self._device != "cpu":
            array[: memory.size].copy_(self._over(memory, array))

    def fetch(self, array: Any, memory: Memory) -> None:
        """From the GPU."""
        if self._device != "cpu":
            self._over(memory, array).copy_(array[: memory.size])

    def finish(self) -> None:
        """Waits for the GPU."""
        if self._device != "cpu":
            self._torch.cuda.synchronize()

    def operation(self, case: Case, variant: str, x: Any, out: Any) -> Operation:
        """A call of torch.distributed."""
        dist, name, root = self.distributed, case.collective, case.root
        if name == "barrier":
            return partial(dist.barrier)
        if name in POINT_TO_POINT:
            exchange = ping_pong if name == "pingpong" else stream
            return exchange(self.rank, partial(dist.send, x), partial(dist.recv, out))
        in_place = case.place == "in"
        if name == "allreduce":
            return self._kept(x, out, in_place, partial(dist.all_reduce, out, self._op(case)))
        if name == "broadcast":
            kept = in_place or self.rank != root
            return self._kept(x, out, kept, partial(dist.broadcast, out, root))
        if name == "reduce":
            # Off the root the call needs an array too, and may leave anything in it.
            result = x.clone() if self.rank != root and not in_place else out
            result = x if in_place else result
            give = partial(dist.reduce, result, root, self._op(case))
            return self._kept(x, result, in_place, give)
        if name == "reduce_scatter":
            return partial(dist.reduce_scatter_tensor, out, x, self._op(case))
        if name == "allgather":
            return partial(dist.all_gather_into_tensor, out, x)
        if name == "alltoall":
            return partial(dist.all_to_all_single, out, x)
        is_root = self.rank == root
        if name == "gather":
            parts = list(out.chunk(self.size)) if is_root else None
            return partial(dist.gather, x, parts, root)
        parts = list(x.chunk(self.size)) if is_root else None
        return partial(dist.scatter, out, parts, root)

    def begin(self, case: Case, variant: str, x: Any, out: Any) -> Operation:
        """An asynchronous allreduce; its `wait()` ends it."""
        give = partial(self.distributed.all_reduce, out, self._op(case), async_op=True)
        return partial(_copied, x, out, give)

    def _kept(self, x: Any, result: Any, in_place: bool, call: Operation) -> Operation:
        return call if in_place else partial(_copied, x, result, call)

    def _op(self, case: Case) -> Any:
        if case.op not in _OPS:
            raise NotCarried(f"torch.distributed has no {case.op}")
        return getattr(self.distributed.ReduceOp, _OPS[case.op])

    def _over(self, memory: Memory, array: Any) -> Any:
        torch = self._torch
        return torch.from_numpy(memory.view("uint8")).view(array.dtype)


def set_variables(address: str, port: int, ranks: int) -> None:
    """Those of torchrun, for one of so many ranks that an mpiexec has started."""
    os.environ |= {"RANK": str(own_rank(dict(os.environ))), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port), "LOCAL_RANK": "0"}


def start_group(backend: str, options: dict[str, Any]) -> str:
    """Makes the default process group and returns the device its tensors live on.

    Raises:
        NotCarried: they are to live on a GPU, and torch has none.
    """
    import torch
    from torch import distributed

    torch.set_num_threads(options["threads"])
    device = "cpu"
    if options.get("device") == "cuda":
        if not torch.cuda.is_available():
            raise NotCarried(f"torch {torch.__version__} finds no GPU that it can use")
        number = int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count()
        torch.cuda.set_device(number)
        device = f"cuda:{number}"
    timeout = datetime.timedelta(seconds=options["timeout"])
    distributed.init_process_group(backend, timeout=timeout)
    return device


def connect(options: dict[str, Any]) -> TorchDistributed:
    """Meets the other ranks by the variables of torchrun; those of an mpiexec are made so."""
    if "master" in options:
        address, port = options["master"]
        set_variables(address, port, len(options["cores"]))
    device = start_group(options["backend"], options)
    return TorchDistributed(options["backend"], device, options["settings"])


def _copied(x: Any, result: Any, call: Operation) -> object:
    result.copy_(x)
    return call()
