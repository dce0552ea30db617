"""Our own collectives on arrays of this rank's device: cupy's, torch's for bfloat16, or emulated.

A rank's device is LOCAL_RANK's, in turn where there are fewer. What is measured is filled and
checked in host memory, and copied there and back.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from collectives.bench.cases import NotCarried
from collectives.bench.libraries import OrdinaryMemory
from collectives.bench.libraries.ours import SYMMETRIC, Ours
from collectives.bench.tasks import Memory


class OursOnDevices(Ours):
    """A communicator of ours on arrays of emulated devices."""

    def __init__(self, comm: Any, device: Any) -> None:
        super().__init__(comm)
        self._device = device

    def describe(self) -> dict[str, str]:
        """The same, and what device this is."""
        return {**super().describe(), "device": self._device.name}

    def memory(self, nbytes: int, variant: str) -> Memory:
        """Of the host, whatever the variant: the arrays have memory of their own."""
        return OrdinaryMemory.memory(self, nbytes, variant)

    def array(self, memory: Memory, dtype: str, variant: str) -> Any:
        """An array on the device, as long as that memory; symmetric, as the variant has it."""
        element = self._element(dtype)
        if variant.partition(":")[0] != SYMMETRIC:
            return self._empty(memory.size, element)
        # Every rank must ask for the same, also where only the root has a result.
        most = max(self.comm.allgather_object(memory.size))
        found = self.comm.empty((most,), element, device="cuda")
        return self._first(found, memory.size)

    def send_in(self, array: Any, memory: Memory) -> None:
        """To the device."""
        if memory.size:
            self._put(self._first(array, memory.size), memory)
            self.finish()  # that memory may be written anew

    def fetch(self, array: Any, memory: Memory) -> None:
        """From the device."""
        if memory.size:
            self._take(self._first(array, memory.size), memory)

    def finish(self) -> None:
        """Waits for the device: the caller's stream follows all calls."""
        self._device.synchronize(0)

    def _element(self, dtype: str) -> Any:
        """The type of elements, as `comm.empty` takes it."""
        if dtype != "bfloat16":
            return np.dtype(dtype)
        try:
            return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
        except ModuleNotFoundError:
            raise NotCarried("emulated arrays of bfloat16 need ml_dtypes") from None

    def _empty(self, count: int, element: Any) -> Any:
        from transports.cuda_ipc import emulated_array

        return emulated_array.empty((count,), element, self._device)

    def _first(self, array: Any, count: int) -> Any:
        return array.part(0, count)

    def _put(self, array: Any, memory: Memory) -> None:
        array.set(memory.view(array.dtype))

    def _take(self, array: Any, memory: Memory) -> None:
        memory[...] = array.get().view(memory.dtype)


class OursOnCuda(OursOnDevices):
    """The same on a GPU."""

    def __init__(self, comm: Any, device: Any) -> None:
        super().__init__(comm, device)
        self._cupy = importlib.import_module("cupy")
        self._cupy.cuda.Device(device.ordinal).use()

    def _element(self, dtype: str) -> Any:
        if dtype != "bfloat16":
            return np.dtype(dtype)
        try:
            torch = importlib.import_module("torch")
        except ModuleNotFoundError:
            raise NotCarried("cupy has no bfloat16, and torch is not installed") from None
        if not torch.cuda.is_available():
            raise NotCarried(
                f"cupy has no bfloat16, and torch {torch.__version__} finds no GPU that it can use"
            )
        torch.cuda.set_device(self._device.ordinal)
        return torch.bfloat16

    def _empty(self, count: int, element: Any) -> Any:
        if isinstance(element, np.dtype):
            return self._cupy.empty(count, element)
        return importlib.import_module("torch").empty(count, dtype=element, device="cuda")

    def _first(self, array: Any, count: int) -> Any:
        return array[:count]

    def _put(self, array: Any, memory: Memory) -> None:
        if isinstance(array, self._cupy.ndarray):
            array.set(memory)
        else:
            array.copy_(_tensor(memory))

    def _take(self, array: Any, memory: Memory) -> None:
        if isinstance(array, self._cupy.ndarray):
            array.get(out=memory)
        else:
            _tensor(memory).copy_(array)


def _tensor(memory: Memory) -> Any:
    """A tensor of bfloat16 over host memory."""
    torch = importlib.import_module("torch")
    return torch.from_numpy(memory.view(np.int16)).view(torch.bfloat16)


def connect(options: dict[str, Any]) -> OursOnDevices:
    """Meets the other ranks of the job, devices connected."""
    from collectives import settings
    from collectives.initialization import init
    from collectives.which_device import own_device

    kind = OursOnDevices if settings.emulates_devices() else OursOnCuda
    comm = init(transport="cuda_ipc", timeout=options["timeout"])
    return kind(comm, own_device(settings.local_rank()))
