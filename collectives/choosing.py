"""Which algorithm a call runs: the one it names, if it may, or the one the table chooses.

Everything it depends on is the same on every rank, so every rank chooses the same.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, NoReturn

from collectives.catalogue import find, names
from collectives.proof import verify
from collectives.reaching import reach
from collectives.schedule import Algorithm
from collectives.selection import SelectionTable
from collectives.steps import Copy
from transports.plan import Space


class Request(NamedTuple):
    """What a user asks for, without the arrays.

    Attributes:
        collective: which.
        dtype: name of the element type.
        itemsize: bytes of an element.
        count: elements of the full array where chunks are of the algorithm's choosing; elements
            of one chunk where there is one a rank (or a pair) and they are equal.
        op: how to reduce, or None.
        root: the root, or 0.
        algorithm: a name, an algorithm of the user's, or None to let the table choose.
        counts: elements of each rank's chunk, for the v-forms; of alltoall those sent, then those
            received; None where chunks are equal.
        deterministic: whether values must be folded in rank order.
        symmetric: which arrays lie in symmetric memory, on every rank alike.
        whole: of a scatter, what the root scatters, since calls are told apart by it.
        part_of: what the user has called, if this call is a part of that: "split".
        strided: which arrays lie there too, but are not contiguous; only a refusal says so.
        on_devices: whether the arrays lie on devices.
    """

    collective: str
    dtype: str
    itemsize: int
    count: int  # type: ignore[assignment]  # a tuple's count() is not needed here
    op: str | None = None
    root: int = 0
    algorithm: str | Algorithm | None = None
    counts: tuple[int, ...] | None = None
    deterministic: bool = False
    symmetric: tuple[Space, ...] = ()
    whole: str = ""
    part_of: str = ""
    strided: tuple[Space, ...] = ()
    on_devices: bool = False


class Chooser:
    """Chooses for the calls of one communicator."""

    def __init__(self, rank: int, size: int, hosts: tuple[int, ...], table: SelectionTable) -> None:
        """For this rank of `size` ranks, by rank 0's `table`."""
        self._rank = rank
        self._size = size
        self._hosts = hosts
        self.table = table

    def algorithm_for(self, request: Request) -> Algorithm:
        """The algorithm that a request runs.

        Raises:
            ValueError: the algorithm does not exist, or is not for this collective, size or call.
            TypeError: it is no algorithm.
        """
        wanted = request.algorithm
        if wanted is None:
            wanted = self.table.choose(
                request.collective,
                size=self._size,
                nbytes=self.nbytes(request),
                uneven=request.counts is not None,
                among=self._in_rank_order(request) if request.deterministic else None,
                reaches=lambda name: self._reaches(find(request.collective, name), request),
            )
        algo = find(request.collective, wanted) if isinstance(wanted, str) else wanted
        if not isinstance(algo, Algorithm):
            raise TypeError(
                "algorithm must be a name or what @algorithm made, found "
                f"{type(algo).__module__}.{type(algo).__qualname__}"
            )
        if algo.collective != request.collective:
            raise ValueError(
                f"algorithm {algo.name} does {algo.collective}, expected one for "
                f"{request.collective}"
            )
        if not algo.allows(self._size):
            raise ValueError(f"{algo.collective} {algo.name} is not written for {self._size} ranks")
        if algo.one_sided and not self._reaches(algo, request):
            self._refuse_memory(algo, request)
        if request.deterministic:
            self._refuse_other_orders(request, algo)
        if request.counts is not None and request.collective == "alltoall" and self._relays(algo):
            raise ValueError(
                f"alltoall {algo.name} relays chunks of other ranks, whose counts a rank does not "
                "know; with counts= use pairwise"
            )
        return algo

    def _in_rank_order(self, request: Request) -> tuple[str, ...]:
        """The catalogued algorithms that are proved to fold in rank order."""
        return tuple(
            name
            for name in names(request.collective)
            if find(request.collective, name).allows(self._size)
            and self._reaches(find(request.collective, name), request)
            and _folds_in_rank_order(
                find(request.collective, name), self._size, request.root, self._hosts
            )
        )

    def _refuse_other_orders(self, request: Request, algo: Algorithm) -> None:
        if not _folds_in_rank_order(algo, self._size, request.root, self._hosts):
            raise ValueError(
                "deterministic=True needs an algorithm that folds in rank order, which "
                f"{algo.collective} {algo.name} does not at {self._size} ranks; expected one of "
                f"{', '.join(self._in_rank_order(request))}"
            )

    def _relays(self, algo: Algorithm) -> bool:
        """Whether any rank handles chunks that neither come from it nor end with it."""
        return any(
            rank not in divmod(chunk, self._size)
            for rank in range(self._size)
            for step in algo.schedule(rank, self._size)
            if not isinstance(step, Copy)
            for chunk in step.chunks
        )

    def nbytes(self, request: Request) -> int:
        """Bytes of the full array, the same on every rank."""
        if request.counts is not None and request.collective != "alltoall":
            return sum(request.counts) * request.itemsize
        fixed = request.collective not in ("allreduce", "reduce", "broadcast", "barrier")
        return request.count * request.itemsize * (self._size if fixed else 1)

    def _reaches(self, algo: Algorithm, request: Request) -> bool:
        """Whether every array that the algorithm reaches into at a peer can be reached."""
        if not algo.one_sided:
            return True
        if algo.collective == "alltoall" and request.counts is not None:
            return False  # where a peer has its chunks depends on counts that a rank does not know
        if not request.symmetric and self._size > 1:
            return False  # without a proof of all ranks, which takes a while where they are many
        remote = reach(algo, self._size, request.root, self._hosts).remote
        return set(remote) <= set(request.symmetric)

    def _refuse_memory(self, algo: Algorithm, request: Request) -> NoReturn:
        remote = reach(algo, self._size, request.root, self._hosts).remote
        needed = " and ".join(_ARRAYS[space] for space in remote)
        counted = [_ARRAYS[space] for space in request.symmetric]
        strided = [f"{_ARRAYS[space]} that is not contiguous" for space in request.strided]
        found = " and ".join(counted + strided) or "none"
        if set(remote) <= set(request.symmetric):
            raise ValueError(
                f"alltoall {algo.name} does not take counts=: where a peer has its chunks depends "
                "on counts that a rank does not know; expected pairwise"
            )
        raise ValueError(
            f"{algo.collective} {algo.name} reaches into the memory of peers: expected {needed} "
            f"from comm.empty, contiguous, found {found}"
        )


_ARRAYS = {Space.INPUT: "x", Space.OUTPUT: "out"}


@lru_cache(maxsize=512)
def _folds_in_rank_order(algo: Algorithm, size: int, root: int, hosts: tuple[int, ...]) -> bool:
    """Whether the proof shows ((x0 + x1) + x2) + ... in one pass for every chunk."""
    return verify(algo, size, root, hosts).rank_order
