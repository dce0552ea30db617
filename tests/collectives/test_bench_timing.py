"""Timing of collective calls: the slowest rank counts, and all ranks agree."""

from __future__ import annotations

import gc
import time

import numpy as np
import pytest

import launch
from collectives.bench.timing import Timing, fitting_calls, measure, timed_calls


class Alone:
    """A group of one rank."""

    def __init__(self):
        self.barriers = 0

    def barrier(self):
        self.barriers += 1

    def allreduce(self, x, *, op):
        assert op == "max"
        return x


def test_best_median_and_spread_of_the_rounds():
    timing = Timing(rounds=(3.0, 2.0, 5.0), calls=7)
    assert (timing.best, timing.median, timing.spread) == (2.0, 3.0, 1.5)
    assert Timing(rounds=(0.0, 0.0), calls=1).spread == 0.0


def test_every_round_makes_the_same_number_of_calls():
    made = []
    comm = Alone()
    timing = measure(comm, lambda: made.append(None), rounds=3, calls=4)
    assert timing.calls == 4 and len(timing.rounds) == 3
    assert len(made) == 1 + 3 * 4  # one to warm up
    assert comm.barriers == 4


def test_calls_are_as_many_as_fill_a_round():
    seconds = 1e-4
    assert fitting_calls(lambda calls: calls * seconds, 0.02) == 200
    assert fitting_calls(lambda calls: 1.0, 0.02) == 1
    assert fitting_calls(lambda calls: calls * 1e-9, 0.02, most=500) == 500
    assert fitting_calls(lambda calls: 0.0, 0.02, most=500) == 500


def test_a_call_that_is_long_is_made_twice_only_before_the_rounds():
    tried = []

    def time_calls(calls):
        tried.append(calls)
        return calls * 0.5

    assert fitting_calls(time_calls, 0.02) == 1
    assert tried == [1, 1]


def test_the_collector_rests_during_a_round():
    states = []
    timed_calls(lambda: states.append(gc.isenabled()), 1)
    assert states == [False] and gc.isenabled()
    gc.disable()
    try:
        timed_calls(lambda: None, 1)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "options, text",
    [
        ({"rounds": 0}, "at least one round, found 0"),
        ({"calls": 0}, "at least one call in a round, found 0"),
        ({"least_seconds": 0}, "positive number of seconds for a round, found 0"),
        ({"least_seconds": float("nan")}, "found nan"),
    ],
)
def test_wrong_numbers_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        measure(Alone(), lambda: None, **options)


def test_the_slowest_rank_counts_and_all_agree():
    def program(comm):
        pause = 0.01 if comm.rank == 1 else 0.0
        timing = measure(comm, lambda: time.sleep(pause), rounds=2, least_seconds=0.02)
        x = np.ones(16, np.float32)
        quick = measure(comm, lambda: comm.allreduce(x, out=x), rounds=2, least_seconds=0.005)
        return timing, quick

    first, second = launch.spawn(program, 2)
    assert first == second
    slept, quick = first
    assert slept.best >= 0.01
    assert quick.calls > 1 and len(quick.rounds) == 2
