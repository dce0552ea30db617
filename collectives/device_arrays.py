"""Users' arrays on devices: torch CUDA tensors, cupy arrays, and those of an emulated device.

As `collectives.arrays`, for memory that only streams touch: copies and conversions are put on the
caller's current stream, as everything is that the caller does with such arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import Any, Protocol

import numpy as np

from collectives.arrays import Array, Family, TorchFamily


class DeviceFamily(Family, Protocol):
    """What is done besides for arrays on devices."""

    def ordinal_of(self, x: Array) -> int:
        """Which device it lies on, as this process counts them."""

    def in_use(self) -> bool:
        """Whether this program has such arrays."""

    def current_ordinal(self) -> int:
        """The caller's current device."""

    def stream_of(self, ordinal: int) -> int:
        """The caller's current stream on a device."""

    def like(self, dtype: Any, ordinal: int) -> Array:
        """An array of no elements, for `empty`."""

    def over(
        self, address: int, shape: tuple[int, ...], dtype: Any, ordinal: int, owner: Any
    ) -> Array:
        """An array on memory that is there already and lives as long as `owner`."""

    def to_host(self, x: Array) -> Array:
        """A copy in host memory, contiguous, made once the caller's current stream has come to it.

        The host waits for it.
        """

    def room_on_host(self, x: Array) -> Array:
        """A new array there, of its shape and type."""

    def from_host(self, x: Array, source: Array) -> None:
        """Write what lies in host memory to `x`, on the caller's current stream."""


class _TorchCuda(TorchFamily):
    """Tensors on a CUDA device."""

    name = "torch cuda"
    on_device = True

    def dtype_of(self, x: Array) -> str:
        if x.is_quantized:
            raise TypeError(f"quantized tensors are not carried, found {x.dtype}")
        return str(x.dtype).removeprefix("torch.")

    def ordinal_of(self, x: Array) -> int:
        return int(x.device.index)

    def in_use(self) -> bool:
        torch = sys.modules.get("torch")
        return torch is not None and bool(torch.cuda.is_initialized())

    def current_ordinal(self) -> int:
        return int(sys.modules["torch"].cuda.current_device())

    def stream_of(self, ordinal: int) -> int:
        return int(sys.modules["torch"].cuda.current_stream(ordinal).cuda_stream)

    def like(self, dtype: Any, ordinal: int) -> Array:
        torch = sys.modules["torch"]
        return torch.empty(0, dtype=dtype, device=f"cuda:{ordinal}")

    def over(
        self, address: int, shape: tuple[int, ...], dtype: Any, ordinal: int, owner: Any
    ) -> Array:
        torch = sys.modules["torch"]
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        memory = _Memory(address, nbytes, owner)
        if nbytes == 0:
            return torch.empty(shape, dtype=dtype, device=f"cuda:{ordinal}")
        flat = torch.as_tensor(memory, device=f"cuda:{ordinal}")
        return flat.view(dtype).reshape(shape)

    def to_host(self, x: Array) -> Array:
        return self.contiguous(x).cpu()

    def room_on_host(self, x: Array) -> Array:
        return sys.modules["torch"].empty(tuple(x.shape), dtype=x.dtype)

    def from_host(self, x: Array, source: Array) -> None:
        self.copy_into(x, source)


