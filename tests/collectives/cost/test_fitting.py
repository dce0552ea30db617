"""The fit finds a machine's parameters from its times, noise and all; judged by other sizes."""

from __future__ import annotations

import numpy as np
import pytest

from collectives.catalogue import find
from collectives.cost.fitting import (
    Judged,
    fit,
    guess,
    held_out,
    judge,
    median_errors,
)
from collectives.cost.measuring import FIT_SIZES, HELD_OUT_SIZES, Measurement, whole_bytes
from collectives.cost.parameters import KNOTS, PLACE
from collectives.cost.shared_memory import composition
from collectives.cost.work import Room

ROOM = Room(slots=8, slot_bytes=1 << 18, depth=16, cores=2)
CONTENDERS = (
    ("allreduce", "ring"),
    ("allreduce", "tree"),
    ("reduce", "chain"),
    ("allgather", "direct"),
    ("broadcast", "linear"),
    ("gather", "linear"),
)


def some_machine():
    values = guess()
    for name, seconds in (("step", 6e-8), ("take", 9e-8), ("arrival", 2e-7), ("post", 4e-8)):
        values[PLACE[name]] = seconds
    for stream, rate in (("read", 1e-11), ("write", 2e-11), ("fetch", 4e-11), ("store", 3e-11)):
        for place, knot in enumerate(KNOTS):
            values[PLACE[f"{stream}.{knot}"]] = rate * (1 + place / 3)
    return values


def times_of(values, sizes, noise=None):
    found = []
    for collective, name in CONTENDERS:
        for each in sizes:
            nbytes = whole_bytes(collective, each, 2)
            seconds = float(composition(find(collective, name), 2, nbytes, values, ROOM) @ values)
            found.append(
                Measurement(collective=collective, algorithm=name, ranks=2, nbytes=nbytes,
                            seconds=seconds * (1 if noise is None else noise()))
            )  # fmt: skip
    return found


def test_predictions_of_a_fitted_machine_are_near_at_sizes_not_fitted():
    machine = some_machine()
    random = np.random.default_rng(7)
    fitted = fit(times_of(machine, FIT_SIZES, lambda: 1 + abs(random.normal(0, 0.05))), ROOM)
    judged = judge(times_of(machine, HELD_OUT_SIZES), fitted, ROOM)
    errors = sorted(abs(each.error) for each in judged)
    assert errors[len(errors) // 2] < 0.08 and errors[int(len(errors) * 0.9)] < 0.25
    assert (fitted >= 0).all()
    assert all(fitted[PLACE[f"peek.{knot}"]] == 0 for knot in KNOTS)  # nothing told of it


def test_a_disturbed_measurement_does_not_matter():
    machine = some_machine()
    times = times_of(machine, FIT_SIZES)
    for place in range(0, len(times), 9):
        slow = times[place]
        times[place] = Measurement(collective=slow.collective, algorithm=slow.algorithm, ranks=2,
                                   nbytes=slow.nbytes, seconds=8 * slow.seconds)  # fmt: skip
    judged = judge(times_of(machine, HELD_OUT_SIZES), fit(times, ROOM), ROOM)
    errors = sorted(abs(each.error) for each in judged)
    assert errors[len(errors) // 2] < 0.15


def test_nothing_cannot_be_fitted():
    with pytest.raises(ValueError, match="expected measurements to fit the model to, found none"):
        fit([], ROOM)


def test_errors_are_told_by_algorithm():
    def judged(nbytes, predicted):
        made = Measurement(
            collective="gather", algorithm="tree", ranks=2, nbytes=nbytes, seconds=1.0
        )
        return Judged(made, predicted)

    found = [judged(10, 5.0), judged(100, 1.25), judged(100, 0.5), judged(100, 1.0)]
    assert median_errors(found, 50) == {"gather tree": 0.25}
    assert median_errors(found[:1])["gather tree"] == 4
    assert [each.error for each in found[1:]] == [0.25, -0.5, 0.0]


def test_sizes_to_judge_are_none_of_those_fitted():
    times = [
        Measurement(collective="allgather", algorithm="ring", ranks=3, seconds=1.0,
                    nbytes=whole_bytes("allgather", each, 3))
        for each in FIT_SIZES + HELD_OUT_SIZES
    ]  # fmt: skip
    assert len(held_out(times)) == len(HELD_OUT_SIZES)
    barrier = Measurement(collective="barrier", algorithm="tree", ranks=2, nbytes=0, seconds=1.0)
    assert held_out([barrier]) == []
