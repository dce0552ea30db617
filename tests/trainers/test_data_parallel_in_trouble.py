"""What DataParallel refuses, and what is left after an error."""

from __future__ import annotations

import os

import pytest
import torch
from harness.batches import Batch
from harness.errors import raising, still_works
from harness.gradients import TwoHeads, equal_on_all, gradients_of
from torch import nn
from torch.utils.checkpoint import checkpoint

import launch
from collectives import PeerLostError
from trainers.data_parallel import DataParallel, UnusedParameterError

ranks = Batch({"OMP_NUM_THREADS": "1"})


@ranks(2)
def test_a_parameter_without_a_gradient_is_named(comm):
    model = DataParallel(TwoHeads(), comm, bucket_bytes=1 << 20)
    names = "no gradient came for heads.11.weight, heads.10.weight, "
    more = ("and 3 more: expected one for every parameter", "unused='zero'")
    with raising(UnusedParameterError, f"rank {comm.rank}: {names}", *more):
        model(torch.ones(1, 2), comm.rank).sum().backward()
    with model.no_sync():
        for head in range(12):
            model(torch.ones(1, 2), head).sum().backward()
    model.zero_grad()  # what was added up is gone
    with raising(UnusedParameterError, "and 3 more"):
        model(torch.ones(1, 2), 0).sum().backward()
    still_works(comm)


@ranks(2)
def test_after_missing_gradients_were_refused(comm):
    """What was under way has ended, and does not write over what comes next."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model = DataParallel(net, comm, bucket_bytes=1)
    for _ in range(3):
        with raising(UnusedParameterError, "0.weight"):
            net[2](net[1](torch.ones(1, 2))).sum().backward()
        model.zero_grad()
        model(torch.full((1, 2), 1.0 + comm.rank)).sum().backward()
        assert net[2].bias.grad.tolist() == [1.0, 1.0]
        equal_on_all(comm, gradients_of(net))
        model.zero_grad()


@ranks(2)
def test_ranks_with_different_models_are_refused(comm):
    def wrapped(change, **options):
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        if comm.rank == 1:
            net = change(net) or net
        DataParallel(net, comm, **options)

    def freeze(net):
        net[1].weight.requires_grad_(False)

    found = (
        "the ranks have different models: rank 0 has 1.weight float32[2, 2], rank 1 has 1.weight"
    )
    with raising(ValueError, f"{found} float32[2, 2], which is not trained"):
        wrapped(freeze)
    with raising(ValueError, "rank 0 has 1.bias float32[2], rank 1 has nothing more"):
        wrapped(lambda net: nn.Sequential(net[0], nn.Linear(2, 2, bias=False)))
    with raising(ValueError, "rank 0 has bucket_bytes= 7, rank 1 has bucket_bytes= 8"):
        wrapped(lambda net: None, bucket_bytes=7 + comm.rank)
    still_works(comm)


class Broken(torch.autograd.Function):
    """Whose backward fails."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        raise ArithmeticError("on purpose")


@ranks(2)
def test_after_a_backward_that_failed(comm):
    """Nothing has been sent: it may be done anew. Else the ranks may differ."""
    for bucket_bytes in (1 << 20, 1):
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model = DataParallel(net, comm, bucket_bytes=bucket_bytes)
        with raising(ArithmeticError, "on purpose"):
            net[1](Broken.apply(net[0](torch.ones(1, 2)))).sum().backward()
        if bucket_bytes == 1:
            words = "raised an error after it had begun to communicate"
            with raising(RuntimeError, words):
                model(torch.ones(1, 2))
        model.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        assert net[1].bias.grad.tolist() == [1.0, 1.0]


@ranks(2)
def test_the_error_of_another_rank_comes_out_of_backward(comm):
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    model = DataParallel(net, comm, bucket_bytes=1)
    if comm.rank == 1:
        comm.abort(LookupError("on purpose"))
        return
    from collectives import AbortedError

    with raising(AbortedError, "rank 1 raised LookupError"):
        model(torch.ones(1, 8)).sum().backward()