class _Cupy:
    """cupy arrays."""

    name = "cupy"
    on_device = True

    def dtype_of(self, x: Array) -> str:
        return str(x.dtype)

    def kind_of(self, x: Array) -> Hashable:
        return "cupy", x.dtype, x.device.id

    def count_of(self, x: Array) -> int:
        return int(x.size)

    def itemsize_of(self, x: Array) -> int:
        return int(x.itemsize)

    def is_contiguous(self, x: Array) -> bool:
        return bool(x.flags.c_contiguous)

    def contiguous(self, x: Array) -> Array:
        return sys.modules["cupy"].ascontiguousarray(x)

    def empty(self, shape: tuple[int, ...], like: Array) -> Array:
        cupy = sys.modules["cupy"]
        with like.device:
            return cupy.empty(shape, like.dtype)

    def copy_into(self, target: Array, source: Array) -> None:
        target[...] = source

    def memory(self, x: Array) -> Any:
        return int(x.data.ptr)

    def strides_of(self, x: Array) -> tuple[int, ...]:
        return tuple(x.strides)

    def address_of(self, x: Array) -> int:
        return int(x.data.ptr)

    def is_writable(self, x: Array) -> bool:
        return x.size == 0 or all(s != 0 or n <= 1 for s, n in zip(x.strides, x.shape, strict=True))

    def ordinal_of(self, x: Array) -> int:
        return int(x.device.id)

    def in_use(self) -> bool:
        return "cupy" in sys.modules

    def current_ordinal(self) -> int:
        import cupy

        return int(cupy.cuda.runtime.getDevice())

    def stream_of(self, ordinal: int) -> int:
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(ordinal):
            return int(cupy.cuda.get_current_stream().ptr)

    def like(self, dtype: Any, ordinal: int) -> Array:
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(ordinal):
            return cupy.empty(0, dtype)

    def over(
        self, address: int, shape: tuple[int, ...], dtype: Any, ordinal: int, owner: Any
    ) -> Array:
        cupy = sys.modules["cupy"]
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        memory = cupy.cuda.UnownedMemory(address, nbytes, owner, ordinal)
        return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0))

    def to_host(self, x: Array) -> Array:
        with x.device:
            return np.ascontiguousarray(x.get())

    def room_on_host(self, x: Array) -> Array:
        return np.empty(tuple(x.shape), x.dtype)

    def from_host(self, x: Array, source: Array) -> None:
        with x.device:
            if x.flags.c_contiguous:
                x.set(source)
            else:
                x[...] = sys.modules["cupy"].asarray(source)


class _Emulated:
    """Arrays of an emulated device; always contiguous."""

    name = "emulated"
    on_device = True

    def dtype_of(self, x: Array) -> str:
        return str(x.dtype)

    def kind_of(self, x: Array) -> Hashable:
        return "emulated", x.dtype, x.device.ordinal

    def count_of(self, x: Array) -> int:
        return int(x.size)

    def itemsize_of(self, x: Array) -> int:
        return int(x.dtype.itemsize)

    def is_contiguous(self, x: Array) -> bool:
        return True

    def contiguous(self, x: Array) -> Array:
        return x

    def empty(self, shape: tuple[int, ...], like: Array) -> Array:
        from transports.cuda_ipc import emulated_array

        return emulated_array.empty(shape, like.dtype, like.device)

    def copy_into(self, target: Array, source: Array) -> None:
        from transports.cuda_ipc.emulated_array import current_stream

        stream = current_stream(target.device)
        target.device.copy(stream, target.address, source.address, target.nbytes)

    def memory(self, x: Array) -> Any:
        return x.address

    def strides_of(self, x: Array) -> tuple[int, ...]:
        return tuple(np.empty(x.shape, x.dtype).strides)

    def address_of(self, x: Array) -> int:
        return int(x.address)

    def is_writable(self, x: Array) -> bool:
        return True

    def ordinal_of(self, x: Array) -> int:
        return int(x.device.ordinal)

    def in_use(self) -> bool:
        return "transports.cuda_ipc.emulated_array" in sys.modules

    def current_ordinal(self) -> int:
        from transports.cuda_ipc.emulated_array import emulated_device

        return emulated_device().ordinal

    def stream_of(self, ordinal: int) -> int:
        from transports.cuda_ipc.emulated_array import current_stream, emulated_device

        return current_stream(emulated_device(ordinal))

    def like(self, dtype: Any, ordinal: int) -> Array:
        from transports.cuda_ipc import emulated_array

        return emulated_array.empty((0,), dtype, emulated_array.emulated_device(ordinal))

    def over(
        self, address: int, shape: tuple[int, ...], dtype: Any, ordinal: int, owner: Any
    ) -> Array:
        from transports.cuda_ipc.emulated_array import EmulatedArray, emulated_device

        return EmulatedArray(shape, dtype, emulated_device(ordinal), address, owner)

    def to_host(self, x: Array) -> Array:
        return x.get()

    def room_on_host(self, x: Array) -> Array:
        return np.empty(x.shape, x.dtype)

    def from_host(self, x: Array, source: Array) -> None:
        x.set(source)


