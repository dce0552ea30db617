"""What communication cost in a run, what it would cost on more ranks, and what would help.

Everything follows from what was measured (`step_times`), one rank's time for the same step without
any communication, and what the model of this transport predicts of the buckets' allreduces.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from trainers.bucket_plan import HANDOVER_SECONDS, BucketPlan, Predict
from trainers.step_times import PARTS, Interval, StepRecord

RANKS = (1, 2, 4, 8, 16, 32, 64)
WORTH = 0.01
"""The part of a step from which on advice is given."""


NOISE = (
    "above 100 % is noise: no rank is quicker for having others, but the few steps alone were "
    "taken at another time"
)


@dataclass(frozen=True)
class Scaled:
    """What is predicted for a number of ranks, at best and at worst.

    Attributes:
        ranks: how many.
        best: seconds of communication that nothing hides.
        worst: the same.
        unexposed: the part of a step in which no communication is exposed, at best.
        least: the same at worst.
    """

    ranks: int
    best: float
    worst: float
    unexposed: float
    least: float


@dataclass(frozen=True)
class CostReport:
    """What communication cost in a run; print it by `print_report`.

    Attributes:
        size: number of ranks.
        interval: where the time of a step went.
        plan: the buckets.
        alone: seconds of forward and backward on one rank, while the others did nothing; None if
            that was not measured.
        before: seconds from each bucket being whole to this rank's last gradient being there.
        predict: what averaging a bucket takes.
        gather: what gathering a bucket's parameters takes, where they are sharded.
    """

    size: int
    interval: Interval
    plan: BucketPlan
    alone: float | None
    before: tuple[float, ...]
    predict: Predict
    gather: Predict | None = None

    @property
    def step(self) -> float:
        """Seconds of a step, by the mean over ranks."""
        return sum(self.interval.mean().values())

    @property
    def step_alone(self) -> float | None:
        """Seconds of a step with as many samples as one rank has, on one rank alone."""
        parts = self.interval.mean()
        return None if self.alone is None else parts["data"] + self.alone + parts["optimizer"]

    @property
    def efficiency(self) -> float | None:
        """How fast a rank is, with the others, as a part of how fast it is alone."""
        return None if self.step_alone is None else self.step_alone / self.step

    def exposed(self, ranks: int) -> float | None:
        """Seconds of communication that nothing hides, as the cost model says.

        Args:
            ranks: how many there are.
        """
        if ranks == 1:
            return 0.0
        end = -max(self.before, default=0.0)
        gathering = 0.0
        for number, (nbytes, before) in enumerate(zip(self.plan.nbytes, self.before, strict=True)):
            seconds = self.predict(nbytes, ranks)
            gather = self.gather(nbytes, ranks) if self.gather is not None else 0.0
            if seconds is None or gather is None:
                return None
            # The last one runs where the program waits; the others are handed over.
            handover = HANDOVER_SECONDS if number < len(self.plan.nbytes) - 1 else 0.0
            end = max(end, -before) + handover + seconds
            gathering += gather
        return max(0.0, end) + gathering

    def scaling(self) -> list[Scaled]:
        """What is predicted for other numbers of ranks, each with as many samples as now.

        What the model says of other numbers is multiplied with what was measured over what it says
        of this one. It knows nothing of ranks that share memory, so that is the best that can be;
        the worst is that memory is no faster than now, and more ranks move so many more bytes.
        """
        parts = self.interval.mean()
        rest = sum(parts.values()) - parts["exposed"]
        here = self.exposed(self.size)
        if here is None:
            return []
        factor = parts["exposed"] / here if here else 1.0
        found = []
        for ranks in sorted({*RANKS, self.size}):
            exposed = self.exposed(ranks)
            if exposed is not None:
                best = exposed * factor
                worst = best * max(1.0, ranks / self.size)
                found.append(
                    Scaled(ranks, best, worst, rest / (rest + best), rest / (rest + worst))
                )
        return found

    def advice(self) -> list[tuple[float, str]]:
        """(seconds of a step that it would save at most, what to do), the most first."""
        parts = self.interval.mean()
        found = [(parts["data"], "have the samples ready sooner: getting them is the part `data`")]
        last = self.interval.last
        latest = (
            f"rank {int(last.argmax())} is the last in {last.max() / last.sum():.0%} of the steps"
        )
        why = f"see why ranks are late (a slower core, a larger share, another program?): {latest}"
        found.append((parts["late"], why))
        if self.size > 1:
            often = "average half as often: twice the samples a step (train.accumulate)"
            found.append((parts["exposed"] / 2, often))
        if self.size > 1 and self.gather is None:
            saved = parts["optimizer"] * (1 - 1 / self.size)
            found.append((saved, "share out the optimizer's work (parallel.shard)"))
        if self.alone is not None:
            slower = f"{parts['compute'] / self.alone - 1:.0%} longer together than one alone"
            why = (
                f"give ranks more of the machine: computing takes them {slower} (memory, caches, "
                "cores shared; hidden communication is in it)"
            )
            found.append((parts["compute"] - self.alone, why))
        return sorted(
            ((seconds, text) for seconds, text in found if seconds >= WORTH * self.step),
            reverse=True,
        )


def whole_before(records: Sequence[StepRecord], buckets: int) -> tuple[float, ...]:
    """How long before the last gradient each bucket was whole: the medians of some steps."""
    steps = [each.backward for each in records if len(each.backward.calls) == buckets]
    if not steps:
        return (0.0,) * buckets
    # A bucket's call begins as soon as it is whole, but for those that wait for one before.
    return tuple(
        statistics.median(max(0.0, step.ready - step.calls[number][0]) for step in steps)
        for number in range(buckets)
    )


def print_report(report: CostReport, console: Console) -> None:
    """Prints a report as people read it."""
    console.print(_parts_table(report))
    console.print(f"buckets: {report.plan}", highlight=False)
    if report.efficiency is not None and report.alone is not None:
        console.print(
            f"efficiency against one rank: {report.efficiency:.1%} "
            f"({1e3 * report.step:.2f} ms a step, {1e3 * (report.step_alone or 0):.2f} alone)",
            highlight=False,
        )
        if report.efficiency > 1:
            console.print(f"  {NOISE}", highlight=False, soft_wrap=True)
    if scaling := report.scaling():
        console.print(_scaling_table(scaling))
    else:
        console.print("more ranks: the cost model says nothing (collectives tune)")
    advice = report.advice()
    if not advice:
        console.print(f"what would help: nothing that saves {WORTH:.0%} of a step")
    else:
        console.print("what would help, and what it would save at most:")
        for seconds, text in advice:
            console.print(
                f"  {1e3 * seconds:.2f} ms ({seconds / report.step:.0%}): {text}",
                highlight=False,
                soft_wrap=True,
            )


def _parts_table(report: CostReport) -> Table:
    table = Table(title=f"a step on {report.size} rank{'s' * (report.size > 1)}, milliseconds")
    table.add_column("rank")
    for part in (*PARTS, "whole"):
        table.add_column(part, justify="right")
    for rank, parts in enumerate(report.interval.parts):
        table.add_row(str(rank), *(f"{1e3 * each:.3f}" for each in (*parts, parts.sum())))
    table.add_section()
    mean = report.interval.mean()
    table.add_row("mean", *(f"{1e3 * each:.3f}" for each in (*mean.values(), report.step)))
    table.add_row("", *(f"{each / report.step:.1%}" for each in (*mean.values(), report.step)))
    return table


def _scaling_table(scaling: Sequence[Scaled]) -> Table:
    table = Table(
        title="predicted, a core and as many samples for each rank",
        caption="what was measured, times what the cost model says of other numbers of ranks: at "
        "best, and if memory is no faster for more ranks",
    )
    for name in ("ranks", "exposed, ms", "of a step not exposed"):
        table.add_column(name, justify="right")
    for each in scaling:
        best, worst = f"{1e3 * each.best:.3f}", f"{1e3 * each.worst:.3f}"
        high, low = f"{each.unexposed:.1%}", f"{each.least:.1%}"
        exact = best == worst
        table.add_row(
            str(each.ranks),
            best if exact else f"{best} to {worst}",
            high if exact else f"{low} to {high}",
        )
    return table
