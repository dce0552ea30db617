"""The conformance suite: one program that every rank runs, over whatever transport connects them.

Every collective × every algorithm × kinds of arrays × types × counts, against the definition.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from collectives.catalogue import CATALOGUE
from collectives.conformance import Cell, Results
from collectives.specs import SPECS
from harness import device_arrays
from harness.references import contribution, expected

MESSAGES = {key: algo for key, algo in CATALOGUE.items() if not algo.one_sided}
"""What runs on any array."""

FLOATS = ("float32", "float64", "float16", "bfloat16")
INTEGERS = (
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip
OPS_OF = {
    **dict.fromkeys(FLOATS, ("sum", "prod", "min", "max", "avg")),
    **dict.fromkeys(
        INTEGERS, ("sum", "prod", "min", "max", "band", "bor", "bxor", "land", "lor", "lxor")
    ),
}
TAKES_A_MATRIX = ("reduce_scatter", "scatter", "alltoall")


class Case(NamedTuple):
    """One call: what every rank does."""

    collective: str
    algorithm: str  # "": what the table chooses
    kind: str  # of array: numpy, torch, or one on devices
    dtype: str
    count: int  # type: ignore[assignment]
    op: str
    root: int


def cases(
    size: int,
    counts: tuple[int, ...],
    kinds: tuple[str, ...],
    full: bool,
    one_sided: bool = True,
) -> list[Case]:
    """All cases, in an order every rank agrees on."""
    found = []
    for collective, name in sorted(CATALOGUE):
        spec, algo = SPECS[collective], CATALOGUE[collective, name]
        if collective == "barrier" or not algo.allows(size) or algo.one_sided > one_sided:
            continue
        roots = range(size) if spec.rooted else (0,)
        for number, count in enumerate(counts):
            for root in roots if full or number == 0 else [number % len(roots)]:
                found.append(Case(collective, name, kinds[0], "float32", count, "sum", root))
        for kind in kinds:
            for number, dtype in enumerate(OPS_OF):
                if dtype == "bfloat16" and kind == "cupy":  # which has no such type
                    continue
                ops = OPS_OF[dtype] if spec.reduces else ("sum",)
                if not full and name != "ring":
                    ops = ops[number % len(ops) :][:1]
                root = number % len(roots)
                found += [Case(collective, name, kind, dtype, counts[-2], op, root) for op in ops]
    return found


def as_kind(kind: str, x: np.ndarray | None) -> Any:
    """The array as the kind that a case is for."""
    if x is None or kind == "numpy":
        return x
    if kind in device_arrays.KINDS:
        return device_arrays.to_device(x, kind)
    import torch

    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def as_symmetric(comm: Any, kind: str, x: np.ndarray) -> Any:
    """The array as the kind that a case is for, in memory that all ranks reach."""
    if kind in device_arrays.KINDS:
        return device_arrays.symmetric(comm, x, kind)
    if kind == "numpy":
        found = comm.empty(x.shape, x.dtype)
    else:
        import torch

        found = comm.empty(x.shape, getattr(torch, x.dtype.name))
    found[...] = as_kind(kind, x)
    return found


def as_numpy(kind: str, x: Any) -> Any:
    """The reverse of `as_kind`; None, and what is of another kind, stays as it is."""
    if kind == "numpy" or x is None or isinstance(x, np.ndarray):
        return x
    if kind in device_arrays.KINDS:
        return device_arrays.to_host(x, kind)
    import torch

    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def run_case(comm: Any, case: Case) -> str | None:
    """One case on this rank; what is wrong, or None."""
    collective, name, kind, dtype_name, count, op, root = case
    size = comm.size
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype_name == "bfloat16" else dtype_name)
    shape = (size, count) if collective in TAKES_A_MATRIX else (count,)
    places = int(np.prod(shape))
    inputs = [contribution(rank, places, dtype, op).reshape(shape) for rank in range(size)]
    keywords: dict[str, Any] = {"algorithm": name or None}
    if SPECS[collective].reduces:
        keywords["op"] = op
    if SPECS[collective].rooted:
        keywords["root"] = root
    mine = None if collective == "scatter" and comm.rank != root else inputs[comm.rank].copy()
    given = as_kind(kind, mine)
    algo = CATALOGUE.get((collective, name))  # MPI's own are in none
    if algo is not None and algo.one_sided:
        given = as_symmetric(comm, kind, mine)
        if collective == "allreduce":  # the one that reaches into the result, too
            keywords["out"] = as_symmetric(comm, kind, np.zeros_like(mine))
    result = getattr(comm, collective)(given, **keywords)
    wanted = expected(collective, inputs, comm.rank, root, op)
    if mine is not None and as_numpy(kind, given).tobytes() != inputs[comm.rank].tobytes():
        return f"rank {comm.rank}: the input was changed"
    if wanted is None or result is None:
        return None if result is wanted else f"rank {comm.rank}: expected {wanted}, found {result}"
    if given is not None and type(result) is not type(given):
        return f"rank {comm.rank}: expected a {kind} array, found {type(result)}"
    found = as_numpy(kind, result)
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return (
            f"rank {comm.rank}: expected {wanted.dtype}{wanted.shape}, "
            f"found {found.dtype}{found.shape}"
        )
    if found.tobytes() != wanted.tobytes():
        where = np.flatnonzero(found.ravel() != wanted.ravel())
        return f"rank {comm.rank}: {where.size} of {wanted.size} wrong, first at {where[:1]}"
    return None


Tally = dict[tuple[str, str], tuple[int, int]]
"""(collective, algorithm) -> cases passed and failed."""


def sweep(
    comm: Any,
    counts: tuple[int, ...],
    kinds: tuple[str, ...],
    full: bool,
    one_sided: bool = True,
) -> tuple[list[str], Tally]:
    """All cases on this rank: what failed, and how often each algorithm passed and failed.

    `one_sided`: whether there is memory that all ranks reach, so that such algorithms run.
    """
    failures = []
    passed: Counter[tuple[str, str]] = Counter()
    failed: Counter[tuple[str, str]] = Counter()
    for case in cases(comm.size, counts, kinds, full, one_sided):
        problem = run_case(comm, case)
        (failed if problem else passed)[case.collective, case.algorithm] += 1
        if problem:
            failures.append(f"{case}: {problem}")
    for name in sorted(name for collective, name in MESSAGES if collective == "barrier"):
        comm.barrier(algorithm=name)
        passed["barrier", name] += 1
    return failures, {cell: (passed[cell], failed[cell]) for cell in passed | failed}


def record(results: Results, transport: str, size: int, tallies: list[Tally]) -> None:
    """Add what the ranks of one sweep found."""
    for tally in tallies:
        for (collective, name), (passed, failed) in tally.items():
            results.record(Cell(transport, collective, name), size, passed=passed, failed=failed)
