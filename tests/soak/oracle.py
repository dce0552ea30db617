"""What a rank brings to an operation, and what it must get: by the definition, in numpy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from harness.references import expected, reduced

from soak.operations import Collective

FLOATS = ("float32", "float64", "float16", "bfloat16")
A_PART_A_RANK = ("reduce_scatter", "scatter", "alltoall")
"""What takes a part for every rank."""


def dtype_named(name: str) -> np.dtype[Any]:
    """The numpy type of that name, bfloat16 too."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def shape_on(call: Collective, rank: int, size: int) -> tuple[int, ...]:
    """The shape of x on a rank."""
    if call.counts is None:
        return (size, *call.shape) if call.collective in A_PART_A_RANK else call.shape
    if call.collective == "alltoall":
        return (sum(call.counts[rank]), *call.shape)
    if call.collective in A_PART_A_RANK:
        return (sum(call.counts), *call.shape)
    return (call.counts[rank], *call.shape)


def brought(call: Collective, seed: list[int], rank: int, size: int) -> np.ndarray:
    """The x of a rank, another for each operation: results are exact in any order of additions.

    Only where the order is part of the definition (deterministic sums) is rounding wanted.
    """
    shape = shape_on(call, rank, size)
    dice = np.random.default_rng([*seed, rank])
    dtype = dtype_named(call.dtype)
    if call.op is None or (dtype.kind in "iu" and call.op not in ("land", "lor", "lxor")):
        return random_bits(dice, shape, dtype)
    if dtype.kind in "iub":
        return dice.integers(0, 3, shape).astype(dtype)
    if call.op == "sum" and call.deterministic:
        scales = 2.0 ** dice.integers(-9, 10, shape)
        return np.asarray(dice.standard_normal(shape) * scales).astype(dtype)
    if call.op == "prod":  # 3 ** 4 is exact in bfloat16
        return dice.choice(np.array([1, 2, 3, -1, -2]), shape).astype(dtype)
    return dice.integers(-60, 60, shape).astype(dtype)  # and so is 4 * 60


def random_bits(dice: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of any bits, NaNs too."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    if dtype == np.bool_:
        return dice.integers(0, 2, shape).astype(dtype)
    return np.frombuffer(bytearray(dice.bytes(count * dtype.itemsize)), dtype).reshape(shape)


def wanted(call: Collective, inputs: list[np.ndarray], rank: int) -> np.ndarray | None:
    """The result on a rank of the communicator."""
    if call.deterministic and call.op == "sum" and call.dtype in FLOATS:
        inputs = [_in_rank_order(inputs)]
        # What is left is to hand the sum out.
        if call.collective == "reduce":
            return inputs[0] if rank == call.root else None
        if call.counts is None:
            return inputs[0][rank] if call.collective == "reduce_scatter" else inputs[0]
    if call.counts is None:
        return expected(call.collective, inputs, rank, call.root, call.op or "")
    if call.collective == "alltoall":
        return np.concatenate(
            [_part(x, call.counts[source], rank) for source, x in enumerate(inputs)]
        )
    if call.collective == "reduce_scatter":
        return _part(reduced(inputs, call.op or ""), call.counts, rank)
    if call.collective == "scatter":
        return _part(inputs[call.root], call.counts, rank)
    if call.collective == "gather" and rank != call.root:
        return None
    return np.concatenate(inputs)


def _part(x: np.ndarray, counts: tuple[int, ...], rank: int) -> np.ndarray:
    begin = sum(counts[:rank])
    return x[begin : begin + counts[rank]]


def _in_rank_order(inputs: list[np.ndarray]) -> np.ndarray:
    """((x0 + x1) + x2) + ..., 16-bit floats in float32 with one rounding."""
    dtype = inputs[0].dtype
    total = inputs[0].astype(np.float32 if dtype.itemsize == 2 else dtype)
    for x in inputs[1:]:
        total = total + x.astype(total.dtype)
    return np.asarray(total).astype(dtype)
