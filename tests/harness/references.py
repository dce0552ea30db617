"""What every collective must give, by its definition, in numpy; independent of the code under test.

Inputs are made so that every sum is exact in every type, whatever the order: small whole numbers.
"""

from __future__ import annotations

from functools import reduce as fold
from typing import Any

import numpy as np

UFUNCS = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
    "land": np.logical_and,
    "lor": np.logical_or,
    "lxor": np.logical_xor,
}


def contribution(rank: int, count: int, dtype: Any, op: str = "sum") -> np.ndarray:
    """What `rank` brings: known to every rank, different on each."""
    places = np.arange(count)
    if op == "prod":
        values = 1 + (places + rank) % 2  # at most 2 ** ranks
    elif np.dtype(dtype) == np.bool_:
        values = (places * 7 + rank * 3) % 3 == 0
    else:
        values = (places * 7 + rank * 13) % 5 + 1
    return values.astype(dtype)


def reduced(arrays: list[np.ndarray], op: str) -> np.ndarray:
    """All arrays combined; exact, since the inputs are."""
    if op == "avg":
        wide = fold(np.add, [a.astype(np.float64) for a in arrays]) / len(arrays)
        return wide.astype(arrays[0].dtype)
    with np.errstate(all="ignore"):
        return fold(UFUNCS[op], arrays).astype(arrays[0].dtype)


def expected(collective: str, inputs: list[Any], rank: int, root: int, op: str) -> Any:
    """The result on `rank` when rank r calls with inputs[r]; None where there is none."""
    size = len(inputs)
    if collective == "allreduce":
        return reduced(inputs, op)
    if collective == "reduce":
        return reduced(inputs, op) if rank == root else None
    if collective == "reduce_scatter":
        return reduced(inputs, op)[rank]
    if collective == "broadcast":
        return inputs[root]
    if collective == "scatter":
        return inputs[root][rank]
    if collective == "gather":
        return np.stack(inputs) if rank == root else None
    if collective == "allgather":
        return np.stack(inputs)
    if collective == "alltoall":
        return np.stack([inputs[source][rank] for source in range(size)])
    raise AssertionError(collective)
