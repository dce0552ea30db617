"""Sharded, a run is what it is whole: the same weights, a part of the memory on each rank."""

from __future__ import annotations

import pytest
import torch
from harness.batches import Batch
from harness.errors import raising
from torch import nn

from trainers.data_parallel import DataParallel
from trainers.optimization import OrthogonalMomentum
from trainers.sharded import ShardedOptimizer, own_memory, shared_out
from trainers.sharing import share_of

BATCH = 6

ranks = Batch({"OMP_NUM_THREADS": "1"})


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(5 * 36, 7),
        nn.Tanh(),
        nn.Linear(7, 3),
    ).to(memory_format=torch.channels_last)


def batch(step):
    everyones = torch.Generator().manual_seed(step)
    inputs = torch.randn(BATCH, 1, 8, 8, generator=everyones)
    return inputs, torch.randn(BATCH, 3, generator=everyones)


def decay(name, parameter):
    return {"weight_decay": 0.1 if parameter.ndim >= 2 else 0.0}


def by_definition(kind, options, *, steps=4, clip=None):
    """The weights after some steps of plain torch, on the whole batch."""
    net = network()
    if kind is torch.optim.AdamW:
        groups = [
            {"params": [p for p in net.parameters() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
    else:
        groups = list(net.parameters())
    optimizer = kind(groups, **options)
    for step in range(steps):
        inputs, targets = batch(step)
        optimizer.zero_grad()
        nn.functional.mse_loss(net(inputs), targets).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
    return net.state_dict()


def check_steps(comm, shard, kind, options, *, group=None, clip=None, accumulate=False, **model_):
    net = network()
    model = DataParallel(net, comm, shard=shard, **model_)
    optimizer = ShardedOptimizer(model, kind, **({"group": group} if group else {}), **options)
    share = share_of(BATCH, comm.rank, comm.size)
    for step in range(4):
        inputs, targets = (each[share.start : share.stop] for each in batch(step))
        optimizer.zero_grad()
        if accumulate:
            half = len(share) // 2
            with model.no_sync():
                loss = nn.functional.mse_loss(model(inputs[:half]), targets[:half])
                (loss * model.weight(half, BATCH)).backward()
            loss = nn.functional.mse_loss(model(inputs[half:]), targets[half:])
            (loss * model.weight(len(share) - half, BATCH)).backward()
        else:
            loss = nn.functional.mse_loss(model(inputs), targets)
            (loss * model.weight(len(share), BATCH)).backward()
        assert all(parameter.grad is None for parameter in net.parameters())
        if clip is not None:
            model.clip_gradients(clip)
        optimizer.step()
    wire = "wire" in model_
    for name, tensor in by_definition(kind, options, clip=clip).items():
        found = net.state_dict()[name]
        close = {"rtol": 1e-2, "atol": 1e-3} if wire else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(found, tensor, **close)
        bits = found.numpy().tobytes()
        assert all(other == bits for other in comm.allgather_object(bits)), "ranks differ in bits"
    return model, optimizer


@ranks(1, 2, 3)
def test_weights_are_those_of_the_whole(comm):
    adam = {"lr": 1e-2}
    for bucket_bytes in (1, 1000, 1 << 20):
        options = {"group": decay, "bucket_bytes": bucket_bytes}
        check_steps(comm, "elements", torch.optim.AdamW, adam, **options)
    check_steps(comm, "elements", torch.optim.AdamW, adam, group=decay, clip=1e-2)
    # Not Adam, which makes as much of a gradient that is all rounding as of any other.
    check_steps(comm, "elements", torch.optim.SGD, {"lr": 0.1}, wire=torch.bfloat16)


@ranks(1, 2)
def test_several_backwards_are_averaged_once(comm):
    options = {"group": decay, "accumulate": True, "bucket_bytes": 1000}
    check_steps(comm, "elements", torch.optim.AdamW, {"lr": 1e-2}, **options)


class OfMatrices(OrthogonalMomentum):
    """Which needs a parameter whole; of vectors it takes none."""

    def __init__(self, parameters, **options):
        every = [
            p for each in parameters for p in (each["params"] if type(each) is dict else [each])
        ]
        super().__init__([p for p in every if p.ndim >= 2] or [torch.zeros(1, 1)], **options)


@ranks(1, 2, 3)
def test_whole_parameters_for_optimizers_that_need_them(comm):
    for bucket_bytes in (1, 1 << 20):
        model, _ = check_steps(
            comm, "parameters", OfMatrices, {"rate": 1e-2, "momentum": 0.9},
            bucket_bytes=bucket_bytes,
        )  # fmt: skip
        shapes = {model.names[p]: p.shape for p in model.module.parameters()}
        assert all(piece.shape == shapes[name] for name, piece in model.pieces.items())
        everyones = comm.allgather_object(list(model.pieces))
        assert sorted(name for names in everyones for name in names) == sorted(shapes)


@ranks(2, 3)
def test_a_rank_remembers_its_part(comm):
    net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    for bucket_bytes in (1 << 20, 20_000):
        model = DataParallel(net, comm, shard="elements", bucket_bytes=bucket_bytes)
        optimizer = ShardedOptimizer(model, torch.optim.Adam)
        model(torch.ones(1, 64)).sum().backward()
        optimizer.step()
        kept = sum(
            memory.numel() for state in optimizer.state.values() for memory in state.values()
            if memory.numel() > 1
        )  # fmt: skip
        whole = 2 * sum(parameter.numel() for parameter in net.parameters())
        assert kept == pytest.approx(whole / comm.size, rel=0.02)
        del model, optimizer  # a parameter has one DataParallel at a time


@ranks(2)
def test_a_rank_may_have_nothing_to_move(comm):
    net = nn.Linear(3, 3, bias=False)
    model = DataParallel(net, comm, shard="parameters")
    optimizer = ShardedOptimizer(model, torch.optim.SGD, lr=1.0)
    before = net.weight.detach().clone()
    model(torch.full((1, 3), 1.0 + comm.rank)).sum().backward()
    optimizer.step()
    assert len(model.pieces) == (comm.rank == 0)
    torch.testing.assert_close(net.weight.detach(), before - 1.5)


@ranks(2)
def test_rates_follow_a_schedule(comm):
    net = nn.Linear(2, 1, bias=False)
    model = DataParallel(net, comm, shard="elements")
    optimizer = ShardedOptimizer(model, torch.optim.SGD, lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    before = net.weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(net.weight.detach(), before - 1.5)


def moved(comm, shard="elements", **options):
    """A layer of one output, its model and an optimizer that subtracts the gradient."""
    net = nn.Linear(64, 1, bias=False)
    model = DataParallel(net, comm, shard=shard, **options)
    return net, model, ShardedOptimizer(model, torch.optim.SGD, lr=1.0)


@ranks(2)
def test_gradients_are_added_up_until_they_are_zeroed(comm):
    for wire in (None, torch.bfloat16):
        net, model, optimizer = moved(comm, wire=wire)
        before = net.weight.detach().clone()
        for times in (1, 2):
            optimizer.zero_grad()
            for _ in range(times):
                model(torch.ones(1, 64)).sum().backward()
            optimizer.step()
        torch.testing.assert_close(net.weight.detach(), before - 3)
        optimizer.zero_grad()
        optimizer.step()  # with no gradient: moves nothing
        torch.testing.assert_close(net.weight.detach(), before - 3)
        del net, model, optimizer


@ranks(2)
def test_weights_written_from_outside_stay(comm):
    net, model, optimizer = moved(comm)
    net.load_state_dict({"weight": torch.full((1, 64), 7.0)})
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    assert net.weight.tolist() == [[6.0] * 64]


@ranks(2)
def test_an_optimizer_takes_back_its_state(comm):
    net = nn.Linear(64, 1, bias=False)
    model = DataParallel(net, comm, shard="elements")
    kind = torch.optim.SGD
    first = ShardedOptimizer(model, kind, lr=1.0, momentum=0.5)
    model(torch.ones(1, 64)).sum().backward()
    first.step()
    again = ShardedOptimizer(model, kind, lr=9.0, momentum=0.5)
    again.load_state_dict(first.state_dict())
    before = net.weight.detach().clone()
    again.zero_grad()
    model(torch.ones(1, 64)).sum().backward()
    again.step()
    torch.testing.assert_close(net.weight.detach(), before - 1.5)  # the rate and the momentum


@ranks(2)
def test_groups_are_alike_on_all_ranks(comm):
    net = nn.Sequential(nn.Linear(64, 64, bias=False), nn.LayerNorm(4))
    model = DataParallel(net, comm, shard="parameters", unused="zero")
    optimizer = ShardedOptimizer(model, torch.optim.AdamW, decay, lr=1.0)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda n: 0.5, lambda n: 0.25])
    assert schedule.get_last_lr() == [0.5, 0.25]
    net[0](torch.ones(1, 64)).sum().backward()
    optimizer.step()


@ranks(2)
def test_what_is_taken_back_is_no_view_of_the_whole(comm):
    _, model, _ = moved(comm)
    memory = own_memory(model, "weight", torch.arange(64.0).reshape(1, 64))
    assert memory.tolist() == list(range(32 * comm.rank, 32 * comm.rank + 32))
    assert memory.untyped_storage().nbytes() == 32 * 4


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_whole_parameters_are_shared_out_evenly(size):
    loads = [0] * size
    for sizes in ([100, 300, 200], [64] * 7, [1, 1, 500]):
        parameters = [nn.Parameter(torch.zeros(each)) for each in sizes]
        theirs, counts = shared_out(parameters, 2000, "parameters", loads)
        assert sorted(p.numel() for p in theirs) == sorted(sizes)
        assert len(counts) == size
        assert sum(counts) == 2000
    assert max(loads) - min(loads) <= 512
    assert sum(loads) == 112 + 304 + 208 + 64 * 7 + 16 + 16 + 512


@ranks(1, 2)
def test_an_optimizer_that_moves_nothing_is_noticed(comm):
    net = nn.Linear(64, 1, bias=False)
    model = DataParallel(net, comm, shard="elements")
    plain = torch.optim.SGD(net.parameters(), lr=1.0)
    x = torch.ones(1, 64)
    with model.no_sync():
        for _ in range(2):
            model(x).sum().backward()
    loss = model(x).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    plain.step()
    with torch.no_grad():
        model(x)
    model.eval()
    model(x)
    model.train()
    with raising(RuntimeError, "expected a ShardedOptimizer", "clip by model.clip_gradients"):
        model(x)
    optimizer = ShardedOptimizer(model, torch.optim.SGD, lr=1.0)
    for _ in range(2):  # and no step between: added up
        model(x).sum().backward()
    before = net.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(net.weight.detach(), before - 6)


@ranks(1)
def test_what_is_refused(comm):
    with raising(ValueError, "shard: expected 'elements', 'parameters' or None, found 'halves'"):
        DataParallel(nn.Linear(2, 2), comm, shard="halves")
    with raising(
        ValueError, "expected a model that is sharded (shard='elements'), found one whole"
    ):
        ShardedOptimizer(DataParallel(nn.Linear(2, 2), comm), torch.optim.SGD, lr=1.0)
    model = DataParallel(nn.Linear(2, 2), comm, shard="elements")
    made = torch.optim.SGD(model.parameters(), lr=1.0)
    with raising(TypeError, "the optimizer's class (torch.optim.SGD), whose options follow, found"):
        ShardedOptimizer(model, made)
    with raising(NotImplementedError, "a sharded optimizer takes no closure"):
        ShardedOptimizer(model, torch.optim.SGD, lr=1.0).step(lambda: 0.0)
