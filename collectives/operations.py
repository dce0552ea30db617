"""The nine collectives as methods: arguments checked, arrays viewed, the call handed on.

Every method checks its arguments before anything is sent. Common to all:

* arrays are numpy arrays, torch tensors (CPU, CUDA) or cupy arrays, on all ranks on the host or on
  all on devices (docs/devices.md); the result is of the same kind. `x` is never
  changed, unless it is also `out`;
* `out` receives the result and is returned; it must have the result's shape and dtype;
* `algorithm` is a name (`collectives algorithms` lists them) or what `@algorithm` made; left out,
  the selection table chooses; "mpi", where MPI connects the ranks, is that library's own collective
  with only its guarantees;
* `async_op=True` returns a `Work` at once, whose `wait()` gives the result; until then neither
  `x` nor `out` may be touched;
* `deterministic=True` folds the ranks' values in rank order, ((x0 + x1) + x2) + ..., 16-bit floats
  in float32 with one rounding at the end: the same bits whatever the algorithm, transport and
  placement. An algorithm that does not fold so is refused;
* `timeout` in seconds replaces the communicator's;
* a call may return on a rank before others have come to it, and may as well wait until they have:
  as with MPI, a program must not need the one or the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from collectives.arguments import (
    check_counts,
    check_leading_axis,
    check_root,
    input_array,
)
from collectives.arrays import Array, Family, shape_of
from collectives.by_mpi import NAME as MPI
from collectives.choosing import Request
from collectives.execution_by_mpi import ExecutionByMpi
from collectives.schedule import Algorithm
from transports import _native

Counts = Sequence[int]


class Operations(ExecutionByMpi):
    """Collective operations; `Communicator` adds how ranks come and go."""

    @_native.repeatable
    def allreduce(
        self,
        x: Array,
        *,
        out: Array | None = None,
        op: str = "sum",
        algorithm: str | Algorithm | None = None,
        deterministic: bool = False,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Combine `x` of all ranks element by element; every rank gets the same bits.

        Args:
            x: the same shape and dtype on every rank.
            out: of the same shape and dtype; may be `x`.
            op: sum, prod, min, max, avg (floats), band, bor, bxor, land, lor, lxor (integers and
                bool). Integers wrap; NaN wins in min and max; 16-bit floats add in float32 within
                a pass and are rounded after it; avg divides the rounded sum, so that a sum beyond
                float16 is inf.
            algorithm: see `collectives.operations`.
            deterministic: see `collectives.operations`.
            async_op: see `collectives.operations`.
            timeout: see `collectives.operations`.

        Returns:
            An array as `x`, or a `Work` that gives it.
        """
        if algorithm == MPI:
            return self._by_mpi(
                "allreduce", x, out, op, 0, algorithm,
                deterministic=deterministic, async_op=async_op, timeout=timeout,
            )  # fmt: skip
        family, x = input_array(x)
        return self._start(
            "allreduce", family, x, x, shape_of(x), out, async_op, timeout,
            op=op, count=family.count_of(x), algorithm=algorithm,
            deterministic=deterministic,
        )  # fmt: skip

    @_native.repeatable
    def reduce(
        self,
        x: Array,
        *,
        root: int = 0,
        out: Array | None = None,
        op: str = "sum",
        algorithm: str | Algorithm | None = None,
        deterministic: bool = False,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Combine `x` of all ranks element by element; only the root gets the result.

        Args:
            x: the same shape and dtype on every rank.
            root: who gets the result.
            out: on the root, of the same shape and dtype; not used elsewhere.
            op: as `allreduce`.
            algorithm: see `collectives.operations`.
            deterministic: see `collectives.operations`.
            async_op: see `collectives.operations`.
            timeout: see `collectives.operations`.

        Returns:
            An array as `x` on the root, None elsewhere.
        """
        if algorithm == MPI:
            return self._by_mpi(
                "reduce", x, out, op, root, algorithm,
                deterministic=deterministic, async_op=async_op, timeout=timeout,
            )  # fmt: skip
        root = check_root(root, self.size)
        family, x = input_array(x)
        shape = shape_of(x) if self.rank == root else None
        return self._start(
            "reduce", family, x, x, shape, out, async_op, timeout,
            op=op, root=root, count=family.count_of(x), algorithm=algorithm,
            deterministic=deterministic,
        )  # fmt: skip

    @_native.repeatable
    def reduce_scatter(
        self,
        x: Array,
        *,
        out: Array | None = None,
        op: str = "sum",
        counts: Counts | None = None,
        algorithm: str | Algorithm | None = None,
        deterministic: bool = False,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Combine `x` of all ranks; rank r gets part r of the result.

        Args:
            x: shape (size, ...); with `counts`, (sum(counts), ...).
            out: shape x.shape[1:]; with `counts`, (counts[rank], ...).
            op: as `allreduce`.
            counts: how many entries of the leading axis each rank gets; the same on every rank.
            algorithm: see `collectives.operations`.
            deterministic: see `collectives.operations`.
            async_op: see `collectives.operations`.
            timeout: see `collectives.operations`.

        Returns:
            This rank's part.
        """
        if algorithm == MPI:
            return self._by_mpi(
                "reduce_scatter", x, out, op, 0, algorithm,
                deterministic=deterministic, async_op=async_op, counts=counts, timeout=timeout,
            )  # fmt: skip
        family, x = input_array(x)
        shape, count, chunks = self._share_of(family, x, counts)
        return self._start(
            "reduce_scatter", family, x, x, shape, out, async_op, timeout,
            op=op, count=count, counts=chunks, algorithm=algorithm,
            deterministic=deterministic,
        )  # fmt: skip

    @_native.repeatable
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
            algorithm: see `collectives.operations`.
            async_op: see `collectives.operations`.
            timeout: see `collectives.operations`.

        Returns:
            The root's values, on every rank.
        """
        if algorithm == MPI:
            return self._by_mpi(
                "broadcast", x, out, None, root, algorithm,
                async_op=async_op, timeout=timeout,
            )  # fmt: skip
        root = check_root(root, self.size)
        family, x = input_array(x)
        source = x if self.rank == root else None
        return self._start(
            "broadcast", family, x, source, shape_of(x), out, async_op, timeout,
            root=root, count=family.count_of(x), algorithm=algorithm,
        )  # fmt: skip

    @_native.repeatable
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
            algorithm: see `collectives.operations`.
            async_op: see `collectives.operations`.
            timeout: see `collectives.operations`.

        Returns:
            On the root all of them, in rank order; None elsewhere.
        """
        if algorithm == MPI:
            return self._by_mpi(
                "gather", x, out, None, root, algorithm,
                async_op=async_op, counts=counts, timeout=timeout,
            )  # fmt: skip
        root = check_root(root, self.size)
        family, x = input_array(x)
        shape, count, chunks = self._all_of(family, x, counts)
        result = shape if self.rank == root else None
        return self._start(
            "gather", family, x, x, result, out, async_op, timeout,
            root=root, count=count, counts=chunks, algorithm=algorithm,
        )  # fmt: skip

    @_native.repeatable
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
            algorithm: see `collectives.operations`.
            async_op: see `collectives.operations`.
            timeout: see `collectives.operations`.

        Returns:
            All of them, in rank order.
        """
        if algorithm == MPI:
            return self._by_mpi(
                "allgather", x, out, None, 0, algorithm,
                async_op=async_op, counts=counts, timeout=timeout,
            )  # fmt: skip
        family, x = input_array(x)
        shape, count, chunks = self._all_of(family, x, counts)
        return self._start(
            "allgather", family, x, x, shape, out, async_op, timeout,
            count=count, counts=chunks, algorithm=algorithm,
        )  # fmt: skip

    @_native.repeatable
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
            async_op: see `collectives.operations`.
            timeout: see `collectives.operations`.

        Returns:
            What the ranks sent here, in rank order.
        """
        if algorithm == MPI:
            return self._by_mpi(
                "alltoall", x, out, None, 0, algorithm,
                async_op=async_op, counts=counts, timeout=timeout,
            )  # fmt: skip
        family, x = input_array(x)
        if counts is None:
            check_leading_axis(x, self.size, "the number of ranks")
            shape, count, chunks = shape_of(x), family.count_of(x) // self.size, None
        else:
            sent, received = _both_counts(counts, self.size)
            check_leading_axis(x, sum(sent), "sum(counts[0])")
            row = _row(x)
            shape, count = (sum(received), *shape_of(x)[1:]), 0
            chunks = tuple(part * row for part in (*sent, *received))
        return self._start(
            "alltoall", family, x, x, shape, out, async_op, timeout,
            count=count, counts=chunks, algorithm=algorithm,
        )  # fmt: skip

    @_native.repeatable
    def barrier(
        self,
        *,
        algorithm: str | Algorithm | None = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Return once every rank has come here."""
        if algorithm == MPI:
            self._refuse_beside_mpi("barrier", timeout=timeout)
            return self._mpis_own().barrier()
        call = self._calls.get(Request("barrier", "", 1, 0, algorithm=algorithm))
        if algorithm is None or isinstance(algorithm, str):
            self._engine.remember("barrier", None, None, 0, None, algorithm, False, call)
        return self._launch(call, None, None, async_op, timeout)

    # --- shapes

    def _share_of(
        self, family: Family, x: Array, counts: Counts | None
    ) -> tuple[tuple[int, ...], int, tuple[int, ...] | None]:
        """(shape of this rank's part, elements of a part, elements of each part or None)."""
        if counts is None:
            check_leading_axis(x, self.size, "the number of ranks")
            return shape_of(x)[1:], family.count_of(x) // self.size, None
        parts = check_counts(counts, self.size)
        check_leading_axis(x, sum(parts), "sum(counts)")
        row = _row(x)
        shape = (parts[self.rank], *shape_of(x)[1:])
        return shape, 0, tuple(part * row for part in parts)

    def _all_of(
        self, family: Family, x: Array, counts: Counts | None
    ) -> tuple[tuple[int, ...], int, tuple[int, ...] | None]:
        """(shape of all parts together, elements of a part, elements of each part or None)."""
        if counts is None:
            return (self.size, *shape_of(x)), family.count_of(x), None
        parts = check_counts(counts, self.size)
        check_leading_axis(x, parts[self.rank], f"counts[{self.rank}]")
        row = _row(x)
        return (sum(parts), *shape_of(x)[1:]), 0, tuple(part * row for part in parts)


def _row(x: Array) -> int:
    """Elements of one entry of the leading axis."""
    return int(np.prod(shape_of(x)[1:], dtype=np.int64))


def _both_counts(
    counts: tuple[Counts, Counts], size: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What an alltoall sends and receives, checked."""
    try:
        sent, received = counts
    except TypeError:
        raise TypeError(f"counts: expected (sent, received), found {counts!r}") from None
    except ValueError:
        raise ValueError(
            f"counts: expected (sent, received), found {len(counts)} entries: {counts!r}"
        ) from None
    return check_counts(sent, size), check_counts(received, size)
