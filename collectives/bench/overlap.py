"""How much of an allreduce can hide behind computing: started, computed meanwhile, waited for.

Three things are timed in turn: the allreduce alone, the computing alone (products of matrices small
enough for a core's own cache), and both at once. What is hidden is what both at once take less than
one after the other, as a part of the shorter of them: all of it where there is a core, or hardware,
that communicates by itself; nothing where calls progress only while somebody waits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from collectives.bench.cases import Case, NotCarried
from collectives.bench.tasks import Operation, Task
from collectives.bench.timing import timed_calls

OVERLAP = "overlap"
PARTS = ("alone", "compute", "both")

_SIDE = 64  # three matrices of float32 take 48 KiB


class OverlapTask(Task):
    """An asynchronous allreduce made ready, and work to do meanwhile."""

    def __init__(self, library: Any, case: Case, variant: str, cache_bytes: int) -> None:
        """Makes the arrays; a collective call.

        Raises:
            NotCarried: the library has no asynchronous allreduce.
        """
        super().__init__(library, replace(case, collective="allreduce"), variant, cache_bytes)
        if not hasattr(library, "begin"):
            raise NotCarried("there is no asynchronous allreduce")
        x, out = self._pairs[0]
        self._begin: Operation = library.begin(self._case, variant, x, out)
        generator = np.random.default_rng(1)
        self._left, self._right = generator.random((2, _SIDE, _SIDE), dtype=np.float32)
        self._product = np.empty((_SIDE, _SIDE), np.float32)

    def part_seconds(self, calls: int, part: str, units: int) -> float:
        """Times so many calls of one of the three parts.

        Args:
            calls: how many.
            part: alone, compute or both.
            units: products of matrices a call computes.
        """

        def alone() -> None:
            self._begin().wait()  # type: ignore[attr-defined]

        def compute() -> None:
            for _ in range(units):
                np.dot(self._left, self._right, out=self._product)

        def both() -> None:
            work: Any = self._begin()
            compute()
            work.wait()

        operation = {"alone": alone, "compute": compute, "both": both}[part]
        operation()
        self._library.barrier()
        return timed_calls(operation, calls)


def hidden_part(alone: float, compute: float, both: float) -> float:
    """How much of the shorter one was hidden behind the longer: 0..1."""
    shorter = min(alone, compute)
    if shorter <= 0:
        return 0.0
    return min(1.0, max(0.0, (alone + compute - both) / shorter))
