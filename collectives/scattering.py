"""scatter, in which only the root knows what comes: a header goes before the data."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from collectives.arguments import check_counts, check_out, check_root, input_array
from collectives.arrays import TORCH, Array, Family, family_of, shape_of
from collectives.calls import Request
from collectives.operations import Counts, Operations
from collectives.schedule import Algorithm

_HEADER_BYTES = 512


class Scatter(Operations):
    """The scatter of a communicator."""

    def scatter(
        self,
        x: Array | None,
        *,
        root: int = 0,
        out: Array | None = None,
        counts: Counts | None = None,
        algorithm: str | Algorithm | None = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Give entry r of the root's `x` to rank r.

        Args:
            x: on the root, shape (size, ...), or with `counts` (sum(counts), ...); other ranks may
                pass None, and what they pass is not read.
            root: whose.
            out: shape x.shape[1:]; with `counts`, (counts[rank], ...).
            counts: how many entries of the leading axis each rank gets; the same on every rank.
            algorithm: see the module.
            async_op: see the module.
            timeout: see the module.

        Returns:
            This rank's part.
        """
        root = check_root(root, self.size)
        parts = None if counts is None else check_counts(counts, self.size)
        if self.rank == root:
            family, x = input_array(x)
            family.dtype_of(x)
            self._share_of(family, x, counts)

        def job() -> Any:
            return self._scatter(x, root, out, parts, algorithm, timeout)

        return self._queue.submit("scatter", job) if async_op else self._in_turn("scatter", job)

    def _scatter(
        self,
        x: Array | None,
        root: int,
        out: Array | None,
        parts: tuple[int, ...] | None,
        algorithm: str | Algorithm | None,
        timeout: float | None,
    ) -> Any:
        header = np.zeros(_HEADER_BYTES, np.uint8)
        if self.rank == root:
            family = family_of(x)
            told = json.dumps([family.name, _spelled(x, family), shape_of(x)]).encode()
            if len(told) > _HEADER_BYTES:
                raise ValueError(f"scatter of arrays with a dtype that takes {len(told)} bytes")
            header[: len(told)] = np.frombuffer(told, np.uint8)
        call = self._calls.get(Request("broadcast", "scatter header", 1, _HEADER_BYTES, root=root))
        seconds = self.timeout if timeout is None else timeout
        self._engine.execute(call, header if self.rank == root else None, header, seconds, False)
        name, dtype, whole = json.loads(header.tobytes().rstrip(b"\0"))
        like = x if self.rank == root else _example(name, dtype)
        family = family_of(like)
        rest = tuple(whole[1:])
        row = int(np.prod(rest, dtype=np.int64))
        shape = rest if parts is None else (parts[self.rank], *rest)
        counts = None if parts is None else tuple(part * row for part in parts)
        count = row if parts is None else 0
        request = Request(
            "scatter", family.dtype_of(like), family.itemsize_of(like), count, None, root,
            algorithm, counts,
        )  # fmt: skip
        call = self._calls.get(request)
        if out is not None:
            try:
                check_out(out, shape, like, family)
            except (TypeError, ValueError) as error:
                # The others are in the collective already: they must hear of it.
                self._engine.mismatch(f"{call.text}: rank {self.rank}: {error}")
        result = family.empty(shape, like) if out is None else out
        target = result if family.is_contiguous(result) else family.empty(shape, like)
        source = family.contiguous(x) if self.rank == root else None
        given = None if source is None else family.memory(source)
        self._engine.execute(call, given, family.memory(target), seconds, False)
        if target is not result:
            family.copy_into(result, target)
        return result


def _spelled(x: Array, family: Family) -> Any:
    """The dtype so that another process can make it."""
    if family is TORCH:
        return family.dtype_of(x)
    if family.dtype_of(x) == "bfloat16":
        return "bfloat16"
    return np.dtype(x.dtype).descr if x.dtype.names is not None else x.dtype.str


def _example(family: str, dtype: Any) -> Array:
    """An empty array of a family and dtype that another rank spelled."""
    if family == "torch":
        import torch

        return torch.empty(0, dtype=getattr(torch, dtype))
    if dtype == "bfloat16":
        import ml_dtypes

        return np.empty(0, ml_dtypes.bfloat16)
    if isinstance(dtype, list):
        return np.empty(0, np.dtype([tuple(part) for part in dtype]))
    return np.empty(0, np.dtype(dtype))
