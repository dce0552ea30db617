"""N ranks do what one rank does with the same global batch, and all have the same bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import launch
from trainers.data_parallel import DataParallel, broadcast_tensors, share_of

BATCH = 7


@pytest.mark.parametrize("batch", [1, 2, 7, 16])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 16])
def test_shares_are_the_batch_in_order(batch, size):
    shares = [share_of(batch, rank, size) for rank in range(size)]
    assert [index for share in shares for index in share] == list(range(batch))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def gradients_over_ranks(comm, bucket_bytes):
    """What `average_gradients` gives, however the buckets are cut and whoever cleared them."""
    torch.set_num_threads(1)
    torch.manual_seed(comm.rank)  # parameters differ until they are broadcast
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)
    ).to(memory_format=torch.channels_last)
    net[1].running_mean.fill_(comm.rank + 5.0)
    net[3].bias.requires_grad_(False)
    model = DataParallel(net, comm, bucket_bytes=bucket_bytes)
    model.eval()  # no sums over a batch inside the network
    everyones = torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCH, 1, 8, 8, generator=everyones)
    targets = torch.randn(BATCH, 2, generator=everyones)
    share = share_of(BATCH, comm.rank, comm.size)
    found = []
    for clearing in ("views", "set to none", "foreign"):
        if clearing == "views":
            model.zero_gradients()
        elif clearing == "set to none":
            model.zero_grad(set_to_none=True)
        else:
            for parameter in net.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        mine = slice(share.start, share.stop)
        nn.functional.mse_loss(model(inputs[mine]), targets[mine]).backward()
        model.average_gradients(len(share) / BATCH)
        found.append({n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None})
    norm = model.clip_gradients(1e-3)
    clipped = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]).norm()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    return found, state, norm, clipped.item(), len(model.buckets), model.communication_seconds


def test_gradients_are_those_of_the_global_batch():
    ((alone, *_), state, norm, clipped, buckets, _) = launch.spawn(
        gradients_over_ranks, 1, 32 << 20
    )[0]
    assert buckets == 1
    assert clipped == pytest.approx(1e-3, rel=1e-4)
    assert norm == pytest.approx(
        torch.cat([gradient.flatten() for gradient in alone.values()]).norm().item(), rel=1e-5
    )
    for size, bucket_bytes in ((2, 32 << 20), (3, 200)):
        ranks = launch.spawn(gradients_over_ranks, size, bucket_bytes)
        for found, theirs, their_norm, _, their_buckets, seconds in ranks:
            assert their_buckets == (1 if bucket_bytes > 200 else 2)
            assert seconds > 0
            assert their_norm == ranks[0][2]
            assert all(torch.equal(theirs[name], state[name]) for name in state)
            for gradients in found:
                assert gradients.keys() == alone.keys()
                for name, gradient in gradients.items():
                    torch.testing.assert_close(gradient, alone[name], rtol=1e-4, atol=1e-6)
                    assert torch.equal(gradient, ranks[0][0][0][name]), "ranks differ in bits"


def test_equal_weights_by_default(alone):
    net = nn.Linear(2, 1)
    model = DataParallel(net, alone)
    model(torch.ones(1, 2)).sum().backward()
    model.average_gradients()
    assert torch.equal(net.weight.grad, torch.ones(1, 2))


def test_a_parameter_without_a_gradient_counts_as_zero(alone):
    net = nn.Linear(2, 1)
    model = DataParallel(net, alone)
    model.average_gradients()
    assert torch.equal(net.weight.grad, torch.zeros(1, 2))


def test_broadcast_of_several_types(alone):
    tensors = [torch.ones(2), torch.tensor(3), torch.ones(2, 2, dtype=torch.bfloat16)]
    broadcast_tensors(alone, tensors)
    assert [tensor.sum().item() for tensor in tensors] == [2, 3, 4]