class _TorchEmulated(TorchFamily):
    """Tensors of the CPU in an emulated device's memory, which torch works on as the host.

    So they follow a call by waiting for it, while the streams of calls are as late as ever.
    """

    name = "torch emulated"
    on_device = True

    def empty(self, shape: tuple[int, ...], like: Array) -> Array:
        return self._in_memory_of(shape, like.dtype, self.ordinal_of(like))

    def contiguous(self, x: Array) -> Array:
        if self.is_contiguous(x):
            return x.detach()
        found = self.empty(tuple(x.shape), x)
        self.copy_into(found, x)
        return found

    def ordinal_of(self, x: Array) -> int:
        from transports.cuda_ipc.emulated_array import device_of

        device = device_of(x.untyped_storage().data_ptr())
        assert device is not None, "family_of looks for it"
        return device.ordinal

    def in_use(self) -> bool:
        return False  # without a stream there is nothing to keep for later

    def current_ordinal(self) -> int:
        return EMULATED.current_ordinal()

    def stream_of(self, ordinal: int) -> int:
        from transports.cuda_ipc.emulation import HOST

        return HOST

    def like(self, dtype: Any, ordinal: int) -> Array:
        return self._in_memory_of((0,), dtype, ordinal)

    def over(
        self, address: int, shape: tuple[int, ...], dtype: Any, ordinal: int, owner: Any
    ) -> Array:
        torch = sys.modules["torch"]
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        # numpy forgets the address of no bytes, by which the family is known.
        flat = torch.from_numpy(np.asarray(_HostMemory(address, max(1, nbytes), owner)))
        return flat[:nbytes].view(dtype).reshape(shape)

    def to_host(self, x: Array) -> Array:
        return x.detach().clone(memory_format=sys.modules["torch"].contiguous_format)

    def room_on_host(self, x: Array) -> Array:
        return sys.modules["torch"].empty(tuple(x.shape), dtype=x.dtype)

    def from_host(self, x: Array, source: Array) -> None:
        self.copy_into(x, source)

    def _in_memory_of(self, shape: tuple[int, ...], dtype: Any, ordinal: int) -> Array:
        from transports.cuda_ipc.emulated_array import Allocation, emulated_device

        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        held = Allocation(emulated_device(ordinal), nbytes)
        return self.over(held.address, shape, dtype, ordinal, held)


TORCH_CUDA: DeviceFamily = _TorchCuda()
CUPY: DeviceFamily = _Cupy()
EMULATED: DeviceFamily = _Emulated()
TORCH_EMULATED: DeviceFamily = _TorchEmulated()
FAMILIES = (TORCH_CUDA, CUPY, EMULATED, TORCH_EMULATED)


class _Memory:
    """Memory of a device as torch reads it; bytes."""

    def __init__(self, address: int, nbytes: int, owner: Any) -> None:
        self._owner = owner
        self.__cuda_array_interface__ = {
            "version": 3,
            "data": (address, False),
            "shape": (nbytes,),
            "strides": None,
            "typestr": "|u1",
            "stream": 1,  # the legacy default stream, which nothing here waits for
        }


class _HostMemory:
    """Memory of an emulated device as numpy reads it; bytes."""

    def __init__(self, address: int, nbytes: int, owner: Any) -> None:
        self._owner = owner
        self.__array_interface__ = {
            "version": 3,
            "data": (address, False),
            "shape": (nbytes,),
            "typestr": "|u1",
        }
