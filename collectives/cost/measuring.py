"""Measures every algorithm of every collective among the ranks of a communicator.

A time is that of one call among many in a row, on arrays that stay where they are, result included:
the best of all rounds. Rounds of different algorithms alternate, and the whole is gone through
several times, so that a neighbour on the machine slows down all of them or none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from collectives.bench.timing import fitting_calls, measure, timed_calls
from collectives.cost.comparison import able_algorithms
from collectives.schedule import Algorithm
from collectives.specs import SPECS, spec_named

if TYPE_CHECKING:
    from collectives.communicator import Communicator

FIT_SIZES = tuple(1 << power for power in (6, 10, 12, 14, *range(16, 27)))
"""Bytes at which the model is fitted: 64 to 64 Mi, every power of two from 64 Ki on."""

HELD_OUT_SIZES = (
    1 << 11,
    1 << 13,
    1 << 15,
    *(3 << power for power in (15, 17, 19, 20, 21, 22, 23, 24)),
)
"""Bytes in the midst between them, at which its predictions are judged."""

_ITEM_BYTES = 4  # float32


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The time of one call.

    Attributes:
        collective: what was called.
        algorithm: how.
        ranks: by how many ranks.
        nbytes: of the full array (see `Calls`: that with the leading axis, where there is one).
        seconds: of a call, in the best round.
        spread: by how much the worst round was slower: 0.1 is a tenth.
    """

    collective: str
    algorithm: str
    ranks: int
    nbytes: int
    seconds: float
    spread: float = 0.0


def whole_bytes(collective: str, nbytes: int, ranks: int) -> int:
    """The nearest size that float32 arrays of that collective can have, at least one element."""
    spec = spec_named(collective)
    if spec.chunking == "empty":
        return 0
    unit = _ITEM_BYTES * (1 if spec.chunking == "open" else ranks)
    return max(1, round(nbytes / unit)) * unit


Memory = Callable[[tuple[int, ...]], Any]
"""Makes an array of a shape."""


def ordinary(shape: tuple[int, ...]) -> Any:
    """An array in memory of the rank's own."""
    return np.ones(shape, np.float32)


def symmetric_memory(comm: Communicator, nbytes: int) -> tuple[Memory, Memory]:
    """Memory for inputs and results of up to `nbytes` that peers can reach; a collective call."""

    def make() -> Memory:
        flat = comm.empty(nbytes // _ITEM_BYTES, np.float32)
        flat.fill(1)
        return lambda shape: flat[: math.prod(shape)].reshape(shape)

    return make(), make()


def prepared_call(
    comm: Communicator,
    collective: str,
    nbytes: int,
    algorithm: str | Algorithm | None = None,
    memory: tuple[Memory, Memory] = (ordinary, ordinary),
) -> Callable[[], object]:
    """A call of `collective` on arrays made for it.

    Args:
        comm: the ranks.
        collective: what is called.
        nbytes: of the full array (see `whole_bytes`).
        algorithm: how; by default as the table says.
        memory: where its input and its result lie.
    """
    spec = spec_named(collective)
    if spec.chunking == "empty":
        return lambda: comm.barrier(algorithm=algorithm)
    method = getattr(comm, collective)
    count = nbytes // _ITEM_BYTES
    whole = (count,) if spec.chunking == "open" else (comm.size, count // comm.size)
    part = whole[1:]
    is_root = comm.rank == 0
    shapes = {
        "allreduce": (whole, whole),
        "reduce": (whole, whole if is_root else None),
        "broadcast": (whole, whole),
        "reduce_scatter": (whole, part),
        "scatter": (whole if is_root else None, part),
        "gather": (part, whole if is_root else None),
        "allgather": (part, whole),
        "alltoall": (whole, whole),
    }[collective]
    x, out = (
        None if shape is None else make(shape) for shape, make in zip(shapes, memory, strict=True)
    )
    return lambda: method(x, out=out, algorithm=algorithm)


def measure_all(
    comm: Communicator,
    sizes: Sequence[int] = FIT_SIZES + HELD_OUT_SIZES,
    collectives: Iterable[str] = tuple(SPECS),
    *,
    sweeps: int = 5,
    rounds: int = 4,
    least_seconds: float = 0.001,
    tell: Callable[[int], None] = lambda sweep: None,
) -> list[Measurement]:
    """Time every algorithm at every size; a call of all ranks, each of which gets all results.

    Args:
        comm: the ranks.
        sizes: bytes of the full array.
        collectives: which.
        sweeps: how often to go through everything.
        rounds: rounds of an algorithm at a time.
        least_seconds: how long a round lasts at least.
        tell: is told the number of every sweep, from 1 on, that is done.
    """
    largest = max(whole_bytes(name, each, comm.size) for name in SPECS for each in sizes)
    symmetric = symmetric_memory(comm, largest)
    found: dict[tuple[str, str, int], list[float]] = {}
    calls: dict[tuple[str, str, int], int] = {}
    for sweep in range(sweeps):
        for collective in collectives:
            algorithms = able_algorithms(collective, comm.size, one_sided=True)
            for nbytes in sorted({whole_bytes(collective, each, comm.size) for each in sizes}):
                for algo in algorithms:
                    key = (collective, algo.name, nbytes)
                    memory = symmetric if algo.one_sided else (ordinary, ordinary)
                    call = prepared_call(comm, collective, nbytes, algo.name, memory)
                    if key not in calls:
                        calls[key] = _calls_in_a_round(comm, call, least_seconds)
                    timing = measure(comm, call, rounds=rounds, calls=calls[key])
                    found.setdefault(key, []).extend(timing.rounds)
        tell(sweep + 1)
    return [
        Measurement(
            collective=collective, algorithm=name, ranks=comm.size, nbytes=nbytes,
            seconds=min(seconds), spread=max(seconds) / min(seconds) - 1,
        )
        for (collective, name, nbytes), seconds in found.items()
    ]  # fmt: skip


def _calls_in_a_round(comm: Communicator, call: Callable[[], object], seconds: float) -> int:
    def slowest(many: int) -> float:
        comm.barrier()
        own = timed_calls(call, many)
        return float(comm.allreduce(np.array([own]), op="max")[0])

    return fitting_calls(slowest, seconds)
