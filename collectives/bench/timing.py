"""How long a call takes that all ranks make together: the slowest rank's time, round by round.

A collective has ended when its last rank has, so the time of a round is the greatest over the
ranks. A round is many calls between two readings of the clock, begun together after a barrier; a
run is several rounds, of which the best says what the machine can do and the others how much it
was disturbed.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

LEAST_SECONDS = 0.02
"""How long a round lasts at least: a thousand times the clock's and the barrier's noise."""

MOST_CALLS = 100_000
_FASTEST_GROWTH = 10


class Group(Protocol):
    """What of a communicator is needed here."""

    def barrier(self) -> Any:
        """Return once every rank has come here."""

    def allreduce(self, x: np.ndarray[Any, Any], *, op: str) -> Any:
        """Combine `x` of all ranks."""


@dataclass(frozen=True)
class Timing:
    """The rounds of one measurement.

    Attributes:
        rounds: seconds a call took, by round, in the order they were run.
        calls: calls in a round.
    """

    rounds: tuple[float, ...]
    calls: int

    @property
    def best(self) -> float:
        """Seconds a call took in the quickest round."""
        return min(self.rounds)

    @property
    def median(self) -> float:
        """Seconds a call took in the middle round."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """By how much the slowest round was slower than the best: 0.1 is a tenth."""
        return max(self.rounds) / self.best - 1 if self.best > 0 else 0.0


def measure(
    comm: Group,
    operation: Callable[[], object],
    *,
    rounds: int = 5,
    least_seconds: float = LEAST_SECONDS,
    calls: int | None = None,
) -> Timing:
    """Times `operation`, which every rank of `comm` calls equally often; a collective call itself.

    Every rank gets the same Timing. The first calls, which find out how many make a round, warm up
    and are not counted.

    Args:
        comm: the ranks.
        operation: what is timed; its arrays are prepared before.
        rounds: how many rounds.
        least_seconds: how long a round lasts, at least about.
        calls: calls in a round; by default as many as `least_seconds` hold.

    Raises:
        ValueError: rounds or calls below one, or no time for a round.
    """
    if rounds < 1:
        raise ValueError(f"expected at least one round, found {rounds}")
    if calls is None:
        calls = fitting_calls(lambda many: _slowest(comm, operation, many), least_seconds)
    elif calls < 1:
        raise ValueError(f"expected at least one call in a round, found {calls}")
    else:
        _slowest(comm, operation, 1)
    seconds = [_slowest(comm, operation, calls) / calls for _ in range(rounds)]
    return Timing(rounds=tuple(seconds), calls=calls)


def fitting_calls(
    time_calls: Callable[[int], float], least_seconds: float, most: int = MOST_CALLS
) -> int:
    """How many calls last `least_seconds`: tried with ever more of them.

    Args:
        time_calls: makes so many calls and says how many seconds that took; the same number on
            every rank, so that all ranks try the same and come to the same result.
        least_seconds: how long they are to last.
        most: never more than this.

    Raises:
        ValueError: the time is not positive.
    """
    if not 0 < least_seconds < float("inf"):
        raise ValueError(
            f"expected a positive number of seconds for a round, found {least_seconds}"
        )
    time_calls(1)
    calls = 1
    while (seconds := time_calls(calls)) < least_seconds / 2 and calls < most:
        growth = least_seconds / seconds if seconds > 0 else _FASTEST_GROWTH
        calls = min(most, max(calls + 1, int(calls * min(_FASTEST_GROWTH, growth))))
    return min(most, max(1, round(calls * least_seconds / seconds))) if seconds > 0 else calls


def timed_calls(operation: Callable[[], object], calls: int) -> float:
    """Seconds that so many calls in a row take on this rank."""
    with _collector_paused():
        begin = time.perf_counter()
        for _ in itertools.repeat(None, calls):
            operation()
        return time.perf_counter() - begin


def _slowest(comm: Group, operation: Callable[[], object], calls: int) -> float:
    comm.barrier()
    own = timed_calls(operation, calls)
    return float(comm.allreduce(np.array([own]), op="max")[0])


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No garbage collection falls into a round."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