def short_by_a_step(comm, net, lost):
    """Ranks of which one leaves, or fails, when the others have a step left."""
    model = DataParallel(net(), comm, bucket_bytes=1)
    for _ in range(2 + comm.rank):
        model(torch.ones(2, 8)).sum().backward()
    if lost:
        os._exit(3)


def chain():
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))


def with_buffers():
    return nn.Sequential(chain(), nn.BatchNorm1d(8))


@pytest.mark.parametrize("net", [chain, with_buffers])
def test_a_rank_that_has_fewer_steps_is_hinted_at(net):
    with pytest.raises(PeerLostError, match=r"rank 0 .*closed its communicator") as caught:
        launch.spawn(short_by_a_step, 2, net, False)
    told = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "if ranks have unequal numbers of steps" in told
    assert "model.contribute_nothing(), the others" in told


def test_a_rank_that_failed_has_no_such_excuse():
    with pytest.raises(launch.RankFailedError, match="exit code 3") as caught:
        launch.spawn(short_by_a_step, 2, chain, True)
    told = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "unequal" not in told


def test_nested_backwards_are_refused(alone):
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model = DataParallel(net, alone, unused="zero")
    x = torch.ones(1, 2, requires_grad=True)
    with pytest.raises(
        RuntimeError, match=r"nested backwards \(checkpointing with use_reentrant=T"
    ):
        net[1](checkpoint(net[0], x, use_reentrant=True)).sum().backward()
    model(torch.ones(1, 2)).sum().backward()


def test_a_model_that_is_wrapped_already_is_refused(alone):
    net = nn.Linear(2, 2)
    model = DataParallel(net, alone)
    with pytest.raises(
        ValueError, match=r"weight: expected a parameter of no other DataParallel, "
    ):
        DataParallel(nn.Sequential(net), alone)
    del model
    DataParallel(net, alone)


@pytest.mark.parametrize("before", [True, False])
def test_what_is_trained_may_not_change(alone, before):
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(before)
    model = DataParallel(net, alone)
    net[0].requires_grad_(not before)
    expected = f"0.weight: expected requires_grad {before}, as when the model was wrapped, found"
    with pytest.raises(RuntimeError, match=expected):
        model(torch.ones(1, 2)).sum().backward()


def test_sparse_gradients_are_refused(alone):
    net = nn.Embedding(4, 2, sparse=True)
    model = DataParallel(net, alone)
    with pytest.raises(
        TypeError, match=r"weight: expected a dense gradient, found one of torch.sp"
    ):
        model(torch.tensor([1])).sum().backward()


@pytest.mark.parametrize(
    ("net", "options", "error", "message"),
    [
        (nn.Flatten(), {}, ValueError, "parameters to train, found none"),
        (nn.Linear(2, 2), {"unused": "ignore"}, ValueError, "'error' or 'zero', found 'ignore'"),
        (nn.Linear(2, 2), {"wire": torch.float32}, TypeError, "torch.bfloat16, found torch.float3"),
        (nn.Linear(2, 2), {"wire": "half"}, TypeError, "torch.bfloat16, found 'half'"),
        (nn.Linear(2, 2), {"bucket_bytes": 0}, ValueError, "bucket_bytes: expected 1 or more"),
        (
            nn.ParameterDict({"imaginary": nn.Parameter(torch.zeros(2, dtype=torch.complex64))}),
            {},
            TypeError,
            "imaginary: expected one of torch.float16, .*, found torch.complex64",
        ),
    ],
)
def test_what_is_refused(alone, net, options, error, message):
    with pytest.raises(error, match=message):
        DataParallel(net, alone, **options)


@pytest.mark.parametrize("samples", [4, -1])
def test_a_weight_of_more_samples_than_there_are_is_refused(alone, samples):
    model = DataParallel(nn.Linear(2, 2), alone)
    with pytest.raises(ValueError, match=f"samples: expected 0 to 3, .* found {samples}"):
        model.weight(samples, 3)
    assert model.weight(0, 0) == 0
