"""The machine's own limit as a library: what no implementation can beat on the same cores.

A call tells the other ranks by a flag that this one has come, waits for theirs, and then moves what
the collective must move at least, every rank its share, all at once:

    copy     memcpy of as many bytes between two private arrays
    kernel   the collective itself by one pass over memory that all ranks map: each element is read
             once from every contribution and written once to every result
    stream   the same with stores that bypass the caches

All three have the working set of what is compared. A reduction that ends on one rank reads more
than it writes, which a copy cannot imitate. Small calls cost the flags alone.
"""

from __future__ import annotations

import mmap
import os
import time
from typing import Any

import numpy as np

from collectives.bench.cases import POINT_TO_POINT, Case, NotCarried
from collectives.bench.streams import messages_of
from collectives.bench.tasks import LINE, aligned_memory, most_calls, rotation
from transports import _native

METHODS = ("copy", "stream", "kernel")
SHARED_BYTES = 1 << 40
"""Length of the memory file that the ranks share; what nobody has written takes no memory."""

_FLAG_BYTES = 1 << 16  # at the file's begin
_PAGE = 1 << 16
_WAIT = 60.0

Move = tuple[list[int], list[int], int]


class Limit:
    """One rank's part in finding the limit."""

    def __init__(self, rank: int, size: int, descriptor: int) -> None:
        self.rank = rank
        self.size = size
        self._descriptor = descriptor
        self._flags = Mapped(descriptor, 0, _FLAG_BYTES)
        self._next = _FLAG_BYTES
        self._number = 0

    def describe(self) -> dict[str, str]:
        """What was tried."""
        return {"library": "limit of this machine", "methods": ", ".join(METHODS)}

    def task(self, case: Case, variant: str, cache_bytes: int) -> LimitTask:
        """A case made ready for one of the methods."""
        return LimitTask(self, case, variant, cache_bytes)

    def share(self, nbytes: int) -> Mapped:
        """Memory that all ranks map, which ask for the same in the same order."""
        begin, self._next = self._next, self._next + -(-nbytes // _PAGE) * _PAGE
        return Mapped(self._descriptor, begin, self._next - begin)

    def call(
        self, method: str, case: Case, moves: list[Move], rotation: tuple[int, int], calls: int
    ) -> None:
        """Makes so many calls."""
        self._number = _native.limit_calls(
            method, case.collective == "pingpong", moves, *rotation, self._flags.address,
            self.rank, self.size, self._number, calls, _WAIT,
        )  # fmt: skip


class Mapped:
    """A piece of the shared file, mapped here."""

    def __init__(self, descriptor: int, begin: int, nbytes: int) -> None:
        self.map = mmap.mmap(descriptor, nbytes, offset=begin)
        self.bytes = np.frombuffer(self.map, np.uint8)
        self.address = self.bytes.ctypes.data

    def free(self) -> None:
        """Gives the memory back to the system, on whichever rank comes first."""
        self.map.madvise(mmap.MADV_REMOVE)


class LimitTask:
    """A case made ready for one method."""

    def __init__(self, limit: Limit, case: Case, method: str, cache_bytes: int) -> None:
        self._limit, self._case, self._method = limit, case, method
        self._rotation = rotation(case, cache_bytes)
        sets, stride = self._rotation
        self.most_calls = most_calls(case, cache_bytes)
        # A call of a stream is many messages; a ping-pong's two are one call here too.
        self._messages = round(messages_of("stream")) if case.collective == "stream" else 1
        block = sets * stride
        arrays = 1 if case.place == "in" else 2
        self._shared: Mapped | None = None
        if method == "copy":
            self._private = [aligned_memory(block) for _ in range(2)]
            for each in self._private:
                each.fill(1)
            bases = [each.ctypes.data for each in self._private]
            self._moves = copied(case, limit.rank, limit.size, bases[0], bases[1])
        else:
            self._shared = limit.share(block * arrays * limit.size)
            own = limit.rank * block * arrays
            self._shared.bytes[own : own + block * arrays] = 1  # lies near whoever writes first
            inputs = [self._shared.address + rank * block * arrays for rank in range(limit.size)]
            results = [base + block * (arrays - 1) for base in inputs]
            self._moves = least_moves(case, limit.rank, limit.size, inputs, results)
        self._sweep = np.zeros(2 * cache_bytes, np.uint8) if case.cold else None

    def seconds(self, calls: int) -> float:
        """Times so many calls in a row, begun by all ranks together."""
        limit, way = self._limit, (self._method, self._case, self._moves, self._rotation)
        limit.call(*way, 1)
        if self._sweep is not None:
            self._sweep += 1
        limit.call("copy", self._case, [], (1, LINE), 1)
        begin = time.perf_counter()
        limit.call(*way, calls * self._messages)
        return time.perf_counter() - begin

    def check(self, plant: int = 0) -> dict[str, Any]:
        """As a task's."""
        return {"wrong": self.wrong(plant)}

    def wrong(self, plant: int = 0) -> int:
        """Nothing: a limit has no result."""
        return 0

    def expected(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def __del__(self) -> None:
        if getattr(self, "_shared", None) is not None and self._shared is not None:
            self._shared.free()


def copied(case: Case, rank: int, size: int, source: int, destination: int) -> list[Move]:
    """What a copy moves on `rank` so that all ranks together move the least bytes.

    Raises:
        NotCarried: no copy reads and writes in this collective's proportion.
    """
    name, nbytes = case.collective, case.nbytes
    if name in ("reduce", "reduce_scatter") and size > 1:
        raise NotCarried(f"{name} reads more than it writes")
    if name == "barrier" or (name in POINT_TO_POINT and rank > 1):
        return []
    shared = size if name in ("scatter", "gather") else 2 if name == "stream" else 1
    return [([source], [destination], nbytes // min(shared, size))]


def least_moves(
    case: Case, rank: int, size: int, inputs: list[int], results: list[int]
) -> list[Move]:
    """What `rank` moves in the collective's least traffic, all ranks having equal shares.

    Args:
        case: which.
        rank: this rank.
        size: number of ranks.
        inputs: the address of every rank's input.
        results: the address of every rank's result.
    """
    name, root, nbytes = case.collective, case.root, case.nbytes
    share = nbytes // size
    at = rank * share
    everyone = range(size)
    if name == "allreduce":
        return [([inputs[q] + at for q in everyone], [results[q] + at for q in everyone], share)]
    if name == "reduce":
        return [([inputs[q] + at for q in everyone], [results[root] + at], share)]
    if name == "reduce_scatter":
        return [([inputs[q] + at for q in everyone], [results[rank]], share)]
    if name == "broadcast":
        targets = [q for q in everyone if case.place == "out" or q != root]
        return [([inputs[root] + at], [results[q] + at for q in targets], share)]
    if name == "allgather":
        return [([inputs[rank]], [results[q] + at for q in everyone], share)]
    if name == "alltoall":
        return [([inputs[q] + at], [results[rank] + q * share], share) for q in everyone]
    if name == "scatter":
        return [([inputs[root] + at], [results[rank]], share)]
    if name == "gather":
        return [([inputs[rank]], [results[root] + at], share)]
    if name == "pingpong" and rank < 2:
        return [([inputs[1 - rank]], [results[rank]], nbytes)]
    if name == "stream" and rank < 2:
        half = nbytes // 2
        return [([inputs[0] + rank * half], [results[1] + rank * half], half)]
    return []


def connect(options: dict[str, Any]) -> Limit:
    """Takes part with the memory file that the benchmark handed down."""
    return Limit(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), options["shared"])
