"""How gradients are cut into buckets, and by what."""

from __future__ import annotations

import pytest
import torch
from harness.batches import Batch
from torch import nn

from collectives import explaining
from trainers.bucket_plan import (
    FALLBACK,
    HANDOVER_SECONDS,
    BucketPlan,
    cheapest_sizes,
    grouped,
)
from trainers.buckets import Bucket, elements_of, offsets_of
from trainers.data_parallel import DataParallel

ranks = Batch({"OMP_NUM_THREADS": "1", "COLLECTIVES_TUNING": "off"})


def of(*counts, dtype=torch.float32):
    return [nn.Parameter(torch.ones(count, dtype=dtype)) for count in counts]


def counts(groups):
    return [[parameter.numel() for parameter in group] for group in groups]


@pytest.mark.parametrize(
    ("most", "last", "expected"),
    [
        (1 << 20, 1 << 20, [[16, 32, 16, 48, 16]]),
        (1 << 20, 64, [[16, 32, 16, 48], [16]]),
        (1 << 20, 256, [[16, 32, 16], [48, 16]]),
        (128, 64, [[16], [32], [16], [48], [16]]),
        (192, 64, [[16, 32], [16], [48], [16]]),
        (1, 1, [[16], [32], [16], [48], [16]]),
    ],
)
def test_cutting(most, last, expected):
    assert counts(grouped(of(16, 32, 16, 48, 16), most, last)) == expected


def test_bytes_that_travel_count():
    assert counts(grouped(of(16, 16, 16), 64, 32, torch.bfloat16)) == [[16, 16], [16]]


def test_every_type_fills_its_own_buckets():
    one, two = of(16, 16), of(16, 16, dtype=torch.float64)
    groups = grouped([one[0], two[0], one[1], two[1]], 1 << 20, 1)
    assert [[p.dtype for p in group] for group in groups] == [
        [torch.float32] * 2,
        [torch.float64],
        [torch.float64],
    ]


def test_parameters_begin_at_cache_lines():
    parameters = of(1, 16, 17, 3)
    assert offsets_of(parameters) == [0, 16, 32, 64]
    assert elements_of(parameters, 1) == elements_of(parameters, 5) == 80
    assert elements_of(parameters, 3) == 96
    flat = torch.full((80,), 7.0)
    bucket = Bucket(parameters, flat, flat)
    assert flat.sum() == 0
    for place, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, place + 1.0)
        bucket.take(place)
        assert parameter.grad.data_ptr() % 64 == flat.data_ptr() % 64
    assert [flat[at].item() for at in (0, 1, 16, 32, 48, 49, 64, 66, 67)] == [
        *(1, 0, 2, 3, 3, 0, 4, 4, 0)
    ]


def test_sizes_are_where_a_byte_costs_least():
    """A microsecond and a nanosecond a byte; beyond a megabyte three."""

    def seconds(nbytes, ranks=None):
        return 1e-6 + 1e-9 * nbytes + 2e-9 * max(0, nbytes - (1 << 20))

    most, last = cheapest_sizes(1 << 24, seconds)
    assert most == 1 << 20
    assert last == 1 << 15
    assert seconds(last) <= HANDOVER_SECONDS < seconds(2 * last)
    assert cheapest_sizes(10_000, seconds) == (10_000, 10_000)
    assert cheapest_sizes(1 << 24, lambda nbytes: None) is None


def test_a_plan_in_words():
    plan = BucketPlan((4_000_000, 2_000_000, 300), (2e-3, 1e-3, 1e-5), 1, 1, "as asked")
    assert str(plan) == (
        "3 buckets, 6 MB in all: 2 MB to 4 MB, the last 300 B; predicted 3.01 ms of averaging, of "
        "which 0.01 ms cannot hide (as asked)"
    )
    assert str(BucketPlan((5000,), (None,), 1, 1, "x")) == "1 bucket, 5 kB in all (x)"


def planned(comm):
    net = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(9)))
    return DataParallel(net, comm).plan


@ranks(2)
def test_the_plan_is_rank_0s_and_by_its_model(comm):
    plan = planned(comm)
    everyones = comm.allgather_object((plan.most, plan.last, plan.nbytes))
    assert everyones == [everyones[0]] * 2
    assert sum(plan.nbytes) == 9 << 20
    assert plan.reason == "sizes by the cost model"
    assert all(seconds > 0 for seconds in plan.seconds)


class Speechless:
    """A model of a machine that was fitted for nothing."""

    def tells_of(self, algo):
        return False


@ranks(2)
def test_without_a_model(comm):
    before, explaining.machine_model = explaining.machine_model, Speechless
    try:
        plan = planned(comm)
    finally:
        explaining.machine_model = before
    assert (plan.most, plan.last) == FALLBACK
    assert plan.seconds == (None,) * 3
    assert plan.nbytes == (4 << 20, 4 << 20, 1 << 20)
    assert str(plan).endswith("(the cost model says nothing)")
