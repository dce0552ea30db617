"""What a run leaves beside its checkpoints: its curve, its trace, and what communication cost."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from trainers.cost_report import CostReport, print_report, whole_before
from trainers.curve import draw_curve
from trainers.sharing import share_of
from trainers.step_times import joined
from trainers.timeline import write_trace

if TYPE_CHECKING:
    from trainers.training import Trainer

CURVE, TRACE, REPORT = "curve.png", "trace.json", "communication.txt"

_LONGEST = 2.0  # seconds of a step, beyond which nobody is kept waiting for one of one rank alone
_ALONE = 1.0  # seconds that steps of one rank alone may take in all
_FEWEST, _MOST = 2, 20


def write_aftermath(trainer: Trainer) -> list[str]:
    """Writes the files into the run's folder and prints the report, on rank 0. A collective call.

    Returns:
        The names of the files.
    """
    folder, first = trainer.config.run, trainer.comm.rank == 0
    written = []
    if first:
        draw_curve(folder / "metrics.jsonl", folder / CURVE)
        written.append(CURVE)
    traced = list(trainer.times.kept)[-trainer.config.train.trace :]
    if trainer.config.train.trace and trainer.intervals:
        write_trace(folder / TRACE, trainer.comm, traced, trainer.model.plan.nbytes)
        written.append(TRACE)
    if trainer.intervals:
        report = _cost_report(trainer)
        if first:
            with (folder / REPORT).open("w", encoding="utf-8") as file:
                print_report(report, Console(file=file, width=100))
            print_report(report, Console())
        written.append(REPORT)
    return written


def seconds_alone(trainer: Trainer) -> float | None:
    """Forward and backward of rank 0's samples while the others wait; None if a step takes long.

    A collective call, with the same result on every rank. The weights stay; gradients do not.
    """
    compute = trainer.intervals[-1].mean()["compute"]
    if trainer.comm.size == 1:
        return compute
    if compute > _LONGEST:
        return None
    found: float | None = None
    if trainer.comm.rank == 0:
        found = _measured(trainer)
    answer: float | None = trainer.comm.broadcast_object(found, root=0)
    return answer


def _measured(trainer: Trainer) -> float:
    train = trainer.config.train
    share = share_of(train.batch, 0, trainer.comm.size)
    buffers = [(buffer, buffer.clone()) for buffer in trainer.network.buffers()]
    taken: list[float] = []
    began = time.perf_counter()
    with trainer.model.no_sync():
        while len(taken) < _FEWEST or (len(taken) < _MOST and time.perf_counter() - began < _ALONE):
            trainer.model.zero_grad()
            taken.append(trainer.compute_seconds(len(taken), share))
    trainer.model.zero_grad()
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    return statistics.median(taken)


def _cost_report(trainer: Trainer) -> CostReport:
    plan, model = trainer.model.plan, trainer.model
    return CostReport(
        size=trainer.comm.size,
        # Without the first, in which a model is compiled and memory is touched for the first time.
        interval=joined(trainer.intervals[1:] or trainer.intervals),
        plan=plan,
        alone=seconds_alone(trainer),
        before=whole_before(trainer.times.kept, len(plan.nbytes)),
        predict=model.predicted,
        gather=model.gather_predicted,
    )
