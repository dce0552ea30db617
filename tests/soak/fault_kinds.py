"""From a seed to a fault: the program, and what goes wrong in it where and when."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from harness.conformance import OPS_OF

from collectives.catalogue import CATALOGUE
from collectives.specs import SPECS
from soak.drawing import Taste, draw
from soak.operations import Collective, Operation, Program, Split

TASTE = Taste(length=14, torch=False, longest=1 << 18, pending=4, allocations=0.15)
TAIL = replace(TASTE, length=8, messages=0, splits=0, allocations=0, pending=0)
"""Around a call that does not fit: only calls of all ranks."""

ENDS = ("SIGKILL", "SIGSEGV", "os._exit", "leaves early")
CALLS = ("collective", "dtype", "count", "op", "root", "algorithm", "skips one", "does one twice")
KINDS = {
    **dict.fromkeys(ENDS, 4),
    "freezes for a moment": 4,
    "freezes for ever": 2,
    "raises": 8,
    **{f"other {call}" if " " not in call else call: 2 for call in CALLS},
    "bad bytes": 10,
}
"""Kinds, and how often one is drawn."""

MOMENTS = ("before", "in the middle", "after")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong.

    Attributes:
        seed: makes all of it.
        kind: one of KINDS.
        rank: where.
        number: at which operation of the program.
        moment: before, in the middle of or after it.
        delay: seconds into the operation, for "in the middle".
        program: what all ranks run.
        other: what the rank does instead, where it makes another call.
    """

    seed: int
    kind: str
    rank: int
    number: int
    moment: str
    delay: float
    program: Program
    other: Operation | None = None

    @property
    def has_splits(self) -> bool:
        """Whether there are communicators that do not contain every rank."""
        return any(isinstance(each, Split) for each in self.program.operations)


def draw_fault(seed: int, kind: str | None = None) -> Fault:
    """The fault of a seed."""
    dice = np.random.default_rng([seed, 4711])
    names = list(KINDS)
    weights = np.array(list(KINDS.values())) / sum(KINDS.values())
    drawn = str(dice.choice(names, p=weights))
    kind = kind or drawn
    size = int(dice.integers(2, 5))
    program = draw(seed, size, TASTE)
    rank = int(dice.integers(size))
    moment = str(dice.choice(MOMENTS))
    delay = float(10 ** dice.uniform(-5.3, -2.7))
    number = int(dice.integers(len(program.operations) - 1))
    other: Operation | None = None
    if kind.startswith("other ") or kind in CALLS:
        number, other, program = _another_call(kind.removeprefix("other "), program, dice)
        moment = "before"
    return Fault(seed=seed, kind=kind, rank=rank, number=number, moment=moment, delay=delay,
                 program=program, other=other)  # fmt: skip


def _another_call(
    what: str, program: Program, dice: np.random.Generator
) -> tuple[int, Operation | None, Program]:
    """Which operation, what is done instead, and the program with calls that can be told apart."""
    attempt = 0
    while True:
        tail: list[Collective] = []
        for each in draw(program.seed * 1000 + attempt, program.size, TAIL).operations:
            assert isinstance(each, Collective) or not each.comm
            if isinstance(each, Collective) and (
                not tail or tail[-1].collective != each.collective
            ):
                tail.append(each)
        for at in map(int, dice.permutation(len(tail) - 1)):
            changed = _changed(what, tail[at], program.size, dice)
            if changed is not None:
                tail[at], other = changed
                operations: list[Operation] = [*program.operations, *tail]
                number = len(program.operations) + at
                return number, other, replace(program, operations=operations)
        attempt += 1


def _changed(
    what: str, call: Collective, size: int, dice: np.random.Generator
) -> tuple[Collective, Operation | None] | None:
    """A call and one that does not fit it; None if this call has none such."""

    def pick(among: Any) -> Any:
        among = list(among)
        return among[dice.integers(len(among))] if among else None

    if what in ("skips one", "does one twice"):
        return call, call
    spec = SPECS[call.collective]
    if what == "collective":
        others = {"allreduce", "barrier", "allgather"} - {call.collective}
        name = pick(sorted(others))
        return call, Collective(
            collective=name, shape=(5,), op="sum" if name == "allreduce" else None
        )
    if what == "root":
        if not spec.rooted:
            return None
        return call, replace(call, root=(call.root + int(dice.integers(1, size))) % size)
    # From here on a scatter has nothing of it on any rank but the root, which decides.
    if call.collective in ("barrier", "scatter") and what != "algorithm":
        return None
    if what == "algorithm":
        of = {
            algo.name: name
            for (collective, name), algo in CATALOGUE.items()
            if collective == call.collective and not algo.one_sided and algo.allows(size)
        }
        if call.counts is not None and call.collective == "alltoall":
            return None
        one, two = (str(each) for each in dice.permutation(list(of.values()))[:2])
        call = replace(call, deterministic=False, algorithm=one)
        return call, replace(call, algorithm=two)
    call = replace(call, algorithm=None, deterministic=False)
    if what == "op":
        other = pick(op for op in OPS_OF.get(call.dtype, ()) if op != call.op)
        return (call, replace(call, op=other)) if spec.reduces else None
    if what == "dtype":
        usual = "float32" if call.dtype != "float32" else "int64"
        call = replace(call, op="max" if spec.reduces else None)
        return call, replace(call, dtype=usual)
    if call.counts is not None or not call.shape or 0 in call.shape[1:]:
        return None
    return call, replace(call, shape=(call.shape[0] + 1, *call.shape[1:]))
