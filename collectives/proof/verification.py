"""Verify an algorithm: run it symbolically and hold the result against the spec."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from collectives.proof.driver import Driver
from collectives.proof.expressions import Expression, Expressions
from collectives.proof.failure import ProofError
from collectives.proof.machine import Machine
from collectives.proof.one_sided import OneSidedMachine
from collectives.schedule import Algorithm
from collectives.steps import (
    WORDS,
    Notify,
    Read,
    ReadReduce,
    Recv,
    RecvReduce,
    Send,
    Step,
    Write,
)


@dataclass(frozen=True)
class Certificate:
    """What was proved of an algorithm.

    Attributes:
        collective: what it achieves.
        algorithm: its name.
        size: number of ranks.
        roots: the roots for which it was proved; (0,) where there is none.
        messages: messages sent by the busiest rank; every peer notified counts as one.
        chunks_sent: chunks sent by the busiest rank, or read from and written to peers; a chunk
            to two peers counts twice.
        widest: chunks in the longest message.
        rank_order: whether every sum is ((x0 + x1) + x2) + ..., which `deterministic` needs.
    """

    collective: str
    algorithm: str
    size: int
    roots: tuple[int, ...]
    messages: int
    chunks_sent: int
    widest: int
    rank_order: bool


def verify(
    algo: Algorithm,
    size: int,
    root: int | None = None,
    hosts: Sequence[int] | None = None,
) -> Certificate:
    """Prove that `algo` achieves its collective at `size` ranks.

    Args:
        algo: what `@algorithm` made.
        size: number of ranks.
        root: prove for this root only; None is every root of a rooted collective.
        hosts: `hosts[r]` is the index of rank r's host; None is one host.

    Raises:
        ProofError: it does not; the text names rank, step, chunk, expected and found.
        ValueError: the algorithm is not written for this size, or yields what is no step.
        TypeError: `algo` is no algorithm, a name, say.
    """
    if not isinstance(algo, Algorithm):
        raise TypeError(f"expected what @algorithm made, found {algo!r}")
    if not algo.allows(size):
        raise ValueError(f"{algo.collective} {algo.name} is not written for size {size}")
    if root is not None:
        roots: tuple[int, ...] = (root,)
    else:
        roots = tuple(range(size)) if algo.spec.rooted else (0,)
    messages = chunks_sent = widest = 0
    rank_order = True
    for each in roots:
        schedules = [algo.schedule(rank, size, each, hosts) for rank in range(size)]
        rank_order &= verify_schedules(algo, schedules, each)
        for steps in schedules:
            counts = [_traffic(step) for step in steps]
            messages = max(messages, sum(peers for peers, _ in counts))
            chunks_sent = max(chunks_sent, sum(chunks for _, chunks in counts))
            width = max((len(step.chunks) for step in steps if isinstance(step, Send)), default=1)
            declared = algo.widest_message(size, each, hosts)
            if width > declared:
                raise ProofError(
                    f"{_title(algo, size, each)}: a message is wider than declared",
                    rank=schedules.index(steps),
                    expected=f"at most {declared} chunks",
                    found=f"{width} chunks",
                )
            widest = max(widest, width)
    return Certificate(
        algo.collective, algo.name, size, roots, messages, chunks_sent, widest, rank_order
    )


def _traffic(step: Step) -> tuple[int, int]:
    """Messages sent, and chunks sent or moved from and to peers' memory."""
    if isinstance(step, Send):
        return len(step.peers), len(step.peers) * len(step.chunks)
    if isinstance(step, Notify):
        return len(step.peers), 0
    if isinstance(step, Read):
        return 0, len(step.chunks)
    if isinstance(step, ReadReduce | Write):
        return 0, len(step.peers) * len(step.chunks)
    return 0, 0


