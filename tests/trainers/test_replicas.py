"""At the end of a run all ranks hold the same parameters, or it is said which ranks do not."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn

import launch
from trainers.configuration import config_from
from trainers.errors import DivergedError
from trainers.replicas import check_replicas
from trainers.run import carry_out
from trainers.training import Trainer


def compared(comm, apart):
    """What comparing says where the ranks `apart` have one bit of a bias turned over."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    if comm.rank in apart:
        with torch.no_grad():
            network[1].bias.view(torch.int32)[1] ^= 1
    try:
        return check_replicas(network, comm, step=24), None
    except DivergedError as error:
        return str(error), error.told_elsewhere


@pytest.mark.parametrize("apart, who", [((1,), "rank 1"), ((0, 2), "ranks 0, 2")])
def test_ranks_that_differ_by_one_bit_are_named(apart, who):
    size = len(apart) * 2 + 1
    for rank, (text, told_elsewhere) in enumerate(launch.spawn(compared, size, apart)):
        assert text.startswith(f"after step 24 1.bias of {who} is not, bit for bit, what the other")
        assert f"{size - len(apart)} of {size} ranks hold" in text
        assert told_elsewhere == (rank != 0)


def test_of_two_ranks_the_second_is_named():
    assert "1.bias of rank 1 is not" in launch.spawn(compared, 2, (0,))[0][0]


def drifts(comm, settings):
    """A whole run, at the end of which rank 1 has another weight than rank 0."""
    fit = Trainer.fit

    def fit_and_drift(trainer):
        result = fit(trainer)
        if comm.rank == 1:
            with torch.no_grad():
                next(trainer.network.parameters()).mul_(1.5)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "fit", fit_and_drift)
        with pytest.raises(DivergedError, match="of rank 1 is not, bit for bit"):
            carry_out(config_from(settings, "settings"), comm, resume=False)


def test_a_run_whose_ranks_have_drifted_fails(settings):
    launch.spawn(drifts, 2, settings)


def test_equal_ranks_get_the_digest_of_what_they_hold():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    each = [hashlib.sha256(p.detach().numpy().tobytes()) for p in network.parameters()]
    whole = hashlib.sha256("".join(digest.hexdigest() for digest in each).encode()).hexdigest()
    assert launch.spawn(compared, 3, ()) == [(whole[:16], None)] * 3
