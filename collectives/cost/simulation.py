"""How long an algorithm takes on a model machine: any algorithm, from one rank to many thousands.

    run_simulation(find("allreduce", "ring"), 4096, 1 << 20, links).seconds

Chunks are equal: a chunk has s/k bytes, fractions of a byte included. What is whole or a fraction
stays exact; links of floats give floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from collectives.closed_form import Number
from collectives.cost.actions import Kind, as_programs
from collectives.cost.forest import finish_times
from collectives.cost.links import Links
from collectives.cost.machine import Hop, run_machine
from collectives.cost.one_host import one_host_for_all
from collectives.cost.tracing import Group, trace
from collectives.schedule import Algorithm

_FOREST_FROM = 1 << 15  # messages; below, the machine is quick and knows the path


@dataclass(frozen=True)
class Leg:
    """One stretch of the critical path.

    Attributes:
        source: who sends, or works.
        target: who receives; the source itself where it works.
        step: index of the step in the source's schedule.
        begin: when it begins, in seconds.
        end: when it no longer holds up the next one.
        chunks: chunks moved.
        reduced: chunks reduced.
        message: whether it is a message.
    """

    source: int
    target: int
    step: int
    begin: Number
    end: Number
    chunks: int
    reduced: int
    message: bool


@dataclass(frozen=True)
class Simulation:
    """What the model machine says.

    Attributes:
        seconds: until the last rank has done all, and its last message has left.
        last: the rank that ends last; the lowest of several.
        method: how it was found: "all ranks alike", "one host for all", "rank by rank", "event by
            event".
        path: the critical path, first leg first; None where it was not traced (rank by rank).
    """

    seconds: Number
    last: int
    method: str
    path: tuple[Leg, ...] | None

    def composition(self) -> tuple[int, int, int]:
        """Messages, chunks moved and chunks reduced on the critical path.

        Raises:
            ValueError: the path was not traced.
        """
        if self.path is None:
            raise ValueError("the critical path was not traced")
        return (
            sum(leg.message for leg in self.path),
            sum(leg.chunks for leg in self.path),
            sum(leg.reduced for leg in self.path),
        )


def run_simulation(
    algo: Algorithm, size: int, nbytes: Number, links: Links | None = None, root: int = 0
) -> Simulation:
    """Run all ranks of `algo` on the model machine.

    Args:
        algo: any algorithm; it should be proved, since one that dead-locks ends in an error here.
        size: number of ranks.
        nbytes: bytes of all chunks together, s of the closed forms.
        links: what messages cost; nominal by default.
        root: the root, for collectives that have one.

    Raises:
        ValueError: as `Algorithm.schedule`, or `links` name hosts of another number of ranks, or
            the schedules do not fit together.
        ScheduleError: as `Algorithm.schedule`.
    """
    links = Links() if links is None else links
    if links.hosts is not None and len(links.hosts) != size:
        raise ValueError(f"links name the hosts of {len(links.hosts)} ranks, expected {size}")
    share = share_of(algo, size, nbytes)
    if links.hosts is not None and (alike := one_host_for_all(algo, size, root, links.hosts)):
        return _result(run_machine(alike, links, share), "one host for all")
    groups = trace(algo, size, root, links.hosts)
    if len(groups) > 1 and _actions(groups) > _FOREST_FROM:
        done = finish_times(groups, size, links, share)
        if done is not None:
            return Simulation(max(done), int(done.argmax()), "rank by rank", None)
    programs = as_programs(groups, size, uniform=links.uniform)
    hops = run_machine(programs, links, share)
    method = "event by event" if programs.stands_for == 1 else "all ranks alike"
    return _result(hops, method)


def share_of(algo: Algorithm, size: int, nbytes: Number) -> Number:
    """Bytes of a chunk, chunks being equal."""
    if algo.spec.chunking == "empty":
        return Fraction(0)
    chunks = size if algo.spec.chunking == "pairs" else algo.chunk_count(size)
    return nbytes * Fraction(1, chunks)


def _actions(groups: Sequence[Group]) -> int:
    return sum(len(group.ranks) * len(group.steps) for group in groups)


def _result(hops: Sequence[Hop], method: str) -> Simulation:
    if not hops:
        return Simulation(Fraction(0), 0, method, ())
    seconds = max(max(hop.sent, hop.end) for hop in hops)
    last = min((hop for hop in hops if hop.end == seconds), key=lambda hop: hop.target)
    legs = []
    hop: Hop | None = last
    until = seconds
    while hop is not None:
        # A message that waited for the way out of its sender did not wait for the reduction.
        reduced = hop.reduced if hop.kind is Kind.WORK or until == hop.end else 0
        legs.append(
            Leg(hop.source, hop.target, hop.step, hop.begin, until, hop.moved, reduced,
                hop.kind is Kind.POST)
        )  # fmt: skip
        until, hop = hop.begin, hop.cause
    return Simulation(seconds, last.target, method, tuple(reversed(legs)))