def verify_schedules(algo: Algorithm, schedules: Sequence[Sequence[Step]], root: int = 0) -> bool:
    """Prove given schedules, one a rank; whether all their sums are in rank order.

    Raises:
        ProofError: as `verify`.
    """
    spec, size = algo.spec, len(schedules)
    count = algo.chunk_count(size)
    title = _title(algo, size, root)
    machine: Driver
    if algo.one_sided:
        machine = run_one_sided(algo, schedules, root)
    else:
        machine = Machine(spec, title, schedules)
        _run(machine, algo, schedules, root)
    if spec.chunking == "empty":
        _everyone_heard(title, machine, size)
        return True
    rank_order = True
    agreed: dict[int, tuple[int, Expression]] = {}
    for rank in range(size):
        for chunk in spec.outputs(rank, size, root, count):
            value = machine.values(rank).get(chunk)
            if chunk in agreed and value == agreed[chunk][1]:
                continue  # looked at on another rank
            wanted = Counter({(r, chunk): 1 for r in spec.contributors(chunk, size, root)})
            _complete(title, machine.expressions, rank, chunk, value, wanted)
            assert value is not None
            first, same = agreed.setdefault(chunk, (rank, value))
            if same != value:
                raise ProofError(
                    f"{title}: ranks end with different sums, so with different bits",
                    rank=rank,
                    chunk=chunk,
                    expected=f"{machine.expressions.describe(same)} as on rank {first}",
                    found=machine.expressions.describe(value),
                )
            rank_order &= value == _in_rank_order(machine.expressions, chunk, wanted)
    return rank_order


def run_one_sided(
    algo: Algorithm, schedules: Sequence[Sequence[Step]], root: int = 0
) -> OneSidedMachine:
    """The machine that has run given one-sided schedules: every access in it is in order.

    Raises:
        ProofError: some access is not, or the ranks do not come to their end.
    """
    machine = OneSidedMachine(_title(algo, len(schedules), root), schedules)
    _run(machine, algo, schedules, root)
    return machine


def _run(machine: Driver, algo: Algorithm, schedules: Sequence[Sequence[Step]], root: int) -> None:
    spec, size = algo.spec, len(schedules)
    if not spec.reduces:
        _refuse_reductions(_title(algo, size, root), schedules)
    for rank in range(size):
        held = spec.inputs(rank, size, root, algo.chunk_count(size))
        machine.hold(rank, (0,) if spec.chunking == "empty" else held)
    machine.run()


def _title(algo: Algorithm, size: int, root: int) -> str:
    return f"{algo.collective} {algo.name}, {size} ranks" + f", root {root}" * algo.spec.rooted


def _refuse_reductions(title: str, schedules: Sequence[Sequence[Step]]) -> None:
    for rank, steps in enumerate(schedules):
        for index, step in enumerate(steps):
            if isinstance(step, RecvReduce | ReadReduce):
                raise ProofError(
                    f"{title}: the collective does not reduce",
                    rank=rank,
                    step=index,
                    chunk=step.chunks[0],
                    expected=WORDS[Recv] if isinstance(step, RecvReduce) else WORDS[Read],
                    found=WORDS[type(step)],
                )


def _complete(
    title: str,
    expressions: Expressions,
    rank: int,
    chunk: int,
    value: Expression | None,
    wanted: Counter[tuple[int, int]],
) -> None:
    """Every contribution once: none missing, none twice, none of another chunk."""
    found = expressions.contributions(value) if value is not None else Counter()
    if found == wanted:
        return
    missing = sorted(r for r, _ in wanted - found)
    extra = sorted((found - wanted).items())
    problems = []
    if missing:
        problems.append(f"nothing of rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}")
    for (other, origin), times in extra:
        if (other, origin) in wanted:
            problems.append(f"rank {other}'s {times + 1} times")
        else:
            problems.append(f"chunk {origin} of rank {other}")
    if value is None:
        problems = ["no value at all"]
    raise ProofError(
        f"{title}: a chunk ends wrong",
        rank=rank,
        chunk=chunk,
        expected=f"the contribution of each of ranks {sorted(r for r, _ in wanted)} once",
        found=", ".join(problems),
    )


def _in_rank_order(
    expressions: Expressions, chunk: int, wanted: Counter[tuple[int, int]]
) -> Expression:
    """The fold of all contributions, lowest rank first, in one pass."""
    return expressions.fold([expressions.leaf(rank, chunk) for rank, _ in sorted(wanted)])


def _everyone_heard(title: str, machine: Driver, size: int) -> None:
    everyone = {(rank, 0) for rank in range(size)}
    for rank in range(size):
        heard = set(machine.expressions.contributions(machine.values(rank)[0]))
        if heard != everyone:
            unheard = sorted(r for r, _ in everyone - heard)
            raise ProofError(
                f"{title}: a rank leaves too early",
                rank=rank,
                chunk=0,
                expected="to have heard from every rank",
                found=f"nothing of rank{'s' * (len(unheard) > 1)} {unheard}",
            )
