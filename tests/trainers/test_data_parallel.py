"""N ranks do what one rank does with the same global batch, and all have the same bits."""

from __future__ import annotations

import contextlib
import gc
import weakref

import pytest
import torch
from harness.batches import Batch
from harness.errors import still_works
from harness.gradients import TwoHeads, equal_on_all, gradients_of
from torch import nn

from trainers.data_parallel import DataParallel
from trainers.sharing import broadcast_tensors, share_of

BATCH = 7

ranks = Batch({"OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("batch", [1, 2, 7, 16])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 16])
def test_shares_are_the_batch_in_order(batch, size):
    shares = [share_of(batch, rank, size) for rank in range(size)]
    assert [index for share in shares for index in share] == list(range(batch))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def network():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)
    ).to(memory_format=torch.channels_last)
    net[3].bias.requires_grad_(False)
    return net


def batch():
    everyones = torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCH, 1, 8, 8, generator=everyones)
    return inputs, torch.randn(BATCH, 2, generator=everyones)


def by_definition():
    """The gradients of the mean over the whole batch, by plain autograd on one process."""
    torch.manual_seed(0)
    net = network()
    net.eval()  # no sums over a batch inside the network
    inputs, targets = batch()
    nn.functional.mse_loss(net(inputs), targets).backward()
    return gradients_of(net)


def check_gradients(comm, buckets, wire=None, **options):
    """What backwards give, whoever cleared the gradients before."""
    torch.manual_seed(comm.rank)  # parameters differ until they are broadcast
    net = network()
    net[1].running_mean.fill_(float(comm.rank))
    model = DataParallel(net, comm, wire=wire, **options)
    assert len(model.buckets) == buckets
    assert str(model.plan).startswith(f"{buckets} bucket")
    model.eval()
    expected = by_definition()
    tolerance = {"rtol": 1e-4, "atol": 1e-6}
    if wire is not None:
        # Each rank's part is rounded, then the sum, all of them below the largest gradient.
        largest = max(gradient.abs().max().item() for gradient in expected.values())
        tolerance = {"rtol": 0, "atol": 2 * largest * torch.finfo(wire).eps}
    inputs, targets = batch()
    share = share_of(BATCH, comm.rank, comm.size)
    mine = slice(share.start, share.stop)
    for clearing in ("never set", "set to none", "foreign", "zeroed"):
        if clearing == "set to none":
            model.zero_grad()
        elif clearing == "foreign":
            for parameter in net.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        elif clearing == "zeroed":
            model.zero_grad(set_to_none=False)
        loss = nn.functional.mse_loss(model(inputs[mine]), targets[mine])
        (loss * model.weight(len(share), BATCH)).backward()
        found = gradients_of(net)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], **tolerance)
        equal_on_all(comm, found)
    times = model.times
    assert times.done >= times.ready > 0
    assert len(times.calls) == (buckets if comm.size > 1 else 0)
    assert all(end > begin > 0 for begin, end in times.calls)
    norm = model.clip_gradients(1e-3)
    whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm().item()
    assert norm == pytest.approx(whole, rel=1e-5 if wire is None else 1e-2)
    clipped = torch.cat([gradient.flatten() for gradient in gradients_of(net).values()]).norm()
    assert clipped.item() == pytest.approx(1e-3, rel=1e-4)
    assert net[1].running_mean.sum() == 0
    equal_on_all(comm, net.state_dict())


@ranks(1, 2, 3)
def test_gradients_are_those_of_the_global_batch(comm):
    check_gradients(comm, buckets=1, bucket_bytes=1 << 20)


@ranks(2, 3)
def test_however_the_buckets_are_cut(comm):
    check_gradients(comm, buckets=3, bucket_bytes=200)
    check_gradients(comm, buckets=5, bucket_bytes=1)


@ranks(2, 3)
def test_gradients_travel_in_16_bits(comm):
    check_gradients(comm, buckets=2, wire=torch.bfloat16, bucket_bytes=200)
    check_gradients(comm, buckets=1, wire=torch.float16, bucket_bytes=1 << 20)
    assert DataParallel(nn.Linear(1, 1), comm, wire="bfloat16").buckets[0].is_narrowed


@ranks(2)
def test_a_sum_in_16_bits_is_of_float32_and_rounded_once(comm):
    """1 + 2^-8 is halfway between two bfloat16; what is below is lost if ranks round before."""
    net = nn.Linear(1, 1, bias=False)
    model = DataParallel(net, comm, wire=torch.bfloat16)
    value = (2.0, 2.0**-7 * 1.5)[comm.rank]  # exact in bfloat16, their mean is not
    model(torch.tensor([[value]])).sum().backward()
    mean = torch.tensor((2.0 + 2.0**-7 * 1.5) / 2, dtype=torch.float64)
    assert net.weight.grad.item() == mean.to(torch.bfloat16).item()
    # Beyond what float16 holds is the sum, not the mean.
    net = nn.Linear(1, 1, bias=False)
    model = DataParallel(net, comm, wire=torch.float16)
    model(torch.tensor([[60000.0]])).sum().backward()
    assert net.weight.grad.item() == pytest.approx(60000, rel=1e-3)


