"""A task: one case made ready on a rank, so that its calls can be timed and their result checked.

All arrays are made before. *Hot*, every call works on the same ones. *Cold*, no call finds its
arrays in a cache: calls go round so many arrays that together they are twice the last-level cache,
or, where the arrays are short, every call of a round has its own, and the caches are swept before
the round.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from collectives.bench.cases import Case
from collectives.bench.inputs import fill_input, fill_poison, storage, wrong_elements
from collectives.bench.timing import timed_calls

Memory = np.ndarray[Any, np.dtype[Any]]
Operation = Callable[[], object]

LINE = 64
_COLD_SETS = 1024  # at most
_LARGE_PAGES_FROM = 1 << 22  # bytes, as numpy does
_COLD_STRIDE = 4096 + LINE  # at least: no neighbour is fetched along


class Library(Protocol):
    """What is measured: a library that has the collectives, seen from one rank.

    Attributes:
        rank: this rank.
        size: number of ranks.
    """

    rank: int
    size: int

    def describe(self) -> dict[str, str]:
        """Name, version and the settings it runs with."""

    def barrier(self) -> None:
        """Return once every rank has come here."""

    def memory(self, nbytes: int, variant: str) -> Memory:
        """Bytes that the library's arrays can lie in; a collective call."""

    def array(self, memory: Memory, dtype: str, variant: str) -> Any:
        """The library's own array over memory of the storage type, or in memory of its own.

        A collective call.

        Raises:
            NotCarried: the library has no such type.
        """

    def send_in(self, array: Any, memory: Memory) -> None:
        """Copies memory into the array, where that has memory of its own."""

    def fetch(self, array: Any, memory: Memory) -> None:
        """Copies the array into memory, where that has memory of its own."""

    def operation(self, case: Case, variant: str, x: Any, out: Any) -> Operation:
        """The call that is timed.

        Raises:
            NotCarried: the library does not have it.
        """

    def finish(self) -> None:
        """Waits until what was called has really ended, where calls return early."""


