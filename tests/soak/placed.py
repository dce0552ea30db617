"""Arrays in memory of every kind, which notice what is written beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
from harness.conformance import as_kind


class Placed:
    """An array with the content of `x`.

    Attributes:
        array: of numpy or torch, as the call gets it.
    """

    def __init__(self, x: np.ndarray, layout: str, kind: str, room: np.ndarray | None) -> None:
        """`room`: for symmetric arrays, the bytes to lie in."""
        if layout == "symmetric":
            assert room is not None
            base = room[: x.nbytes].view(x.dtype).reshape(x.shape)
            where: Any = ...
        elif layout == "strided":
            base = np.frombuffer(bytearray(b"\5" * (2 * x.nbytes)), x.dtype).reshape((*x.shape, 2))
            where = (..., 1)
        elif layout == "slice":
            base = np.frombuffer(bytearray(b"\5" * (x.nbytes + 5 * x.itemsize)), x.dtype)
            where = slice(3, 3 + x.size)
        else:
            base, where = np.empty_like(x), ...
        self._base, self._where, self._shape = base, where, x.shape
        if base.dtype == np.bool_:
            base[...] = True
        self._view(base)[...] = x
        self._before = base.copy()
        self.array = self._view(as_kind(kind, base))

    def _view(self, base: Any) -> Any:
        return base[self._where].reshape(self._shape) if base.ndim else base

    def problem(self, wanted: np.ndarray | None = None) -> str:
        """How its memory differs from what it was, but for `wanted` in the array itself."""
        if wanted is not None:
            self._view(self._before)[...] = wanted
        if self._base.tobytes() == self._before.tobytes():
            return ""
        found = np.asarray(self._view(self._base))
        text = difference(np.asarray(self._view(self._before)), found)
        return text or "memory beside the array was written to"


def difference(wanted: np.ndarray, found: np.ndarray) -> str:
    """Where bits differ, in words; empty where none do."""
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return f"expected {wanted.dtype}{wanted.shape}, found {found.dtype}{found.shape}"
    if found.tobytes() == wanted.tobytes():
        return ""
    bits = [np.frombuffer(x.tobytes(), np.uint8).reshape(x.size, -1) for x in (wanted, found)]
    where = np.flatnonzero((bits[0] != bits[1]).any(axis=1))
    first = int(where[0])
    return (
        f"{where.size} of {wanted.size} elements are wrong, from {first} to {int(where[-1])}; at "
        f"{first}: expected {wanted.reshape(-1)[first]!r}, found {found.reshape(-1)[first]!r}"
    )
