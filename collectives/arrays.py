# ruff: noqa: D102 - what the methods of families do is said in Family
"""Users' arrays as host memory: numpy arrays and torch CPU tensors, without importing torch.

Those on devices are handled by `collectives.device_arrays`.

What comes in as numpy goes out as numpy, what comes in as torch goes out as torch. An array that
is not contiguous is copied on the way in, or on the way out where it is `out`.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""A numpy array, a torch tensor or a cupy array."""


class Family(Protocol):
    """What is done differently for numpy and torch. All arrays given are of the family."""

    name: str
    on_device: bool

    def dtype_of(self, x: Array) -> str:
        """The type's name, the same for numpy and torch; refuses what is not carried."""

    def kind_of(self, x: Array) -> Hashable:
        """What `dtype_of` depends on; quicker to have."""

    def count_of(self, x: Array) -> int:
        """Number of elements."""

    def itemsize_of(self, x: Array) -> int:
        """Bytes of an element."""

    def is_contiguous(self, x: Array) -> bool:
        """Whether elements lie in order without gaps."""

    def contiguous(self, x: Array) -> Array:
        """`x`, or a contiguous copy of it."""

    def empty(self, shape: tuple[int, ...], like: Array) -> Array:
        """A new contiguous array of `like`'s type."""

    def copy_into(self, target: Array, source: Array) -> None:
        """Write the elements of `source` to `target`."""

    def memory(self, x: Array) -> Any:
        """What the native engine takes: an object with the buffer protocol, or an address."""

    def strides_of(self, x: Array) -> tuple[int, ...]:
        """Bytes from an element to the next, along each axis."""

    def address_of(self, x: Array) -> int:
        """Where the first element lies."""

    def is_writable(self, x: Array) -> bool:
        """Whether results may be written to it."""


@lru_cache(maxsize=1024)  # numpy takes some 5 us for it
def _numpy_name(dtype: np.dtype[Any]) -> str:
    if dtype.hasobject:
        raise TypeError(
            f"arrays of {dtype} hold Python objects; use broadcast_object or allgather_object"
        )
    return str(dtype)  # not its name, which calls <U1 "str32" and hides the byte order


class _Numpy:
    name = "numpy"
    on_device = False

    def dtype_of(self, x: Array) -> str:
        return _numpy_name(x.dtype)

    def kind_of(self, x: Array) -> Hashable:
        return x.dtype  # type: ignore[no-any-return]

    def count_of(self, x: Array) -> int:
        return x.size  # type: ignore[no-any-return]

    def itemsize_of(self, x: Array) -> int:
        return int(x.itemsize)

    def is_contiguous(self, x: Array) -> bool:
        return bool(x.flags.c_contiguous)

    def contiguous(self, x: Array) -> Array:
        return x if x.flags.c_contiguous else np.ascontiguousarray(x)

    def empty(self, shape: tuple[int, ...], like: Array) -> Array:
        return np.empty(shape, like.dtype)

    def copy_into(self, target: Array, source: Array) -> None:
        target[...] = source

    def memory(self, x: Array) -> Any:
        return x

    def strides_of(self, x: Array) -> tuple[int, ...]:
        return tuple(x.strides)

    def address_of(self, x: Array) -> int:
        return int(x.ctypes.data)

    def is_writable(self, x: Array) -> bool:
        return bool(x.flags.writeable)


