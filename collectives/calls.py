"""From what a user asks for to a native call: selection, lowering, binding; made once, then cached.

A call depends only on things that all ranks agree on, so every rank makes the same; what they
agree on is its text, whose hash travels with every message.
"""

from __future__ import annotations

import atexit
import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache

from collectives import dtypes
from collectives.algorithms.direct import direct_barrier
from collectives.catalogue import REACHING
from collectives.choosing import Chooser, Request
from collectives.cost.work import Room
from collectives.lowering import lower
from collectives.schedule import Algorithm
from collectives.selection import SelectionTable, device_table, hosts_table
from collectives.specs import spec_named
from transports import _native
from transports.plan import split_evenly

_MOST_CALLS = 4096  # a program that never repeats a shape must not grow for ever
_MOST_REACHING = 16  # ranks, since each tells each other where its arrays are
# Messages of a reduce overlap from call to call, as its senders hear of nobody: copies, for which
# all must meet, gain from so many times the least bytes on.
_LATER_REACHING = {"reduce": 8}
_LONGEST_COUNTS = 48  # characters of counts in a call's text; beyond, their hash stands for them


class Calls:
    """Makes and keeps the calls of one communicator."""

    def __init__(
        self,
        rank: int,
        size: int,
        hosts: tuple[int, ...],
        table: SelectionTable,
        room: Room,
        cache_bytes: int,
        prove: Callable[[Algorithm, int], str],
        least_reaching: int | None = None,
    ) -> None:
        """Calls through channels with `room`.

        `cache_bytes` is what arrays have to fit in, or are written past it; `prove` proves an
        algorithm of the user's for a root and gives its digest. From `least_reaching` bytes on, if
        it is a number, calls may run one-sided instead, where the kernel copies between arrays.
        """
        self._rank = rank
        self._size = size
        self._hosts = hosts
        self.chooser = Chooser(rank, size, hosts, table)
        self._on_devices: Chooser | None = None
        self._room = room
        self._cache_bytes = cache_bytes
        self._prove = prove
        self._least_reaching = least_reaching
        self._digests: dict[Algorithm, str] = {}
        self._calls: dict[Request, _native.Call] = {}

    def chooser_for(self, request: Request) -> Chooser:
        """Arrays on devices have a table of their own, read when there is one."""
        if not request.on_devices:
            return self.chooser
        if self._on_devices is None:
            several = len(set(self._hosts)) > 1
            table = hosts_table() if several else device_table()
            self._on_devices = Chooser(self._rank, self._size, self._hosts, table)
        return self._on_devices

    def get(self, request: Request) -> _native.Call:
        """The call for a request.

        Raises:
            ValueError: the algorithm does not exist or is not for this collective or size.
            TypeError: the operation is not defined for the type.
            ProofError: an algorithm of the user's does not hold.
        """
        try:
            call = self._calls.get(request)
        except TypeError:  # op or algorithm cannot be hashed: no name, and refused as such
            return self._make(request)
        if call is None:
            if len(self._calls) >= _MOST_CALLS:
                self._calls.clear()
            call = self._calls[request] = self._make(request)
        return call

    def proved_algorithm_for(self, request: Request) -> Algorithm:
        """As `algorithm_for`; one of the user's is proved first, by a call of all ranks.

        Raises:
            ProofError: it does not hold.
            ValueError: as `algorithm_for`.
        """
        algo = self.chooser_for(request).algorithm_for(request)
        if isinstance(request.algorithm, Algorithm):
            self._digests[algo] = self._prove(algo, request.root)
        return algo

    def _make(self, request: Request) -> _native.Call:
        reduction = None
        if spec_named(request.collective).reduces:
            reduction = dtypes.reduction(request.dtype, request.op)
        algo = self.proved_algorithm_for(request)
        instead = self.instead_of(request, algo)
        call = self._bound(request, algo, reduction, self.text_of(request, algo, instead))
        if instead is not None:
            around_root = instead.spec.rooted and not instead.spec.reduces
            root = request.root if around_root else None
            reached = self._bound(request, instead, reduction, call.text)
            call.set_reached(reached, root, instead.spec.rooted)
        return call

    def _bound(
        self,
        request: Request,
        algo: Algorithm,
        reduction: tuple[int, int, bool] | None,
        text: str,
    ) -> _native.Call:
        plan = _native_plan(algo, self._rank, self._size, request.root, self._hosts)
        # What is only moved is moved as bytes, so that any element fits any slot.
        unit = 1 if reduction is None else request.itemsize
        scale = request.itemsize // unit
        lengths = [length * scale for length in self.lengths_of(request, algo)]
        return _native.Call(
            plan,
            lengths,
            unit,
            reduction,
            self._room.slot_bytes,
            text,
            self._room.in_flight,
            self._cache_bytes,
        )

    def instead_of(self, request: Request, algo: Algorithm) -> Algorithm | None:
        """What may run instead of `algo`, on arrays that lie anywhere, by copies of the kernel's.

        Depends only on what ranks agree on. Nothing for what a user names; nor where values would
        be folded in another order, and so have other bits: what runs is what is quicker.
        """
        least, later = self._least_reaching, _LATER_REACHING.get(request.collective, 1)
        may = (
            least is not None
            and request.collective in REACHING
            and request.algorithm is None
            and not algo.one_sided
            and request.counts is None
            and 1 < self._size <= (2 if spec_named(request.collective).reduces else _MOST_REACHING)
            and self.chooser.nbytes(request) >= max(1, least * later)
        )
        return REACHING[request.collective] if may else None

    def agreement(self, text: str) -> _native.Call:
        """A call that moves nothing and ends when every rank has come to it with this `text`.

        Each rank tells each other: one that has told them need not stay.
        """
        plan = _native_plan(direct_barrier, self._rank, self._size, 0, self._hosts)
        return _native.Call(
            plan, (0,), 1, None, self._room.slot_bytes, text, self._room.in_flight,
            self._cache_bytes,
        )  # fmt: skip

    def lengths_of(self, request: Request, algo: Algorithm) -> Sequence[int]:
        """Elements of every chunk; of alltoall's, 0 for those this rank never touches."""
        size = self._size
        if algo.spec.chunking == "empty":
            return (0,)
        if algo.spec.chunking == "open":
            return split_evenly(request.count, algo.chunk_count(size))
        if request.counts is None:
            return (request.count,) * algo.chunk_count(size)
        if algo.spec.chunking == "ranks":
            return request.counts
        lengths = [0] * (size * size)
        lengths[self._rank * size : (self._rank + 1) * size] = request.counts[:size]
        lengths[self._rank :: size] = request.counts[size:]
        return lengths

    def _name(self, algo: Algorithm) -> str:
        """Names are unique in the catalogue only; a user's algorithm is known by what it does."""
        digest = self._digests.get(algo)
        return _short(algo.name) + (f"#{digest}" if digest else "")

    def text_of(self, request: Request, algo: Algorithm, instead: Algorithm | None = None) -> str:
        """What all ranks must agree on, as people read it in errors."""
        if algo.collective == "barrier":
            return f"barrier by {self._name(algo)}"  # never a part of another call
        words = [request.collective, _short(request.dtype)]
        if request.counts is None:
            words[1] += f"[{request.count}]"
        elif algo.collective != "alltoall":  # whose counts differ from rank to rank
            listed = ",".join(map(str, request.counts))
            if len(listed) > _LONGEST_COUNTS:
                listed = f"{len(request.counts)} counts #{_digest(listed)}"
            words[1] += f"[{listed}]"
        if request.op is not None:
            words.append(request.op)
        if algo.spec.rooted:
            words.append(f"root {request.root}")
        words.append(f"by {self._name(algo)}")
        if instead is not None:
            words.append(f"or {instead.name}")
        if request.whole:
            words.append(f"of {_short(request.whole)}")
        if request.deterministic:
            words.append("in rank order")
        if request.part_of:
            words.insert(0, f"{request.part_of}:")
        return " ".join(words)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _short(dtype: str) -> str:
    return dtype if len(dtype) <= 24 else f"{dtype[:15]}#{_digest(dtype)}"


@lru_cache(maxsize=512)
def _native_plan(
    algo: Algorithm, rank: int, size: int, root: int, hosts: tuple[int, ...]
) -> _native.Plan:
    plan = lower(algo, rank, size, root, hosts)
    return _native.Plan(
        plan.rank,
        plan.size,
        plan.chunk_count,
        plan.inputs,
        plan.outputs,
        plan.scratch,
        plan.widest,
        [
            (i.chunks, i.sources, i.targets, i.reads, i.writes, i.own_at, i.peeks, i.pokes)
            for i in plan.instructions
        ],
        plan.peer_inputs,
        plan.peer_outputs,
        plan.remote,
        plan.delays,
        plan.in_flight,
    )


# Not left to the interpreter's end, when the module whose objects these are may be gone already.
atexit.register(_native_plan.cache_clear)
