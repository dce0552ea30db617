"""`algorithm="mpi"`: the MPI library's own collective, with only that library's guarantees.

No fingerprint travels with it, no deadline ends it, and a lost rank is what MPI makes of it. It is
there to compare with, and for networks that an MPI library knows how to use better.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from collectives.arguments import check_leading_axis, check_out, input_array, refuse_overlap
from collectives.arrays import NUMPY, Array, Family, is_same_memory
from collectives.mpi_names import OPS, TYPES
from transports import _native
from transports.mpi.connection import Group

NAME = "mpi"
"""What `algorithm` names."""

_IN_PLACE = ("allreduce", "broadcast")
"""What MPI does in place on every rank alike; of the others x is copied where it is out."""

_Run = Callable[[Any, Any], object]
_MOST_KNOWN = 256
_MOST_ELEMENTS = (1 << 31) - 1
_ADDRESS = (1 << 64) - 1


class ByMpi:
    """MPI's collectives among the ranks of one communicator."""

    def __init__(self, group: Group) -> None:
        """Of these ranks, all of which make one at the same time."""
        self._library = group.world.library
        self._mpi = self._library.mpi
        everyone = group.world.communicator()
        assert group.number is not None, "the number of a communicator that is connected"
        ranks = everyone.Get_group().Incl(list(group.members))
        self._comm: Any = everyone.Create_group(ranks, group.world.tag_of(group.number) + 3)
        self._rank: int = self._comm.Get_rank()
        self._size: int = self._comm.Get_size()
        self._runs: dict[Any, _Run] = {}
        self._known: dict[Any, _native.MpiCall] = {}

    def known(self, x: Array, op: str) -> _native.MpiCall | None:
        """An allreduce of such an array, for the engine to repeat by itself."""
        if x.size > _MOST_ELEMENTS:
            return None
        key = x.dtype, x.size, op
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            library = self._library
            found = self._known[key] = _native.MpiCall(
                library.allreduce,
                int(self._mpi.IN_PLACE) & _ADDRESS,
                x.size,
                library.handle_of(self._type(str(x.dtype), moves=False)),
                library.handle_of(self._op(op, str(x.dtype))),
                library.handle_of(self._comm),
            )
        return found

    def call(
        self, collective: str, x: Array, out: Array | None, op: str | None = None, root: int = 0
    ) -> Array | None:
        """One collective on x, whose arguments other than arrays have been checked.

        Raises:
            TypeError, ValueError: as for any algorithm; and of types and operations that MPI does
                not have, and arrays that are not contiguous.
        """
        family, x = input_array(x)
        if family.on_device or not family.is_contiguous(x):
            raise ValueError('algorithm="mpi" expected a contiguous x in host memory')
        key = (collective, x.dtype, op, root)
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = self._make(collective, family.dtype_of(x), op, root)
        if collective in ("reduce", "gather") and self._rank != root:
            run(_memory(family, x), None)
            return None
        shape = self._shape(collective, x.shape)
        if out is None:
            out = family.empty(shape, x)
        elif not check_out(out, shape, x, family):
            raise ValueError('algorithm="mpi" expected a contiguous out')
        elif out is x or not _have_own_memory(family, x, out):
            if out is not x:
                refuse_overlap(x, out, family)
            if is_same_memory(family, x, out):
                x = out if collective in _IN_PLACE else _copied(family, x)
        run(_memory(family, x), _memory(family, out))
        return out

    def scatter(self, x: Array | None, out: Array | None, root: int) -> Array:
        """As `call`; only the root knows what there is, and tells the others first."""
        told = None
        if self._rank == root:
            family, x = input_array(x)
            check_leading_axis(x, self._size, "one entry a rank")
            told = family.name, x[:0].numpy() if family is not NUMPY else x[:0]
        name, like = self._comm.bcast(told, root)
        family, like = input_array(like if name == NUMPY.name else _as_tensor(like))
        if self._rank != root:
            x = family.empty((self._size, *like.shape[1:]), like)
        found = self.call("scatter", x, out, None, root)
        assert found is not None, "a scatter has a result on every rank"
        return found

    def barrier(self) -> None:
        """Return once every rank has come here."""
        self._comm.Barrier()

    def _shape(self, collective: str, shape: Any) -> tuple[int, ...]:
        if collective in ("allgather", "gather"):
            return (self._size, *shape)
        return tuple(shape[1:]) if collective in ("reduce_scatter", "scatter") else tuple(shape)

    def _make(self, collective: str, dtype: str, op: str | None, root: int) -> _Run:
        comm, in_place = self._comm, self._mpi.IN_PLACE
        kind, folds = self._type(dtype, moves=op is None), self._op(op, dtype)
        is_root = self._rank == root

        def spec(array: Any) -> Any:
            return None if array is None else (array.view("u1") if op is None else array, kind)

        def allreduce(x: Any, out: Any) -> None:
            comm.Allreduce(in_place if x is out else (x, kind), (out, kind), folds)

        def broadcast(x: Any, out: Any) -> None:
            if is_root and x is not out:
                out[...] = x
            comm.Bcast(spec(out), root)

        runs: dict[str, _Run] = {
            "allreduce": allreduce,
            "broadcast": broadcast,
            "reduce": lambda x, out: comm.Reduce(spec(x), spec(out), folds, root),
            "reduce_scatter": lambda x, out: comm.Reduce_scatter_block(spec(x), spec(out), folds),
            "gather": lambda x, out: comm.Gather(spec(x), spec(out), root),
            "scatter": lambda x, out: comm.Scatter(spec(x) if is_root else None, spec(out), root),
            "allgather": lambda x, out: comm.Allgather(spec(x), spec(out)),
            "alltoall": lambda x, out: comm.Alltoall(spec(x), spec(out)),
        }
        return runs[collective]

    def _type(self, dtype: str, moves: bool) -> Any:
        if moves:
            return self._mpi.BYTE
        if dtype not in TYPES:
            raise TypeError(
                f'algorithm="mpi": MPI reduces {", ".join(TYPES)}, found {dtype}; expected '
                "another algorithm"
            )
        return getattr(self._mpi, TYPES[dtype])

    def _op(self, op: str | None, dtype: str) -> Any:
        if op is None:
            return None
        if op not in OPS:
            raise ValueError(f'algorithm="mpi": MPI has {", ".join(OPS)}, found op {op!r}')
        is_logical = op in ("land", "lor", "lxor")
        if (dtype == "bool") != is_logical and (dtype == "bool" or dtype.startswith("float")):
            raise TypeError(f'algorithm="mpi": MPI has no {op} of {dtype}; expected another one')
        return getattr(self._mpi, OPS[op])


def _have_own_memory(family: Family, x: Array, out: Array) -> bool:
    """Whether two arrays are known to have nothing in common; quick."""
    return family is NUMPY and x.base is None and out.base is None


def _copied(family: Family, x: Array) -> Array:
    return x.copy() if family is NUMPY else x.clone()


def _as_tensor(x: Any) -> Any:
    """A numpy array as a torch tensor."""
    import torch

    return torch.from_numpy(x)


def _memory(family: Family, x: Array) -> Any:
    return x if family is NUMPY else x.detach().numpy()