class TorchFamily:
    """Tensors on the cpu."""

    name = "torch"
    on_device = False

    def dtype_of(self, x: Array) -> str:
        if x.device.type != "cpu":
            raise TypeError(f"expected a tensor on the cpu or on cuda, found one on {x.device}")
        if x.is_quantized:
            raise TypeError(f"quantized tensors are not carried, found {x.dtype}")
        return str(x.dtype).removeprefix("torch.")

    def kind_of(self, x: Array) -> Hashable:
        return x.dtype, x.device

    def count_of(self, x: Array) -> int:
        return x.numel()  # type: ignore[no-any-return]

    def itemsize_of(self, x: Array) -> int:
        return int(x.element_size())

    def is_contiguous(self, x: Array) -> bool:
        # A conjugate or negative view has its sign in the tensor, not in the memory.
        return bool(x.is_contiguous() and not x.is_conj() and not x.is_neg())

    def contiguous(self, x: Array) -> Array:
        return x.detach().resolve_conj().resolve_neg().contiguous()

    def empty(self, shape: tuple[int, ...], like: Array) -> Array:
        return sys.modules["torch"].empty(shape, dtype=like.dtype, device=like.device)

    def copy_into(self, target: Array, source: Array) -> None:
        target.detach().copy_(source)

    def memory(self, x: Array) -> Any:
        # That of no elements torch gives as 0, though it may lie in symmetric memory.
        return x.data_ptr() or (
            x.untyped_storage().data_ptr() + x.storage_offset() * x.element_size()
        )

    def strides_of(self, x: Array) -> tuple[int, ...]:
        return tuple(step * x.element_size() for step in x.stride())

    def address_of(self, x: Array) -> int:
        return int(self.memory(x))

    def is_writable(self, x: Array) -> bool:
        # An expanded tensor has several elements in one place.
        strides = zip(x.stride(), x.shape, strict=True)
        return x.numel() == 0 or all(s != 0 or n <= 1 for s, n in strides)


NUMPY: Family = _Numpy()
TORCH: Family = TorchFamily()
ON_DEVICE = ("torch cuda", "cupy", "emulated", "torch emulated")
"""The names of the families in `collectives.device_arrays`."""


def family_of(x: Array, name: str = "x") -> Family:
    """Who handles `x`.

    Raises:
        TypeError: it is neither a numpy array nor a dense torch tensor.
    """
    if isinstance(x, np.ndarray):
        if hasattr(x, "mask"):
            raise TypeError(f"{name}: masked arrays are not carried; send its data and its mask")
        return NUMPY
    torch = sys.modules.get("torch")
    emulated = sys.modules.get("transports.cuda_ipc.emulated_array")
    if torch is not None and isinstance(x, torch.Tensor):
        if x.layout is not torch.strided or x.is_nested:
            found = "a nested one" if x.is_nested else f"layout {x.layout}"
            raise TypeError(f"{name}: expected a dense tensor, found {found}")
        if x.device.type == "cuda":
            return _on_device("TORCH_CUDA")
        # Of the whole memory: the address of no elements is 0.
        if emulated is not None and emulated.device_of(x.untyped_storage().data_ptr()) is not None:
            return _on_device("TORCH_EMULATED")
        return TORCH
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, cupy.ndarray):
        return _on_device("CUPY")
    if emulated is not None and isinstance(x, emulated.EmulatedArray):
        return _on_device("EMULATED")
    kind = type(x)
    hint = "" if x is not None else " (only the root's array may be left out, and only in scatter)"
    raise TypeError(
        f"{name}: expected a numpy array, a torch tensor or a cupy array, found "
        f"{kind.__module__}.{kind.__qualname__}{hint}"
    )


def _on_device(name: str) -> Family:
    """Who handles arrays on devices; imported when there is one."""
    from collectives import device_arrays

    family: Family = getattr(device_arrays, name)
    return family


def shape_of(x: Array) -> tuple[int, ...]:
    """The shape, as a plain tuple."""
    return tuple(x.shape)


def is_same_memory(family: Family, x: Array, out: Array) -> bool:
    """Whether every element of `out` lies where that of `x` does, shapes aside."""
    if family.address_of(x) != family.address_of(out) or family.count_of(x) != family.count_of(out):
        return False
    if family.is_contiguous(x) and family.is_contiguous(out):
        return True
    return shape_of(x) == shape_of(out) and family.strides_of(x) == family.strides_of(out)


def share_memory(family: Family, x: Array, out: Array) -> bool:
    """Whether some byte belongs to both, or may: where that is hard to tell it counts as shared."""
    if family.count_of(x) == 0 or family.count_of(out) == 0:
        return False
    one, other = (np.asarray(_Footprint(family, each)) for each in (x, out))
    try:
        return np.shares_memory(one, other, max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


class _Footprint:
    """Where an array lies, as numpy reads it: elements of so many bytes, whatever they mean."""

    def __init__(self, family: Family, x: Array) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (family.address_of(x), True),
            "shape": shape_of(x),
            "strides": family.strides_of(x),
            "typestr": f"|V{family.itemsize_of(x)}",
        }
