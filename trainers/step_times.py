"""Where the time of a step goes: the same five parts on every rank, which add up to the step.

    data        getting the samples
    compute     forward and backward, until this rank's last gradient is there
    late        from then until every rank's last gradient is there: waiting for a late rank
    exposed     from then until all gradients are averaged: communication that nothing hides; and
                the gathering of parameters that are sharded
    optimizer   the step of the optimizer, clipping and averages of weights

What is averaged while backward still computes is hidden, and a part of `compute`. Telling late from
exposed takes the ranks' times: on one host all processes have the same clock, so each step only
notes its moments (`clocks`), and the ranks tell each other once per record of metrics.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainers.clocks import Clock, passed

if TYPE_CHECKING:
    from collectives import Communicator

PARTS = ("data", "compute", "late", "exposed", "optimizer")

Table: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class BackwardTimes:
    """What a backward's communication took; seconds as `time.perf_counter` has them.

    Attributes:
        ready: when the last gradient was there.
        done: when every bucket was averaged. Between the two nothing was computed.
        calls: when each bucket's allreduce began and ended, in order.
    """

    ready: float
    done: float
    calls: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class BackwardMoments:
    """The same in moments of a clock, which may have no time yet."""

    ready: Any
    done: Any
    calls: tuple[tuple[Any, Any], ...]

    def times(self, clock: Clock) -> BackwardTimes:
        """In seconds, once the clock has settled."""
        seconds = clock.seconds
        calls = tuple((seconds(began), seconds(ended)) for began, ended in self.calls)
        return BackwardTimes(seconds(self.ready), seconds(self.done), calls)


@dataclass(frozen=True)
class StepRecord:
    """One step of this rank; seconds as `time.perf_counter` has them.

    Attributes:
        step: its number, from 0.
        loss: this rank's part of the global batch's mean loss.
        began: when the step began.
        data: how many seconds of it went into getting the samples.
        forward: when the last forward had ended.
        backward: when which gradients were there and averaged.
        ended: when the parameters had moved.
        gathered: how many seconds before that went into gathering parameters that are sharded.
    """

    step: int
    loss: float
    began: float
    data: float
    forward: float
    backward: BackwardTimes
    ended: float
    gathered: float = 0.0

    def as_row(self) -> tuple[float, ...]:
        """What other ranks are told."""
        return (
            self.loss, self.began, self.data, self.backward.ready, self.backward.done, self.ended,
            self.gathered,
        )  # fmt: skip


@dataclass(frozen=True)
class StepMoments:
    """The same in moments of a clock, with losses that may not have been computed yet.

    Attributes:
        step: its number, from 0.
        losses: of each of its backwards, and what it counts for in the global batch's mean.
        began: when the step began.
        data: begin and end of each getting of samples.
        forward: when the last forward had ended.
        backward: when which gradients were there and averaged.
        ended: when the parameters had moved.
        gathered: begin and end of the gathering of parameters that are sharded.
    """

    step: int
    losses: tuple[tuple[Tensor, float], ...]
    began: Any
    data: tuple[tuple[Any, Any], ...]
    forward: Any
    backward: BackwardMoments
    ended: Any
    gathered: tuple[Any, Any] | None

    def record(self, clock: Clock) -> StepRecord:
        """In seconds, once the clock has settled."""
        seconds = clock.seconds
        return StepRecord(
            self.step,
            sum(loss.item() * weight for loss, weight in self.losses),
            seconds(self.began),
            sum(passed(clock, *each) for each in self.data),
            seconds(self.forward),
            self.backward.times(clock),
            seconds(self.ended),
            0.0 if self.gathered is None else passed(clock, *self.gathered),
        )


@dataclass(frozen=True)
class Interval:
    """Some steps in a row, as all ranks saw them; the same on every rank.

    Attributes:
        first: number of the first of the steps, from 0.
        losses: of each step and rank, shape (steps, size); a step's add up to its mean loss.
        parts: mean seconds of a step by its part, shape (size, len(PARTS)).
        last: how often each rank's last gradient was the last of all.
    """

    first: int
    losses: Table
    parts: Table
    last: NDArray[np.int64]

    @property
    def steps(self) -> int:
        """How many."""
        return len(self.losses)

    def mean(self) -> dict[str, float]:
        """Mean seconds of a step by its part, over ranks."""
        return dict(zip(PARTS, self.parts.mean(0).tolist(), strict=True))

    def not_a_number(self) -> tuple[int, list[int]] | None:
        """The first step whose loss is not a number, and the ranks on which it is not."""
        bad = ~np.isfinite(self.losses)
        if not bad.any():
            return None
        step = int(bad.any(1).argmax())
        return self.first + step, np.flatnonzero(bad[step]).tolist()


class StepTimes:
    """Notes the steps of this rank, and tells the others.

    Args:
        clock: by which they are timed.
        kept: how many of the last steps are kept as they are.

    Attributes:
        kept: the last of the steps that have been exchanged.
    """

    def __init__(self, comm: Communicator, clock: Clock, kept: int) -> None:
        self._comm = comm
        self._clock = clock
        self._noted: list[StepMoments] = []
        self.kept: deque[StepRecord] = deque(maxlen=kept)

    def note(self, step: StepMoments) -> None:
        """Adds a step."""
        self._noted.append(step)

    def exchange(self) -> Interval:
        """The steps since the last call, of all ranks. A collective call; there must be some."""
        self._clock.settle()
        records = [step.record(self._clock) for step in self._noted]
        self._noted.clear()
        self.kept.extend(records)
        everyones: Table = self._comm.allgather(np.array([each.as_row() for each in records]))
        return interval_of(records[0].step, everyones)


def parts_of(everyones: Table) -> Table:
    """Seconds of each part, shape (size, steps, len(PARTS)).

    Args:
        everyones: the rows of all ranks, shape (size, steps, columns of a row).
    """
    _, began, data, ready, done, ended, gathered = np.moveaxis(everyones, 2, 0)
    # Of a rank that has averaged all before the last one came, if there is such an algorithm, all
    # of it is waiting.
    everyone_ready = np.minimum(ready.max(0), done)
    parts: Table = np.stack(
        [
            data,
            ready - began - data,
            everyone_ready - ready,
            done - everyone_ready + gathered,
            ended - done - gathered,
        ],
        axis=2,
    )
    return parts


def interval_of(first: int, everyones: Table) -> Interval:
    """An interval from the rows of all ranks, shape (size, steps, columns of a row)."""
    loss, ready = everyones[:, :, 0], everyones[:, :, 3]
    size = len(everyones)
    return Interval(
        first=first,
        losses=loss.T,
        parts=parts_of(everyones).mean(1),
        last=np.bincount(ready.argmax(0), minlength=size),
    )


def joined(intervals: Sequence[Interval]) -> Interval:
    """Several intervals as one, of which only times are of use."""
    steps = np.array([interval.steps for interval in intervals])
    parts = np.stack([interval.parts for interval in intervals])
    return Interval(
        first=intervals[0].first,
        losses=np.concatenate([interval.losses for interval in intervals]),
        parts=np.tensordot(steps / steps.sum(), parts, 1),
        last=np.sum([interval.last for interval in intervals], 0),
    )
