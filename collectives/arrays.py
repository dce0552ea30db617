"""Users' arrays as memory: numpy arrays and torch CPU tensors, without importing torch.

What comes in as numpy goes out as numpy, what comes in as torch goes out as torch. An array that
is not contiguous is copied on the way in, or on the way out where it is `out`.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import Any, Protocol, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""A numpy array or a torch CPU tensor."""


class Family(Protocol):
    """What is done differently for numpy and torch. All arrays given are of the family."""

    name: str

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

    def is_writable(self, x: Array) -> bool:
        """Whether results may be written to it."""


class _Numpy:
    name = "numpy"

    def dtype_of(self, x: Array) -> str:
        dtype: np.dtype[Any] = x.dtype
        if dtype.hasobject:
            raise TypeError(
                f"arrays of {dtype} hold Python objects; use broadcast_object or allgather_object"
            )
        return dtype.name if dtype.isnative and dtype.names is None else str(dtype)

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

    def is_writable(self, x: Array) -> bool:
        return bool(x.flags.writeable)


class _Torch:
    name = "torch"

    def dtype_of(self, x: Array) -> str:
        if x.device.type != "cpu":
            raise TypeError(
                f"expected a tensor on the cpu, found one on {x.device}: transport shm carries "
                "host memory only"
            )
        if x.layout is not sys.modules["torch"].strided:
            raise TypeError(f"expected a dense tensor, found layout {x.layout}")
        if x.is_quantized:
            raise TypeError(f"quantized tensors are not carried, found {x.dtype}")
        return str(x.dtype).removeprefix("torch.")

    def kind_of(self, x: Array) -> Hashable:
        return x.dtype, x.device, x.layout

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
        return sys.modules["torch"].empty(shape, dtype=like.dtype)

    def copy_into(self, target: Array, source: Array) -> None:
        target.detach().copy_(source)

    def memory(self, x: Array) -> Any:
        return x.data_ptr()

    def is_writable(self, x: Array) -> bool:
        # An expanded tensor has several elements in one place.
        return all(s != 0 or n <= 1 for s, n in zip(x.stride(), x.shape, strict=True))


NUMPY: Family = _Numpy()
TORCH: Family = _Torch()


def family_of(x: Array, name: str = "x") -> Family:
    """Who handles `x`.

    Raises:
        TypeError: it is neither a numpy array nor a torch tensor.
    """
    if isinstance(x, np.ndarray):
        return NUMPY
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return TORCH
    kind = type(x)
    hint = "" if x is not None else " (only the root's array may be left out, and only in scatter)"
    raise TypeError(
        f"{name}: expected a numpy array or a torch CPU tensor, found "
        f"{kind.__module__}.{kind.__qualname__}{hint}"
    )


def shape_of(x: Array) -> tuple[int, ...]:
    """The shape, as a plain tuple."""
    return tuple(x.shape)