class Task:
    """A case made ready on one rank of one library.

    Attributes:
        most_calls: how many calls a round may have; None: any number.
    """

    def __init__(self, library: Library, case: Case, variant: str, cache_bytes: int) -> None:
        """Makes the arrays; a collective call.

        Raises:
            NotCarried: the library does not have this.
            MemoryError: there is not enough memory.
        """
        self._library = library
        self._case = case
        self._variant = variant
        rank, size = library.rank, library.size
        kind = storage(case.dtype)
        counts = case.counts(rank, size)
        lengths = [count * kind.itemsize for count in counts]
        in_place = case.place == "in"
        if in_place:
            lengths = [max(lengths)]
        sets, stride = rotation(case, cache_bytes)
        self.most_calls = most_calls(case, cache_bytes)
        blocks = [library.memory(sets * stride if length else 0, variant) for length in lengths]
        views = [
            [block[i * stride : i * stride + length].view(kind) for i in range(sets)]
            for block, length in zip(blocks, lengths, strict=True)
        ]
        self._inputs = [view[: counts[0]] for view in views[0]]
        self._results = [view[: counts[1]] for view in views[-1]]
        self._pairs: list[tuple[Any, Any]] = []
        for x, out in zip(views[0], views[-1], strict=True):
            array = library.array(x, case.dtype, variant)
            other = array if in_place else library.array(out, case.dtype, variant)
            self._pairs.append((array, other))
        self.refill()
        self._operations = [library.operation(case, variant, x, out) for x, out in self._pairs]
        self._sweep = np.zeros(2 * cache_bytes, np.uint8) if case.cold else None

    def expected(self) -> dict[str, Any]:
        """What the library expects of the case, where it says: the algorithm, the seconds."""
        if not hasattr(self._library, "expected"):
            return {}
        return dict(self._library.expected(self._case, self._variant, self._pairs[0][0]))

    def refill(self) -> None:
        """Gives every input its first contents again."""
        for (array, _), x in zip(self._pairs, self._inputs, strict=True):
            fill_input(x, self._case, self._library.rank, self._library.size)
            self._library.send_in(array, x)

    def wrong(self, plant: int = 0) -> int:
        """Makes a call and counts the elements that it got wrong here.

        Args:
            plant: how many elements of the result to spoil before they are counted: shows that
                the count counts.
        """
        self.refill()
        result, (_, array) = self._results[0], self._pairs[0]
        if self._case.place == "out":
            fill_poison(result)
            self._library.send_in(array, result)
        self._library.barrier()
        self._operations[0]()
        self._library.finish()
        self._library.fetch(array, result)
        spoiled = result.view(np.uint8)[-plant * result.itemsize :] if plant else None
        if spoiled is not None:
            np.invert(spoiled, out=spoiled)
        wrong = wrong_elements(result, self._case, self._library.rank, self._library.size)
        return wrong

    def check(self, plant: int = 0) -> dict[str, Any]:
        """How many elements a call gets `wrong` here, and what `ran`, if not what is expected."""
        reached = getattr(self._library, "reached", int)
        before = reached()
        found: dict[str, Any] = {"wrong": self.wrong(plant)}
        if reached() > before:
            found["ran"] = self._library.instead(self._case.collective)  # type: ignore[attr-defined]
        return found

    def seconds(self, calls: int) -> float:
        """Times so many calls in a row, begun by all ranks together.

        Raises:
            ValueError: more calls than a cold round may have.
        """
        if self.most_calls is not None and calls > self.most_calls:
            raise ValueError(f"expected at most {self.most_calls} cold calls, found {calls}")
        self._operations[-1]()  # its code and its own memory are warm, whoever ran before
        self._library.finish()
        if self._sweep is not None:
            self._sweep += 1
        self._library.barrier()
        if len(self._operations) == 1:
            spent = timed_calls(self._operations[0], calls)
        else:
            spent = _timed_in_turn(self._operations, calls)
        begin = time.perf_counter()
        self._library.finish()
        return spent + time.perf_counter() - begin


def rotation(case: Case, cache_bytes: int) -> tuple[int, int]:
    """How many arrays of each kind there are, and how far apart they begin, in bytes."""
    length = -(-case.nbytes // LINE) * LINE
    if not case.cold:
        return 1, max(length, LINE)
    arrays = 1 if case.place == "in" else 2
    stride = max(length, _COLD_STRIDE)
    return min(_COLD_SETS, max(2, -(-2 * cache_bytes // (arrays * length or LINE)))), stride


def most_calls(case: Case, cache_bytes: int) -> int | None:
    """How many calls a round may have: where arrays do not exceed the caches, one for each."""
    sets, _ = rotation(case, cache_bytes)
    arrays = 1 if case.place == "in" else 2
    return sets if case.cold and sets * arrays * case.nbytes < 2 * cache_bytes else None


def memory_bytes(case: Case, cache_bytes: int) -> int:
    """How much memory a task of this case takes on a rank."""
    sets, stride = rotation(case, cache_bytes)
    arrays = 1 if case.place == "in" else 2
    return arrays * sets * stride + (2 * cache_bytes if case.cold else 0)


def aligned_memory(nbytes: int) -> Memory:
    """Memory of its own, whatever was given back before, so that all contenders' lies alike.

    From an allocator it may lie in what was a longer array's, in large pages: then the one library
    has them by chance and the other has not.
    """
    if nbytes == 0:
        return np.empty(0, np.uint8)
    pages = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if nbytes >= _LARGE_PAGES_FROM:
        with contextlib.suppress(OSError):  # as numpy asks for them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)


def _timed_in_turn(operations: Sequence[Operation], calls: int) -> float:
    return timed_calls((call() for call in itertools.cycle(operations)).__next__, calls)
