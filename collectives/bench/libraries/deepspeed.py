"""DeepSpeed's allreduce over shared memory, which its CPU inference calls; nothing else of it.

It has the sum of float32 (AVX2), and of the 16-bit floats where the processor has AVX-512BW. It
works in place; out of place copies first.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from collectives.bench.cases import Case, NotCarried
from collectives.bench.libraries.torch_distributed import TorchDistributed, start_group
from collectives.bench.tasks import Operation

_LEVELS = {"float32": 1, "float16": 2, "bfloat16": 2}
"""The instruction sets that DeepSpeed asks for by element type, in its own numbers."""


class DeepSpeed(TorchDistributed):
    """The shared-memory allreduce as a library to measure."""

    def __init__(self, settings: dict[str, str]) -> None:
        super().__init__("gloo", "cpu", settings)
        self._package = importlib.import_module("deepspeed")
        comm = importlib.import_module("deepspeed.comm")
        comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
        if not hasattr(self._torch.ops.deepspeed, "inference_all_reduce_"):
            raise NotCarried("DeepSpeed has not built its shared-memory operation here")
        self._level = comm.comm.cdb.shm_vector_kernel_level

    def describe(self) -> dict[str, str]:
        """Versions, threads and settings."""
        found = super().describe()
        return {**found, "library": f"DeepSpeed {self._package.__version__} shared memory"}

    def operation(self, case: Case, variant: str, x: Any, out: Any) -> Operation:
        """The operation itself, without DeepSpeed's wrappers round it."""
        if case.collective != "allreduce" or case.op != "sum":
            raise NotCarried("DeepSpeed's shared memory has the sum of allreduce only")
        if _LEVELS.get(case.dtype, 99) > self._level:
            raise NotCarried(f"DeepSpeed's shared memory has no {case.dtype} on this processor")
        call = partial(self._torch.ops.deepspeed.inference_all_reduce_.default, out)
        return self._kept(x, out, case.place == "in", call)

    def begin(self, case: Case, variant: str, x: Any, out: Any) -> Operation:
        """There is none.

        Raises:
            NotCarried: always.
        """
        raise NotCarried("DeepSpeed's shared memory has no asynchronous allreduce")


def connect(options: dict[str, Any]) -> DeepSpeed:
    """Meets the other ranks and builds or loads the operation."""
    start_group("gloo", options)
    return DeepSpeed(options["settings"])
