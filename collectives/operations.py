"""The nine collectives as methods: arguments checked, arrays viewed, the call handed on.

Every method checks its arguments before anything is sent. Common to all:

* arrays are numpy arrays or torch CPU tensors; the result is of the same kind. `x` is never
  changed, unless it is also `out`;
* `out` receives the result and is returned; it must have the result's shape and dtype;
* `algorithm` is a name (`collectives algorithms` lists them) or what `@algorithm` made; left out,
  the selection table chooses;
* `async_op=True` returns a `Work` at once, whose `wait()` gives the result; until then neither
  `x` nor `out` may be touched;
* `timeout` in seconds replaces the communicator's.
"""

from __future__ import annotations


from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from collectives.arguments import (
    check_counts,
    check_leading_axis,
    check_out,
    check_root,
    input_array,
)
from collectives.arrays import Array, Family, shape_of
from collectives.calls import Calls, Request
from collectives.schedule import Algorithm
from collectives.work import Work, WorkQueue
from transports import _native

Counts = Sequence[int]


class Operations:
    """Collective operations over an engine; `Communicator` adds how ranks come and go."""

    rank: int
    size: int
    timeout: float
    _engine: _native.Engine
    _calls: Calls
    _queue: WorkQueue

    def allreduce(
        self,
        x: Array,
        *,
        out: Array | None = None,
        op: str = "sum",
        algorithm: str | Algorithm | None = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Combine `x` of all ranks element by element; every rank gets the same bits.

        Args:
            x: the same shape and dtype on every rank.
            out: of the same shape and dtype; may be `x`.
            op: sum, prod, min, max, avg (floats), band, bor, bxor, land, lor, lxor (integers and
                bool). Integers wrap; NaN wins in min and max; 16-bit floats add in float32.
            algorithm: see the module.
            async_op: see the module.
            timeout: see the module.

        Returns:
            An array as `x`, or a `Work` that gives it.
        """
        family, x = input_array(x)
        request = Request(
            "allreduce", family.dtype_of(x), family.itemsize_of(x), _count(x), op, 0, algorithm
        )
        return self._start(request, family, x, shape_of(x), x, out, async_op, timeout)

    def reduce(
        self,
        x: Array,
        *,
        root: int = 0,
        out: Array | None = None,
        op: str = "sum",
        algorithm: str | Algorithm | None = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Combine `x` of all ranks element by element; only the root gets the result.

        Args:
            x: the same shape and dtype on every rank.
            root: who gets the result.
            out: on the root, of the same shape and dtype; not used elsewhere.
            op: as `allreduce`.
            algorithm: see the module.
            async_op: see the module.
            timeout: see the module.

        Returns:
            An array as `x` on the root, None elsewhere.
        """
        root = check_root(root, self.size)
        family, x = input_array(x)
        request = Request(
            "reduce", family.dtype_of(x), family.itemsize_of(x), _count(x), op, root, algorithm
        )
        shape = shape_of(x) if self.rank == root else None
        return self._start(request, family, x, shape, x, out, async_op, timeout)

    def reduce_scatter(
        self,
        x: Array,
        *,
        out: Array | None = None,
        op: str = "sum",
        counts: Counts | None = None,
        algorithm: str | Algorithm | None = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Combine `x` of all ranks; rank r gets part r of the result.

        Args:
            x: shape (size, ...); with `counts`, (sum(counts), ...).
            out: shape x.shape[1:]; with `counts`, (counts[rank], ...).
            op: as `allreduce`.
            counts: how many entries of the leading axis each rank gets; the same on every rank.
            algorithm: see the module.
            async_op: see the module.
            timeout: see the module.

        Returns:
            This rank's part.
        """
        family, x = input_array(x)
        shape, count, chunks = self._share_of(x, counts)
        request = Request(
            "reduce_scatter", family.dtype_of(x), family.itemsize_of(x), count, op, 0, algorithm,
            chunks,
        )  # fmt: skip
        return self._start(request, family, x, shape, x, out, async_op, timeout)

    def broadcast(
        self,
        x: Array,
        *,
        root: int = 0,
        out: Array | None = None,
        algorithm: str | Algorithm | None = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Give the root's `x` to every rank.

        Args:
            x: the same shape and dtype on every rank; only the root's values matter.
            root: whose.
            out: of the same shape and dtype; may be `x`.
            algorithm: see the module.
            async_op: see the module.
            timeout: see the module.

        Returns:
            The root's values, on every rank.
        """
        root = check_root(root, self.size)
        family, x = input_array(x)
        request = Request(
            "broadcast", family.dtype_of(x), family.itemsize_of(x), _count(x), None, root, algorithm
        )
        source = x if self.rank == root else None
        return self._start(request, family, source, shape_of(x), x, out, async_op, timeout)

    def gather(
        self,
        x: Array,
        *,
        root: int = 0,
        out: Array | None = None,
        counts: Counts | None = None,
        algorithm: str | Algorithm | None = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Collect `x` of every rank on the root.

        Args:
            x: the same shape and dtype on every rank; with `counts`, (counts[rank], ...).
            root: who gets them.
            out: on the root, shape (size, ...), or with `counts` (sum(counts), ...).
            counts: length of each rank's leading axis; the same on every rank.
            algorithm: see the module.
            async_op: see the module.
            timeout: see the module.

        Returns:
            On the root all of them, in rank order; None elsewhere.
        """
        root = check_root(root, self.size)
        family, x = input_array(x)
        shape, count, chunks = self._all_of(x, counts)
        request = Request(
            "gather", family.dtype_of(x), family.itemsize_of(x), count, None, root, algorithm, chunks
        )
        result = shape if self.rank == root else None
        return self._start(request, family, x, result, x, out, async_op, timeout)

    def allgather(
        self,
        x: Array,
        *,
        out: Array | None = None,
        counts: Counts | None = None,
        algorithm: str | Algorithm | None = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Collect `x` of every rank on every rank.

        Args:
            x: the same shape and dtype on every rank; with `counts`, (counts[rank], ...).
            out: shape (size, ...); with `counts`, (sum(counts), ...).
            counts: length of each rank's leading axis; the same on every rank.
            algorithm: see the module.
            async_op: see the module.
            timeout: see the module.

        Returns:
            All of them, in rank order.
        """
        family, x = input_array(x)
        shape, count, chunks = self._all_of(x, counts)
        request = Request(
            "allgather", family.dtype_of(x), family.itemsize_of(x), count, None, 0, algorithm, chunks
        )
        return self._start(request, family, x, shape, x, out, async_op, timeout)

    def alltoall(
        self,
        x: Array,
        *,
        out: Array | None = None,
        counts: tuple[Counts, Counts] | None = None,
        algorithm: str | Algorithm | None = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Give entry d of `x` to rank d; entry s of the result comes from rank s.

        Args:
            x: shape (size, ...); with `counts`, (sum(counts[0]), ...).
            out: of the same shape; with `counts`, (sum(counts[1]), ...); may be `x`.
            counts: (entries of the leading axis sent to each rank, entries received of each).
            algorithm: see the module; those that relay refuse `counts`.
            async_op: see the module.
            timeout: see the module.

        Returns:
            What the ranks sent here, in rank order.
        """
        family, x = input_array(x)
        if counts is None:
            check_leading_axis(x, self.size, "the number of ranks")
            shape, count, chunks = shape_of(x), _count(x) // self.size, None
        else:
            if len(counts) != 2:
                raise ValueError(
                    f"counts: expected (sent, received), found {len(counts)} entries: {counts!r}"
                )
            sent, received = (check_counts(part, self.size) for part in counts)
            check_leading_axis(x, sum(sent), "sum(counts[0])")
            row = _row(x)
            shape, count = (sum(received), *shape_of(x)[1:]), 0
            chunks = tuple(part * row for part in (*sent, *received))
        request = Request(
            "alltoall", family.dtype_of(x), family.itemsize_of(x), count, None, 0, algorithm, chunks
        )
        # Chunks lie elsewhere in the output than in the input, so the input must be kept apart.
        source = family.contiguous(x)
        if out is x:
            source = family.empty(shape_of(x), x)
            family.copy_into(source, x)
        return self._start(request, family, source, shape, x, out, async_op, timeout)

    def barrier(
        self,
        *,
        algorithm: str | Algorithm | None = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Return once every rank has come here."""
        call = self._calls.get(Request("barrier", "", 1, 0, None, 0, algorithm))
        return self._launch(call, None, None, lambda: None, async_op, timeout)

    # --- how a call gets to the engine

    def _start(
        self,
        request: Request,
        family: Family,
        source: Array | None,
        shape: tuple[int, ...] | None,
        like: Array,
        out: Array | None,
        async_op: bool,
        timeout: float | None,
    ) -> Any:
        """Run `request` from `source` to an array of `shape`, or to nothing where it is None."""
        call = self._calls.get(request)
        if source is not None:
            source = family.contiguous(source)
        if shape is None:
            given = None if source is None else family.memory(source)
            keep = source
            return self._launch(call, given, None, lambda: _nothing(keep), async_op, timeout)
        target = result = family.empty(shape, like) if out is None else out
        if out is not None:
            check_out(out, shape, like, family)
            if not family.is_contiguous(out):
                target = family.empty(shape, like)
        given = None if source is None else family.memory(source)

        def finish() -> Any:
            if target is not result:
                family.copy_into(result, target)
            return _alive(result, source)

        return self._launch(call, given, family.memory(target), finish, async_op, timeout)

    def _launch(
        self,
        call: _native.Call,
        source: Any,
        target: Any,
        finish: Callable[[], Any],
        async_op: bool,
        timeout: float | None,
    ) -> Any:
        seconds = self.timeout if timeout is None else timeout
        engine = self._engine

        if not async_op and self._queue.idle:
            engine.execute(call, source, target, seconds, False)
            return finish()

        def job() -> Any:
            engine.execute(call, source, target, seconds, async_op)
            return finish()

        work = self._queue.submit(call.text, job)
        return work if async_op else work.wait()

    def _in_turn(self, text: str, job: Callable[[], Any]) -> Any:
        return job() if self._queue.idle else self._queue.submit(text, job).wait()

    # --- shapes

    def _share_of(
        self, x: Array, counts: Counts | None
    ) -> tuple[tuple[int, ...], int, tuple[int, ...] | None]:
        """(shape of this rank's part, elements of a part, elements of each part or None)."""
        if counts is None:
            check_leading_axis(x, self.size, "the number of ranks")
            return shape_of(x)[1:], _count(x) // self.size, None
        parts = check_counts(counts, self.size)
        check_leading_axis(x, sum(parts), "sum(counts)")
        row = _row(x)
        shape = (parts[self.rank], *shape_of(x)[1:])
        return shape, 0, tuple(part * row for part in parts)

    def _all_of(
        self, x: Array, counts: Counts | None
    ) -> tuple[tuple[int, ...], int, tuple[int, ...] | None]:
        """(shape of all parts together, elements of a part, elements of each part or None)."""
        if counts is None:
            return (self.size, *shape_of(x)), _count(x), None
        parts = check_counts(counts, self.size)
        check_leading_axis(x, parts[self.rank], f"counts[{self.rank}]")
        row = _row(x)
        return (sum(parts), *shape_of(x)[1:]), 0, tuple(part * row for part in parts)


def _count(x: Array) -> int:
    size = x.size
    return int(size if not callable(size) else x.numel())


def _row(x: Array) -> int:
    """Elements of one entry of the leading axis."""
    return int(np.prod(shape_of(x)[1:], dtype=np.int64))


def _nothing(_: object) -> None:
    """What ranks get that have no result; holds its argument alive until then."""


def _alive(result: Any, _: object) -> Any:
    """`result`; holds the second argument alive until then."""
    return result
