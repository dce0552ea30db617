"""busbw is algbw times the factors that nccl-tests documents."""

from __future__ import annotations

import pytest

from collectives.bench.cases import COLLECTIVES, POINT_TO_POINT
from collectives.bench.rates import algbw, busbw, busbw_factor

AT_EIGHT_RANKS = {
    "allreduce": 2 * 7 / 8,
    "reduce_scatter": 7 / 8,
    "allgather": 7 / 8,
    "alltoall": 7 / 8,
    "gather": 7 / 8,
    "scatter": 7 / 8,
    "broadcast": 1,
    "reduce": 1,
    "pingpong": 1,
    "stream": 1,
    "barrier": 0,
}


@pytest.mark.parametrize("collective", (*COLLECTIVES, *POINT_TO_POINT))
def test_the_factor_is_that_of_nccl_tests(collective):
    assert busbw_factor(collective, 8) == AT_EIGHT_RANKS[collective]


def test_a_world_of_one_has_no_bus():
    assert busbw_factor("allreduce", 1) == 0


def test_rates_of_a_known_time():
    assert algbw(1_000_000, 1e-3) == pytest.approx(1e9)
    assert busbw("allreduce", 4, 1_000_000, 1e-3) == pytest.approx(1.5e9)
    assert algbw(8, 0.0) == 0.0


def test_an_unknown_collective_is_refused():
    with pytest.raises(ValueError, match="no busbw factor for 'allreduc'; expected one of allred"):
        busbw_factor("allreduc", 2)
