"""The parts of a step, from the times that ranks have noted."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from harness.batches import Batch

from trainers.bucket_plan import HANDOVER_SECONDS, BucketPlan
from trainers.cost_report import CostReport, print_report, whole_before
from trainers.curve import draw_curve
from trainers.step_times import (
    PARTS,
    BackwardMoments,
    BackwardTimes,
    StepMoments,
    StepRecord,
    StepTimes,
    interval_of,
    joined,
)
from trainers.timeline import write_trace

ranks = Batch()


def record(step, origin, *, data, ready, done, ended, loss=1.0, calls=(), gathered=0.0):
    times = BackwardTimes(origin + ready, origin + done, calls)
    forward = origin + data + 0.5
    return StepRecord(step, loss, origin, data, forward, times, origin + ended, gathered)


def test_late_and_exposed_are_told_apart():
    """Rank 1's last gradient comes at 7, rank 0's at 5; all is averaged at 8."""
    everyones = np.array(
        [
            [record(0, 0.0, data=1, ready=5, done=8, ended=9).as_row()],
            [record(0, 0.0, data=2, ready=7, done=8.5, ended=9).as_row()],
        ]
    )
    found = interval_of(10, everyones)
    assert found.parts.tolist() == [[1, 4, 2, 1, 1], [2, 5, 0, 1.5, 0.5]]
    assert found.parts.sum(1).tolist() == [9, 9]
    assert found.last.tolist() == [0, 1]
    assert (found.first, found.steps) == (10, 1)
    assert found.mean() == dict(zip(PARTS, (1.5, 4.5, 1, 1.25, 0.75), strict=True))


def test_a_rank_that_does_not_wait_for_the_last_is_not_exposed():
    everyones = np.array(
        [
            [record(0, 0.0, data=0, ready=5, done=6, ended=9).as_row()],
            [record(0, 0.0, data=0, ready=7, done=8, ended=9).as_row()],
        ]
    )
    assert interval_of(0, everyones).parts.tolist() == [[0, 5, 1, 0, 3], [0, 7, 0, 1, 1]]


def test_gathering_parameters_is_communication():
    row = record(0, 0.0, data=0, ready=5, done=6, ended=9, gathered=2.0).as_row()
    assert interval_of(0, np.array([[row]])).parts.tolist() == [[0, 5, 0, 3, 1]]


def test_intervals_are_joined_by_their_steps():
    def of(steps, ready):
        rows = [record(n, 0.0, data=0, ready=ready, done=9, ended=9) for n in range(steps)]
        return interval_of(0, np.array([[each.as_row() for each in rows]]))

    both = joined([of(1, 1.0), of(3, 5.0)])
    assert both.steps == 4
    assert both.parts.tolist() == [[0, 4, 0, 5, 0]]
    assert both.last.tolist() == [4]


def test_losses_that_are_no_numbers_are_found():
    rows = np.zeros((2, 3, 7))
    rows[1, 1, 0] = np.nan
    rows[:, 2, 0] = np.inf
    assert interval_of(20, rows).not_a_number() == (21, [1])
    assert interval_of(20, rows[:, :1]).not_a_number() is None
    rows[0, 1, 0] = np.inf
    assert interval_of(0, rows).not_a_number() == (1, [0, 1])


class LateClock:
    """Whose moments have a time only once it has settled, ten seconds late."""

    def __init__(self):
        self.known = -1.0

    def moment(self):
        raise NotImplementedError("the test makes its own")

    def reach(self, moment):
        raise NotImplementedError("nobody waits here")

    def settle(self, *moments):
        self.known = float("inf")

    def seconds(self, moment):
        assert moment < self.known, "not settled"
        return 10.0 + moment


def moments(step, *, ready, loss=1.0, gathered=None):
    backward = BackwardMoments(ready, 4.0, ((0.5, 1.5), (2.0, 4.0)))
    losses = ((torch.tensor(loss), 0.25), (torch.tensor(2 * loss), 0.5))
    return StepMoments(step, losses, 0.0, ((0.0, 0.125), (0.25, 0.5)), 1.0, backward, 5.0, gathered)


def test_moments_become_seconds_once_they_are_known():
    clock = LateClock()
    step = moments(3, ready=2.0, gathered=(4.0, 4.75))
    with pytest.raises(AssertionError, match="not settled"):
        step.record(clock)
    clock.settle()
    times = BackwardTimes(12.0, 14.0, ((10.5, 11.5), (12.0, 14.0)))
    assert step.record(clock) == StepRecord(3, 1.25, 10.0, 0.375, 11.0, times, 15.0, 0.75)
    assert moments(3, ready=2.0).record(clock).gathered == 0.0


@ranks(2)
def test_ranks_tell_each_other(comm):
    times = StepTimes(comm, LateClock(), kept=2)
    for step in range(5, 8):
        times.note(moments(step, ready=1.0 + comm.rank, loss=4.0 * step))
    first = times.exchange()
    times.note(moments(8, ready=1.0))
    second = times.exchange()
    assert (first.first, first.steps, second.first, second.steps) == (5, 3, 8, 1)
    assert first.losses.tolist() == [[25, 25], [30, 30], [35, 35]]
    assert first.parts[0].tolist() == [0.375, 0.625, 1, 2, 1]
    assert first.last.tolist() == [0, 3]
    assert [each.step for each in times.kept] == [7, 8]


PLAN = BucketPlan((4000, 1000), (4e-3, 1e-3), 4000, 1000, "as asked")


def report(*, size=2, alone=3.0, before=(2.0, 0.0), predict=None, data=1.0):
    rows = [
        [record(0, 0.0, data=data, ready=data + 4, done=data + 6, ended=data + 8).as_row()],
        [record(0, 0.0, data=data, ready=data + 5, done=data + 6, ended=data + 8).as_row()],
    ]
    per_byte = predict or (lambda nbytes, ranks: nbytes / 1000)
    return CostReport(size, interval_of(0, np.array(rows[:size])), PLAN, alone, before, per_byte)


def test_efficiency_is_against_one_rank_alone():
    # 1 s of data, 3 alone, 2 of optimizer: 6 instead of 9.
    assert report().step == 9
    assert report().step_alone == 6
    assert report().efficiency == pytest.approx(6 / 9)
    assert report(alone=None).efficiency is None


@pytest.mark.parametrize(
    ("before", "exposed"),
    [
        ((2.0, 0.0), 3.0),  # the first ends 2 after the last gradient, then a second more
        ((5.0, 0.0), 1.0),
        ((0.0, 0.0), 5.0),
    ],
)
def test_what_nothing_hides_is_simulated(before, exposed):
    found = report(before=before)
    handover = HANDOVER_SECONDS if before[0] < 5 else 0.0
    assert found.exposed(2) == pytest.approx(exposed + handover, abs=1e-9)
    assert found.exposed(1) == 0
    assert report(predict=lambda nbytes, ranks: None).exposed(2) is None


def test_scaling_is_what_was_measured_times_what_the_model_says():
    found = report(before=(0.0, 0.0), predict=lambda nbytes, ranks: 0.05 * ranks)
    # Predicted here: twice 0.1 and a handover; measured 1.0.
    here = 0.2 + HANDOVER_SECONDS
    scaling = {each.ranks: each for each in found.scaling()}
    assert sorted(scaling) == [1, 2, 4, 8, 16, 32, 64]
    assert (scaling[1].best, scaling[1].worst, scaling[1].unexposed) == (0, 0, 1)
    assert scaling[2].best == scaling[2].worst == pytest.approx(1.0)
    assert scaling[2].unexposed == pytest.approx(8 / 9)
    assert scaling[8].best == pytest.approx((0.8 + HANDOVER_SECONDS) / here)
    assert scaling[8].worst == pytest.approx(4 * scaling[8].best)
    assert scaling[8].least == pytest.approx(8 / (8 + scaling[8].worst))


def test_gathering_is_predicted_too():
    found = dataclasses.replace(report(before=(0.0, 0.0)), gather=lambda nbytes, ranks: 0.5)
    assert found.exposed(2) == pytest.approx(5 + 2 * 0.5 + HANDOVER_SECONDS)
    assert dataclasses.replace(found, gather=lambda nbytes, ranks: None).exposed(2) is None
    assert "parallel.shard" not in " ".join(text for _, text in found.advice())
    assert "parallel.shard" in " ".join(text for _, text in report().advice())


def test_advice_is_what_saves_most_first():
    advice = report().advice()
    assert [seconds for seconds, _ in advice] == sorted((s for s, _ in advice), reverse=True)
    words = " ".join(text for _, text in advice)
    assert "rank 1 is the last in 100% of the steps" in words
    assert "train.accumulate" in words
    assert "50% longer together than one alone" in words
    assert "`data`" in words
    assert "`data`" not in " ".join(text for _, text in report(data=0.0).advice())


def test_the_report_in_words(capsys):
    from rich.console import Console

    print_report(report(), Console(width=120))
    said = capsys.readouterr().out
    assert "a step on 2 ranks, milliseconds" in said
    assert "efficiency against one rank: 66.7% (9000.00 ms a step, 6000.00 alone)" in said
    assert "100 %" not in said
    assert said.count("efficiency") == 1, "the table's figure is another one"
    assert "of a step not exposed" in " ".join(said.split())
    assert "buckets: 2 buckets, 5 kB in all" in said
    assert "what would help" in said
    print_report(report(alone=None, predict=lambda nbytes, ranks: None), Console(width=120))
    said = capsys.readouterr().out
    assert "efficiency against" not in said
    assert "the cost model says nothing" in said
    print_report(report(alone=7.0), Console(width=120))
    assert "against one rank: 111.1%" in (said := capsys.readouterr().out)
    assert "above 100 % is noise: no rank is quicker for having others" in said


def test_a_run_where_nothing_would_help(capsys):
    from rich.console import Console

    row = [record(0, 0.0, data=0.0, ready=9, done=9, ended=9).as_row()]
    quick = CostReport(1, interval_of(0, np.array([row])), PLAN, 9.0, (0.0, 0.0), lambda b, r: 0.0)
    print_report(quick, Console(width=120))
    assert "what would help: nothing that saves 1% of a step" in capsys.readouterr().out


def test_when_buckets_were_whole():
    steps = [
        record(n, 10.0 * n, data=0, ready=5, done=8, ended=9,
               calls=((10.0 * n + 1 + n, 10.0 * n + 4), (10.0 * n + 6, 10.0 * n + 8)))
        for n in range(3)
    ]  # fmt: skip
    assert whole_before(steps, 2) == (3.0, 0.0)
    assert whole_before([], 2) == (0.0, 0.0)


@ranks(2)
def test_a_trace_opens_as_events(comm):
    """The format's own rules: complete events with ts and dur, in microseconds, nested or apart."""
    folder = comm.broadcast_object(tempfile.mkdtemp() if comm.rank == 0 else None)
    path = Path(folder) / "trace.json"
    steps = [
        record(n, 100.0 + n, data=0.125, ready=0.75, done=0.875, ended=1.0,
               calls=((100.5 + n, 100.75 + n),))
        for n in range(3)
    ]  # fmt: skip
    write_trace(path, comm, steps, (4096,))
    if comm.rank != 0:
        return
    events = json.loads(path.read_text())["traceEvents"]
    shutil.rmtree(folder)
    named = {(e["pid"], e.get("tid")): e["args"]["name"] for e in events if e["ph"] == "M"}
    assert named[0, None] == "rank 0"
    assert named[1, 1] == "communication"
    whole = [e for e in events if e["ph"] == "X"]
    assert len(whole) == 2 * 3 * 7
    steps = [e for e in whole if e["name"].startswith("step")]
    assert [(e["ts"], e["dur"]) for e in steps[:3]] == [(0, 1e6), (1e6, 1e6), (2e6, 1e6)]
    assert {tuple(e["args"].items()) for e in steps} == {(("part of the loss", 1.0),)}
    for event in whole:
        if event["tid"] == 0 and event not in steps:
            outer = steps[0 if event["ts"] < 1e6 else 1 if event["ts"] < 2e6 else 2]
            assert outer["ts"] <= event["ts"]
            assert event["ts"] + event["dur"] <= outer["ts"] + outer["dur"]
    call = next(e for e in whole if e["tid"] == 1)
    assert call["name"] == "allreduce 1"
    assert (call["ts"], call["dur"], call["args"]) == (0.5e6, 0.25e6, {"bytes": 4096})


@pytest.mark.parametrize("held_out", [True, False])
def test_a_curve_is_drawn(tmp_path, held_out):
    found = {"validation_loss": 2.0} if held_out else {"psnr/a": 20.0, "psnr/b": 22.0}
    records = [
        {"step": 1, "loss": 3.0, "units_per_second": 1.0},
        {"step": 1, **found},
        {"step": 2, "loss": 1.0, "units_per_second": 1.0},
        {"step": 2, **found},
    ]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("\n".join(map(json.dumps, records)))
    draw_curve(metrics, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