@ranks(2)
def test_gradients_of_several_backwards_are_averaged_once(comm):
    torch.manual_seed(0)
    net = network()
    model = DataParallel(net, comm, bucket_bytes=200)
    model.eval()
    inputs, targets = batch()
    for index in range(comm.rank, BATCH, comm.size):  # one of them has more than the other
        last = index + comm.size >= BATCH
        with contextlib.nullcontext() if last else model.no_sync():
            loss = nn.functional.mse_loss(model(inputs[index, None]), targets[index, None])
            (loss * model.weight(1, BATCH)).backward()
    for name, gradient in by_definition().items():
        torch.testing.assert_close(gradients_of(net)[name], gradient, rtol=1e-4, atol=1e-6)


@ranks(3)
def test_a_rank_without_samples_takes_part(comm):
    for ask in (True, False):
        net = nn.Linear(1, 1, bias=False)
        model = DataParallel(net, comm)
        found = []
        for samples in ([[1.0], [2.0], [3.0], [5.0]], [[7.0]]):  # enough for all, and not
            mine = samples[comm.rank :: comm.size]
            weight = model.weight(len(mine), None if ask else len(samples))
            if mine:
                (model(torch.tensor(mine)).mean() * weight).backward()
            else:
                model.contribute_nothing()
            found.append(net.weight.grad.item())
            model.zero_grad()
        assert found == pytest.approx([11 / 4, 7.0])


@ranks(2)
def test_a_parameter_without_a_gradient_counts_as_zero_if_asked(comm):
    net = TwoHeads()
    model = DataParallel(net, comm, unused="zero", bucket_bytes=1)
    model(torch.ones(1, 2), comm.rank).sum().backward()
    # A mean over two ranks, of which one has it; what none has is left as torch leaves it.
    assert net.gradients() == [[[0.5, 0.5]]] * 2 + [None] * 10
    model.zero_grad()
    with model.no_sync():
        model(torch.ones(1, 2), comm.rank).sum().backward()
    model(torch.ones(1, 2), 2).sum().backward()
    assert net.gradients() == [[[0.5, 0.5]]] * 2 + [[[1.0, 1.0]]] + [None] * 9


