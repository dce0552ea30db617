"""Models whose gradients travel on devices: emulated ones, or GPUs where the tests are told so.

On emulated devices torch computes on the processor, and what ranks share lies in memory of devices,
whose streams are late. So it shows what is waited for too little, not what CUDA does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from harness.batches import Batch
from harness.device_arrays import emulated_only, environment
from harness.gradients import equal_on_all, gradients_of
from harness.processes import Ranks
from torch import nn

import collectives
from collectives.arrays import family_of
from launch.command_line import main
from trainers import placement
from trainers.bucket_making import _room
from trainers.checkpoints import read_checkpoint
from trainers.configuration import config_from
from trainers.data_parallel import DataParallel
from trainers.errors import ConfigurationError
from trainers.placement import FromHost, Placement, check_placement, moved, placement_of, travels_on
from trainers.sharded import ShardedBucket, ShardedOptimizer
from trainers.sharing import share_of

BATCH = 7
MACHINE = environment("devices=2,seed=5")
CLOSE = {"rtol": 1e-4, "atol": 1e-6}

ranks = Batch({"OMP_NUM_THREADS": "1", **MACHINE})
over_hosts = Batch({"OMP_NUM_THREADS": "1", **MACHINE}, hosts="aab")


def device_of(comm):
    """Where this rank's model is to be; connects the devices."""
    comm.empty((1,), torch.float32, device="cuda")
    return placement_of(comm, "cuda").device


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)
    ).eval()  # no sums over a batch inside the network


def batch():
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCH, 1, 8, 8, generator=random)
    return inputs, torch.randn(BATCH, 2, generator=random)


def backward(net, samples, weight=1.0):
    inputs, targets = samples
    (nn.functional.mse_loss(net(inputs), targets) * weight).backward()


def by_definition():
    """The gradients of the mean over the whole batch, by plain autograd in one process."""
    net = network()
    backward(net, batch())
    return gradients_of(net)


def own(comm, device):
    """This rank's samples, and what its mean loss counts for."""
    share = share_of(BATCH, comm.rank, comm.size)
    mine = slice(share.start, share.stop)
    return [each[mine].to(device) for each in batch()], len(share) * comm.size / BATCH


def on_host(tensors):
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def check_gradients(comm, tolerance=CLOSE, **options):
    device = device_of(comm)
    torch.manual_seed(comm.rank)  # parameters differ until they are broadcast
    net = network().to(device)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += comm.rank
    model = DataParallel(net, comm, **options)
    model.eval()
    assert all(family_of(bucket.sent).on_device for bucket in model.buckets)
    samples, weight = own(comm, device)
    for _ in range(3):
        model.zero_grad()
        backward(model, samples, weight)
        found = on_host(gradients_of(net))
        expected = by_definition()
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], **tolerance)
        equal_on_all(comm, found)
    with model.no_sync():
        backward(model, samples, weight)
    backward(model, samples, weight)
    for name, gradient in on_host(gradients_of(net)).items():
        torch.testing.assert_close(gradient, 3 * expected[name], **_times(3, tolerance))
    times = model.times
    assert times.done >= times.ready > 0
    assert len(times.calls) == (len(model.buckets) if comm.size > 1 else 0)
    assert all(end > begin > 0 for begin, end in times.calls)


def _times(factor, tolerance):
    return {"rtol": tolerance["rtol"], "atol": factor * tolerance["atol"]}


@ranks(1, 3)
def test_gradients_are_those_of_the_global_batch(comm):
    check_gradients(comm)


@over_hosts(3)
def test_gradients_over_hosts(comm):
    check_gradients(comm, bucket_bytes=200)


@ranks(2)
def test_in_several_buckets(comm):
    check_gradients(comm, bucket_bytes=200)
    check_gradients(comm, bucket_bytes=1, unused="zero")


@ranks(2)
def test_in_sixteen_bits(comm):
    largest = max(gradient.abs().max().item() for gradient in by_definition().values())
    rough = {"rtol": 0, "atol": 2 * largest * torch.finfo(torch.bfloat16).eps}
    check_gradients(comm, rough, wire="bfloat16", bucket_bytes=200)


def steps(net, optimizer, samples, weight=1.0, model=None):
    for _ in range(4):
        backward(model or net, samples, weight)
        optimizer.step()
        optimizer.zero_grad()
    return on_host({name: each.detach() for name, each in net.named_parameters()})


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.full)])
def test_sharded_weights_are_those_of_the_whole(size):
    def body():
        with collectives.init(timeout=30) as comm:
            torch.set_num_threads(1)
            device = device_of(comm)
            samples, weight = own(comm, device)
            plain = network()
            kind = {"lr": 1e-2, "fused": True}
            expected = steps(plain, torch.optim.AdamW(plain.parameters(), **kind), batch())
            for shard, wire in (("elements", None), ("parameters", None), ("elements", "bfloat16")):
                net = network().to(device)
                model = DataParallel(net, comm, shard=shard, wire=wire, bucket_bytes=400)
                model.eval()
                optimizer = ShardedOptimizer(model, torch.optim.AdamW, **kind)
                found = steps(net, optimizer, samples, weight, model)
                equal_on_all(comm, found)
                atol = 1e-5 if wire is None else 0.05
                for name, tensor in expected.items():
                    torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=atol)
                assert model.gather_seconds > 0

    outcomes = run(body, size)
    assert [outcome.text for outcome in outcomes] == [""] * size


def run(body, size):
    with Ranks(body, size, environment={"OMP_NUM_THREADS": "1", **MACHINE}) as job:
        return job.outcomes(100)


