"""The conformance suite: one program that every rank runs, over whatever transport connects them.

Every collective × every algorithm × types × counts, against the definition.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from harness.references import contribution, expected

from collectives.catalogue import CATALOGUE
from collectives.specs import SPECS

DTYPES = (
    "float32", "float64", "float16", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip
OPS_OF = {
    "f": ("sum", "prod", "min", "max", "avg"),
    "i": ("sum", "prod", "min", "max", "band", "bor", "bxor", "land", "lor", "lxor"),
    "u": ("sum", "prod", "min", "max", "band", "bor", "bxor", "land", "lor", "lxor"),
    "b": ("sum", "prod", "min", "max", "band", "bor", "bxor", "land", "lor", "lxor"),
}
TAKES_A_MATRIX = ("reduce_scatter", "scatter", "alltoall")


def cases(size: int, counts: tuple[int, ...], full: bool) -> list[tuple[Any, ...]]:
    """(collective, algorithm, dtype, count, op, root), in an order every rank agrees on."""
    found = []
    for collective, name in sorted(CATALOGUE):
        spec = SPECS[collective]
        if collective == "barrier" or not CATALOGUE[collective, name].allows(size):
            continue
        roots = range(size) if spec.rooted else (0,)
        for number, count in enumerate(counts):
            for root in roots if full or number == 0 else [number % len(roots)]:
                found.append((collective, name, "float32", count, "sum", root))
        for number, dtype in enumerate(DTYPES):
            ops = OPS_OF[np.dtype(dtype).kind] if spec.reduces else ("sum",)
            if not full and name != "ring":
                ops = ops[number % len(ops) :][:1]
            for op in ops:
                found.append((collective, name, dtype, counts[-2], op, number % len(roots)))
    return found


def run_case(comm: Any, case: tuple[Any, ...]) -> str | None:
    """One case on this rank; what is wrong, or None."""
    collective, name, dtype, count, op, root = case
    size = comm.size
    if collective in TAKES_A_MATRIX:
        inputs = [contribution(r, count * size, dtype, op).reshape(size, count) for r in range(size)]
    else:
        inputs = [contribution(r, count, dtype, op) for r in range(size)]
    keywords: dict[str, Any] = {"algorithm": name}
    if SPECS[collective].reduces:
        keywords["op"] = op
    if SPECS[collective].rooted:
        keywords["root"] = root
    mine: Any = inputs[comm.rank]
    kept = mine.copy()
    if collective == "scatter" and comm.rank != root:
        mine = None
    found = getattr(comm, collective)(mine, **keywords)
    wanted = expected(collective, inputs, comm.rank, root, op)
    if mine is not None and not np.array_equal(mine, kept):
        return f"rank {comm.rank}: the input was changed"
    if wanted is None or found is None:
        return None if found is wanted else f"rank {comm.rank}: expected {wanted}, found {found}"
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return (
            f"rank {comm.rank}: expected {wanted.dtype}{wanted.shape}, "
            f"found {found.dtype}{found.shape}"
        )
    if found.tobytes() != wanted.tobytes():
        where = np.flatnonzero(found.ravel() != wanted.ravel())
        return f"rank {comm.rank}: {where.size} of {wanted.size} wrong, first at {where[:1]}"
    return None


def sweep(comm: Any, counts: tuple[int, ...], full: bool) -> tuple[list[str], dict[str, Any]]:
    """All cases on this rank: what failed, and how often each algorithm passed and failed."""
    failures = []
    tally: Counter[tuple[str, str, bool]] = Counter()
    for case in cases(comm.size, counts, full):
        problem = run_case(comm, case)
        tally[case[0], case[1], problem is None] += 1
        if problem:
            failures.append(f"{case}: {problem}")
    for name in sorted(name for collective, name in CATALOGUE if collective == "barrier"):
        comm.barrier(algorithm=name)
        tally["barrier", name, True] += 1
    return failures, {f"{c} {a} {ok}": n for (c, a, ok), n in tally.items()}
