"""Arrays on devices, as tests make them and look at them: emulated, cupy's or torch's."""

from __future__ import annotations

import os
from typing import Any

import ml_dtypes
import numpy as np
import pytest

KINDS = ("emulated", "torch emulated", "cupy", "torch cuda")


def kind_here() -> str:
    """What tests of devices use: COLLECTIVES_TEST_DEVICES, or what is emulated."""
    return os.environ.get("COLLECTIVES_TEST_DEVICES", "emulated")


def to_device(values: np.ndarray, kind: str) -> Any:
    """A copy of a numpy array on this rank's device."""
    if kind == "emulated":
        from transports.cuda_ipc import emulated_array

        return emulated_array.to_device(values)
    if kind == "cupy":
        import cupy

        use_own_device()
        return cupy.asarray(values)
    import torch

    if kind == "torch emulated":
        return _in_emulated_memory(values)
    use_own_device()
    if values.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(values.view(np.int16)).cuda().view(torch.bfloat16)
    return torch.from_numpy(values).cuda()


def _in_emulated_memory(values: np.ndarray) -> Any:
    """A tensor of the processor in the memory of this rank's emulated device."""
    import torch

    from collectives.device_arrays import TORCH_EMULATED
    from transports.cuda_ipc.emulated_array import emulated_device

    dtype = getattr(torch, values.dtype.name)
    like = TORCH_EMULATED.like(dtype, emulated_device().ordinal)
    found = TORCH_EMULATED.empty(values.shape, like)
    if dtype == torch.bfloat16:
        found.view(torch.int16).copy_(torch.from_numpy(values.view(np.int16)))
    else:
        found.copy_(torch.from_numpy(values))
    return found


def to_host(x: Any, kind: str) -> np.ndarray:
    """A copy in numpy."""
    if kind in ("emulated", "cupy"):
        return x.get()
    import torch

    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).cpu().numpy().view(ml_dtypes.bfloat16)
    return x.cpu().numpy()


def symmetric(comm: Any, values: np.ndarray, kind: str) -> Any:
    """A copy in memory of devices that all ranks reach."""
    dtype: Any = values.dtype
    if kind.startswith("torch"):
        import torch

        dtype = getattr(torch, values.dtype.name)
    if "emulated" not in kind:
        use_own_device()
    found = comm.empty(values.shape, dtype, device="cuda")
    if kind.startswith("torch"):
        found.copy_(to_device(values, kind))
    else:
        found.set(np.ascontiguousarray(values))
    return found


def use_own_device() -> None:
    """The device that is this rank's, in turn where there are fewer."""
    import cupy

    count = cupy.cuda.runtime.getDeviceCount()
    ordinal = int(os.environ.get("LOCAL_RANK", "0")) % count
    cupy.cuda.Device(ordinal).use()
    if kind_here() == "torch cuda":
        import torch

        torch.cuda.set_device(ordinal)


def finish(kind: str) -> None:
    """Until all that was put on this rank's device is done."""
    if kind == "emulated":
        from transports.cuda_ipc.emulated_array import emulated_device

        emulated_device()._synchronize()
        return
    import cupy

    cupy.cuda.runtime.deviceSynchronize()


class Captured:
    """What is put on the current stream in this block goes into a graph."""

    def __enter__(self) -> Captured:
        if kind_here() == "emulated":
            from transports.cuda_ipc import emulated_array

            self._scope: Any = emulated_array.captured()
            self._graph = self._scope.__enter__()
            return self
        import cupy

        self._scope = cupy.cuda.Stream(non_blocking=True)
        self._scope.__enter__()
        self._scope.begin_capture()
        return self

    def __exit__(self, *raised: Any) -> None:
        try:
            if kind_here() != "emulated":
                self._graph = self._scope.end_capture()
        finally:
            self._scope.__exit__(*raised)

    def launch(self) -> None:
        """Run the graph, after all that is on the device."""
        if kind_here() == "emulated":
            from transports.cuda_ipc import emulated_array

            emulated_array.replay(self._graph)
            return
        finish("cupy")
        self._graph.launch(self._scope)


def environment(machine: str) -> dict[str, str]:
    """What ranks need for devices: the emulated ones described, or those that are there."""
    return {"COLLECTIVES_EMULATED_DEVICES": machine} if kind_here() == "emulated" else {}


def on_device(values: Any, device: Any = None) -> Any:
    """A copy of a numpy array on this rank's device, or on another emulated one."""
    if device is not None:
        from transports.cuda_ipc import emulated_array

        return emulated_array.to_device(values, device)
    return to_device(np.asarray(values), kind_here())


def part(x: Any, begin: int, end: int) -> Any:
    """Entries `begin` to `end` of the first axis, in the same memory."""
    return x.part(begin, end) if kind_here() == "emulated" else x[begin:end]


def address(x: Any) -> int:
    """Where its first element lies."""
    return x.address if kind_here() == "emulated" else int(x.data.ptr)


def new_array(count: int, dtype: Any = np.float32) -> Any:
    """Of unspecified content."""
    return on_device(np.zeros(count, dtype))


def given(rank: int, count: int = 1000) -> np.ndarray:
    """What a rank gives to a sum that is exact."""
    return ((np.arange(count) * 5 + 3 * rank) % 7).astype(np.float32)


def total(comm: Any, count: int = 1000) -> np.ndarray:
    """And what comes of it."""
    return np.sum([given(rank, count) for rank in range(comm.size)], axis=0)


def check_uneven_counts(comm: Any, counts: list[int]) -> None:
    """An allgather and an alltoall whose parts differ in length."""
    x = on_device(np.full((counts[comm.rank], 2), comm.rank + 1.0))
    wanted = np.concatenate([np.full((n, 2), r + 1.0) for r, n in enumerate(counts)])
    assert np.array_equal(comm.allgather(x, counts=counts).get(), wanted)
    sent = [100 * comm.rank + 10 * peer + 1 for peer in range(comm.size)]
    taken = [100 * peer + 10 * comm.rank + 1 for peer in range(comm.size)]
    x = on_device(np.repeat(np.arange(comm.size) + 10 * comm.rank, sent))
    wanted = np.repeat(10 * np.arange(comm.size) + comm.rank, taken)
    assert np.array_equal(comm.alltoall(x, counts=(sent, taken)).get(), wanted)


emulated_only = pytest.mark.skipif(
    kind_here() != "emulated", reason="no GPU does this when it is told to"
)
