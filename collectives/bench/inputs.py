"""Inputs whose sums are exact in any order, and how many elements of a result are wrong.

Floating-point sums depend on the order of addition, so a check of arbitrary inputs needs a
tolerance, within which errors hide. Here elements are whole numbers so small that every partial sum
is exact in the element type, whatever the order: a result is right if and only if it is equal, bit
for bit. (nccl-tests has the same idea in its `verifiable` folder.)

Elements repeat with a period that is a prime, so that no chunk looks like another, and what is
expected need be computed for one period only. Every rank computes it for itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any

import numpy as np

from collectives.bench.cases import REDUCING, Case

Table = np.ndarray[Any, np.dtype[Any]]

PERIOD = 8191
_ROWS = 256  # of a period each: compared at once, so that a comparison needs little memory

_EXACT = {"float16": 1 << 11, "bfloat16": 1 << 8, "float32": 1 << 24, "float64": 1 << 53}
"""Up to where a type holds every whole number."""

_LARGEST = 100  # fits in int8


def storage(dtype: str) -> np.dtype[Any]:
    """The numpy type that holds the elements; numpy has no bfloat16, whose bits lie in uint16."""
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)


def fill_input(x: Table, case: Case, rank: int, size: int) -> None:
    """Writes what `rank` contributes."""
    _write(x, _own_table(case, rank, size), 0)


def fill_poison(out: Table) -> None:
    """Writes what no result contains in every place, so that an element left out shows."""
    out.view(np.uint8).fill(0xA5)


def wrong_elements(out: Table, case: Case, rank: int, size: int) -> int:
    """How many elements of the result on `rank` are not what they must be."""
    part = case.part(size)
    first = rank * part
    name, root = case.collective, case.root
    if name in REDUCING:
        table = _combined_table(case, size)
        start = first if name == "reduce_scatter" else 0
        return _differing(out, table, start)
    if name in ("allgather", "gather"):
        parts = [(_own_table(case, source, size), 0) for source in range(size)]
    elif name == "alltoall":
        parts = [(_own_table(case, source, size), first) for source in range(size)]
    elif name == "scatter":
        parts = [(_own_table(case, root, size), first)]
    elif name in ("pingpong", "stream"):
        parts = [(_own_table(case, 1 - rank, size), 0)] if rank < 2 and out.size else []
    else:
        parts = [(_own_table(case, root, size), 0)]
    if out.size == 0:
        return 0
    return sum(
        _differing(out[number * part : (number + 1) * part], table, start)
        for number, (table, start) in enumerate(parts)
    )


def _own_table(case: Case, rank: int, size: int) -> Table:
    """One period of what `rank` contributes, in storage form."""
    return _stored(_numbers(case, rank, size), case.dtype)


def _combined_table(case: Case, size: int) -> Table:
    """One period of the result of a reduction."""
    all_numbers = [_numbers(case, rank, size) for rank in range(size)]
    if case.op == "avg":
        return _stored(reduce(np.add, all_numbers) / size, case.dtype)
    combine = {
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
    }[case.op]
    return _stored(reduce(combine, all_numbers), case.dtype)


def _numbers(case: Case, rank: int, size: int) -> Table:
    """One period of whole numbers: float64 for the floating types, else the type itself."""
    dtype, op = case.dtype, case.op
    if dtype == "bool":
        return (_hashed(rank) & 1).astype(bool)
    floating = dtype in _EXACT
    exact = _EXACT.get(dtype, _LARGEST * size)
    largest = min(_LARGEST, exact // size)
    if op in ("sum", "avg") and largest < 1:
        raise ValueError(f"{dtype} holds no sums of {size} ranks exactly; expected {exact} at most")
    signed = floating or dtype.startswith("int")
    if op == "prod":
        # One rank in turn has a two, the others ones: the product is two in every place.
        numbers = np.where(np.arange(PERIOD) % size == rank, 2, 1)
        numbers = np.where((_hashed(rank) & 1) & signed, -numbers, numbers)
    elif op == "avg":
        # Equal everywhere but for what neighbours add and take away, so that n divides the sum.
        numbers = _bounded(_hashed(0), max(0, largest - 1), signed)
        partner = rank ^ 1
        numbers = numbers + (0 if partner >= size else 1 if rank % 2 == 0 else -1)
    else:
        numbers = _bounded(_hashed(rank), max(1, largest), signed)
    return numbers.astype(np.float64 if floating else np.dtype(dtype))


def _hashed(rank: int) -> Table:
    """Pseudo-random bits for every place of a period."""
    bits = (np.arange(1, PERIOD + 1, dtype=np.uint64) << np.uint64(20)) + np.uint64(rank * 7919 + 1)
    for multiplier in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(multiplier)
    return (bits >> np.uint64(33)).astype(np.int64)


def _bounded(bits: Table, largest: int, signed: bool) -> Table:
    return bits % (2 * largest + 1) - largest if signed else bits % (largest + 1)


def _stored(numbers: Table, dtype: str) -> Table:
    if dtype == "bfloat16":  # whole numbers below 257 end well before the upper half of a float32
        return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return numbers.astype(dtype)


def _write(x: Table, table: Table, start: int) -> None:
    for place, expected in _periods(x, table, start):
        place[...] = expected


def _differing(out: Table, table: Table, start: int) -> int:
    return sum(
        int(np.count_nonzero(place != expected)) for place, expected in _periods(out, table, start)
    )


def _periods(x: Table, table: Table, start: int) -> Iterator[tuple[Table, Table]]:
    """Stretches of `x`, each with what belongs there if `x` begins at place `start`."""
    rolled = np.roll(table, -(start % PERIOD))
    whole = x.size // PERIOD
    rows = x[: whole * PERIOD].reshape(whole, PERIOD)
    for row in range(0, whole, _ROWS):
        yield rows[row : row + _ROWS], rolled
    rest = x[whole * PERIOD :]
    yield rest, rolled[: rest.size]