def decayed(net, model, use):
    """The heads of a network after two steps by an optimizer that moves whatever has a gradient."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    for step in range(2):
        use(model, step)
        optimizer.step()
        optimizer.zero_grad()
    return net.state_dict()


@ranks(1, 2, 3)
def test_what_no_rank_has_used_does_not_move(comm):
    """As on one process by plain torch; each rank uses another head in each step."""
    torch.manual_seed(0)
    net = TwoHeads()
    plain = TwoHeads()
    plain.load_state_dict(net.state_dict())
    x = torch.ones(1, 2)

    def use_all(model, step):
        mean = sum(model(x, rank + step).sum() for rank in range(comm.size)) / comm.size
        mean.backward()

    expected = decayed(plain, plain, use_all)
    for options in ({"bucket_bytes": 1}, {}, {"wire": torch.bfloat16}):
        again = TwoHeads()
        again.load_state_dict(net.state_dict())
        model = DataParallel(again, comm, unused="zero", **options)
        found = decayed(again, model, lambda m, s: m(x, comm.rank + s).sum().backward())
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
        assert torch.equal(found["heads.11.weight"], net.state_dict()["heads.11.weight"])
        equal_on_all(comm, found)
        model(x, 0).sum().backward()
        assert model.clip_gradients(9.0) == pytest.approx(2**0.5)  # no mark is in the norm


@ranks(2)
def test_gradients_that_are_there_are_added_to(comm):
    """By a second backward before a step, whether a gradient comes in it or not."""

    def averaged(second):
        net = TwoHeads()
        model = DataParallel(net, comm, unused="zero", bucket_bytes=1)
        model(torch.full((1, 2), 1.0 + comm.rank), 0).sum().backward()
        second(model)
        return net.gradients()[0]

    x = torch.ones(1, 2)
    assert averaged(lambda model: model(x, 1).sum().backward()) == [[1.5, 1.5]]
    assert averaged(lambda model: model(x, comm.rank).sum().backward()) == [[2.0, 2.0]]
    one = lambda model: (  # noqa: E731
        model.contribute_nothing() if comm.rank else model(x, 0).sum().backward()
    )
    assert averaged(one) == [[2.0, 2.0]]


@ranks(2)
def test_nothing_is_contributed_where_nothing_is_averaged(comm):
    model = DataParallel(nn.Linear(2, 1), comm)
    if comm.rank == 0:
        with model.no_sync():
            model.contribute_nothing()
    still_works(comm)


@ranks(2)
def test_clipping_takes_in_gradients_that_were_replaced(comm):
    net = nn.Linear(2, 1, bias=False)
    model = DataParallel(net, comm)
    model(torch.ones(1, 2)).sum().backward()
    net.weight.grad = net.weight.grad * 8
    assert model.clip_gradients(1.0) == pytest.approx(8 * 2**0.5)
    assert net.weight.grad.norm().item() == pytest.approx(1.0)


@ranks(2)
def test_buffers_are_not_sent_where_a_rank_may_be_alone(comm):
    net = nn.BatchNorm1d(1)
    net.register_buffer("constant", torch.zeros(1), persistent=False)
    model = DataParallel(net, comm)
    if comm.rank == 0:
        with model.no_sync():
            model(torch.tensor([[0.0], [2.0]])).sum().backward()
    net.constant.fill_(float(comm.rank))
    model(torch.tensor([[0.0], [2.0]])).sum().backward()
    assert net.running_mean.item() == pytest.approx(0.19)
    assert net.constant.item() == comm.rank
    still_works(comm)


@ranks(2)
def test_buffers_are_rank_0s_at_each_forward_that_trains(comm):
    # mean <- 0.9 mean + 0.1 batch mean: rank 0's batches have mean 0, rank 1's 0.5, then all 1.
    expected = {True: (0.1, 0.9 * 0.05 + 0.1), False: (0.1, 0.9 * (0.9 * 0.05 + 0.05) + 0.1)}
    for sent, means in expected.items():
        net = nn.BatchNorm1d(1)
        model = DataParallel(net, comm, broadcast_buffers=sent)
        for _ in range(2):
            model(torch.tensor([[0.0], [float(comm.rank)]])).sum().backward()
        with torch.no_grad():
            model(torch.ones(2, 1))
        with model.no_sync():
            model.eval()
            model(torch.ones(2, 1))
        assert net.running_mean.item() == pytest.approx(means[comm.rank])
        assert int(net.num_batches_tracked) == 3


def check_compiled(comm, backend):
    inputs, targets = batch()
    found = []
    for how in ("eager", "module", "wrapper"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, 2))
        module = torch.compile(net, backend=backend) if how == "module" else net
        model = DataParallel(module, comm, bucket_bytes=1)
        called = torch.compile(model, backend=backend) if how == "wrapper" else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            loss = nn.functional.mse_loss(called(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(loss.item())
        assert len(model.buckets) == 4
        names = sorted(model.names.values())
        assert names == ["1.bias", "1.weight", "3.bias", "3.weight"]
    assert found == pytest.approx(found[:1] * 3, rel=1e-6)


@ranks(2)
def test_compiled_is_eager(comm):
    check_compiled(comm, "aot_eager")


by_inductor = Batch({"OMP_NUM_THREADS": "1"})


@pytest.mark.full
@by_inductor(2)
def test_compiled_by_inductor_is_eager(comm):
    check_compiled(comm, "inductor")


@ranks(2)
def test_autocast(comm):
    net = nn.Linear(8, 8)
    model = DataParallel(net, comm)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.full((1, 8), 1.0 + comm.rank))
    output.float().sum().backward()
    gradient = net.weight.grad
    assert (output.dtype, gradient.dtype, gradient[0, 0].item()) == (
        *(torch.bfloat16, torch.float32),
        1.5,
    )


@ranks(2)
def test_every_type_has_buckets_of_its_own(comm):
    net = nn.Sequential(nn.Linear(2, 2).double(), nn.Linear(2, 2), nn.Linear(2, 2).bfloat16())
    model = DataParallel(net, comm)
    x = torch.full((1, 2), 1.0 + comm.rank)
    (net[0](x.double()).sum() + net[1](x).sum() + net[2](x.bfloat16()).sum()).backward()
    types = [bucket.flat.dtype for bucket in model.buckets]
    assert types == [torch.bfloat16, torch.float32, torch.float64]
    assert [layer.weight.grad[0, 0].item() for layer in net] == [1.5] * 3


def test_a_model_dies_with_its_last_reference(alone):
    net = nn.Linear(2, 2)
    model = DataParallel(net, alone)
    model(torch.ones(1, 2)).sum().backward()
    dead = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert dead() is None
    finally:
        gc.enable()
    net(torch.ones(1, 2)).sum().backward()  # its hooks are there still, and do nothing
    assert net.weight.grad.tolist() == [[2.0, 2.0]] * 2


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")  # of a circle it makes
def test_a_graph_that_is_kept_may_be_gone_through_again(alone):
    net = nn.Linear(2, 1, bias=False)
    loss = DataParallel(net, alone)(torch.ones(1, 2)).sum()
    loss.backward(retain_graph=True)
    loss.backward(create_graph=True)
    assert net.weight.grad.tolist() == [[2.0, 2.0]]
    assert not net.weight.grad.requires_grad


def test_broadcast_of_several_types(alone):
    tensors = [torch.ones(2), torch.tensor(3), torch.ones(2, 2, dtype=torch.bfloat16)]
    broadcast_tensors(alone, tensors)
    assert [tensor.sum().item() for tensor in tensors] == [2, 3, 4]
