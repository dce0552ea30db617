"""scatter, in which only the root knows what comes: a header goes before the data."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np

from collectives.arguments import (
    check_counts,
    check_root,
    check_timeout,
    input_array,
    refuse_out,
    refuse_overlap,
)
from collectives.arrays import Array, family_of, shape_of
from collectives.choosing import Request
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
        seconds = self.timeout if timeout is None else check_timeout(timeout)
        # Proved here, not in the job: a proof takes a call of its own.
        self._calls.proved_algorithm_for(
            Request("scatter", "", 1, 0, root=root, algorithm=algorithm, counts=parts)
        )
        if self.rank == root:
            family, x = input_array(x)
            family.dtype_of(x)
            shape, _, _ = self._share_of(family, x, counts)
            if out is not None:
                refuse_out(out, shape, x, family)
                refuse_overlap(x, out, family)
        elif out is not None:
            family_of(out, "out")

        def job() -> Any:
            return self._scatter(x, root, out, parts, algorithm, seconds)

        return self._queue.submit("scatter", job) if async_op else self._in_turn("scatter", job)

    def _scatter(
        self,
        x: Array | None,
        root: int,
        out: Array | None,
        parts: tuple[int, ...] | None,
        algorithm: str | Algorithm | None,
        seconds: float,
    ) -> Any:
        like, whole = self._told_by_root(x, root, seconds)
        family = family_of(like)
        rest = whole[1:]
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
                refuse_out(out, shape, like, family)
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

    def _told_by_root(
        self, x: Array | None, root: int, seconds: float
    ) -> tuple[Array, tuple[int, ...]]:
        """An array of the type of the root's x, and that one's shape."""
        note = b""
        if self.rank == root:
            family = family_of(x)
            note = pickle.dumps((family.name, x.dtype, shape_of(x)))  # type: ignore[union-attr]
        header = np.zeros(_HEADER_BYTES, np.uint8)
        header[:8] = np.frombuffer(len(note).to_bytes(8, "little"), np.uint8)
        short = note[: _HEADER_BYTES - 8]
        header[8 : 8 + len(short)] = np.frombuffer(short, np.uint8)
        self._tell(header, root, seconds)
        length = int.from_bytes(header[:8].tobytes(), "little")
        told = header[8 : 8 + length]
        if length > told.size:  # a record of many fields, say
            told = np.frombuffer(bytearray(note or length), np.uint8)
            self._tell(told, root, seconds)
        name, dtype, shape = pickle.loads(told.tobytes())
        return (x if self.rank == root else _example(name, dtype)), shape

    def _tell(self, note: Array, root: int, seconds: float) -> None:
        call = self._calls.get(Request("broadcast", "scatter header", 1, note.size, root=root))
        self._engine.execute(call, note if self.rank == root else None, note, seconds, False)


def _example(family: str, dtype: Any) -> Array:
    """An empty array of the family and type of another rank's."""
    if family == "torch":
        import torch

        return torch.empty(0, dtype=dtype, device="cpu")
    return np.empty(0, dtype)