@emulated_only
@ranks(2)
def test_without_devices_gradients_go_by_the_host(comm):
    assert travels_on(comm, torch.device("cpu")) is None
    model = DataParallel(network(), comm)
    assert not any(family_of(bucket.sent).on_device for bucket in model.buckets)


def test_a_rank_that_dies_in_a_backward_is_named():
    def body():
        with collectives.init("cuda_ipc", timeout=60) as comm:
            device = device_of(comm)
            model = DataParallel(network().to(device), comm, bucket_bytes=200)
            model.eval()
            samples, weight = own(comm, device)
            backward(model, samples, weight)
            if comm.rank == 1:
                last = next(iter(model.module.parameters()))
                last.register_hook(lambda gradient: os.kill(os.getpid(), signal.SIGKILL))
            with contextlib.suppress(RuntimeError):  # the failed backward, said by the next one
                for _ in range(3):
                    backward(model, samples, weight)
            comm.barrier()

    outcomes = run(body, 2)
    assert outcomes[1].code == -signal.SIGKILL
    assert outcomes[0].error == "PeerLostError"
    assert "rank 1" in outcomes[0].text


@emulated_only
def test_a_run_on_devices_is_the_run_on_the_host(settings, tmp_path, runs_of_two, monkeypatch):
    """And goes on there."""
    monkeypatch.setenv("COLLECTIVES_EMULATED_DEVICES", "devices=2,seed=3")
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(settings))
    words = ["train", str(file), "-n", "2", "--set"]
    assert main([*words, "train.device=cuda"]) == 0
    folder, (weights, _) = runs_of_two["super_resolution"]
    run = Path(settings["run"])
    found = read_checkpoint(run)
    assert found.config["train"]["device"] == "cuda"
    for name, tensor in found.part("model").items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-5)
    assert said_losses(run) == pytest.approx(said_losses(folder), rel=1e-4)
    monkeypatch.delenv("COLLECTIVES_EMULATED_DEVICES")
    assert main([*words, "train.device=cpu", "--set", "train.epochs=4", "--resume"]) == 0
    assert read_checkpoint(run).step == 8


def said_losses(run):
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.parametrize("kind", ["settings", "text_settings", "diffusion_settings"])
def test_a_loss_is_computed_where_its_model_is(kind, request):
    """Without memory, but refused where a tensor is on another device."""
    task = config_from(request.getfixturevalue(kind), kind).build()
    model = task.new_model().to("meta")
    task.loss(model, moved(task.samples(0, range(3)), torch.device("meta"))).backward()
    assert all(parameter.grad.device.type == "meta" for parameter in model.parameters())


class Pair(NamedTuple):
    one: torch.Tensor
    other: torch.Tensor


def test_samples_are_moved_however_they_are_put_together():
    x = torch.ones(2)
    found = moved({"a": [x, 5], "b": (x, None), "c": Pair(x, x)}, torch.device("meta"))
    assert type(found["c"]) is Pair
    tensors = [found["a"][0], found["b"][0], *found["c"]]
    assert [each.device.type for each in tensors] == ["meta"] * 4
    assert (found["a"][1], found["b"][1]) == (5, None)


def test_a_model_elsewhere_is_judged_from_the_host():
    seen = []

    class Net(nn.Module):
        def forward(self, x, y):
            seen.append((x.device.type, y.device.type))
            return torch.ones(1), x

    FromHost(Net(), torch.device("cpu"))(torch.ones(1), torch.ones(1))
    assert seen == [("cpu", "cpu")]
    with pytest.raises(NotImplementedError, match="meta"):  # which has nothing to bring back
        FromHost(Net(), torch.device("meta"))(torch.ones(1), torch.ones(1))
    assert seen[1] == ("meta", "meta")
    net = Net()
    on_cpu = Placement(torch.device("cpu"))
    assert on_cpu.from_host(net) is on_cpu.on_host(net) is net


@emulated_only
def test_what_is_missing_for_gpus_is_named(monkeypatch, alone):
    check_placement("cpu")
    assert placement_of(alone, "cpu").device.type == "cpu"
    with pytest.raises(ConfigurationError, match=r"cuda needs (cupy|a torch that is built)"):
        check_placement("cuda")
    monkeypatch.setattr(placement.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"cuda needs cupy.*collectives-runtime\[cuda13\]"):
        check_placement("cuda")
    monkeypatch.setattr(placement.importlib.util, "find_spec", lambda name: "there")
    with pytest.raises(ConfigurationError, match=r"torch that is built with CUDA, found \d+\.\d+"):
        check_placement("cuda")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    with pytest.raises(ConfigurationError, match="expected a GPU of NVIDIA for cuda, found none"):
        check_placement("cuda")
    monkeypatch.setenv("COLLECTIVES_EMULATED_DEVICES", "1")
    check_placement("cuda")


def test_without_arrays_on_devices_gradients_are_staged_and_not_sharded(alone, capfd):
    """A device of which calls know nothing, as a GPU without cupy."""
    elsewhere = torch.device("meta")
    flat, sent = _room(alone, None, torch.float32, elsewhere, 64)
    assert (flat.device, sent.device.type, sent.dtype) == (elsewhere, "cpu", torch.float32)
    assert "gradients on meta are averaged in host memory" in capfd.readouterr().err
    parameters = [nn.Parameter(torch.empty(3, device="meta"))]
    with pytest.raises(ValueError, match=r"shard: expected parameters where arrays.*found .* meta"):
        ShardedBucket(parameters, flat, sent, [64], alone)
