"""What averages lives until the backward is done, nobody keeping the model; and a network is plain.

Whatever else is done with the network: it is copied, pickled, saved, wrapped anew.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import weakref
from dataclasses import dataclass

import pytest
import torch
from harness.batches import Batch
from harness.errors import raising, still_works
from harness.gradients import TwoHeads
from torch import nn

import launch
from trainers.data_parallel import DataParallel, UnusedParameterError

ranks = Batch({"OMP_NUM_THREADS": "1"})


@dataclass
class Answer:
    """What a forward may give, as those of well-known models do."""

    logits: torch.Tensor
    note: str = "none"


class Odd:
    """What nothing is known of."""

    def __init__(self, logits):
        self.logits = logits


class Giving(nn.Module):
    """One weight, whose product comes out in whatever `form` makes of it."""

    def __init__(self, form):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self._form = form

    def forward(self, x):
        return self._form(x * self.weight)


FORMS = {
    "tensor": (lambda y: y, lambda out: out),
    "dict of lists": (lambda y: {"a": [None, y]}, lambda out: out["a"][1]),
    "dataclass": (Answer, lambda out: out.logits),
    "unknown": (Odd, lambda out: out.logits),
}


@ranks(2)
def test_a_model_that_nobody_keeps_averages(comm):
    for name, (form, logits) in FORMS.items():
        net = Giving(form)

        def loss_of(net, logits=logits):
            output = DataParallel(net, comm)(torch.full((1,), 1.0 + comm.rank))
            return logits(output).sum()

        loss = loss_of(net)
        gc.collect()
        loss.backward()
        assert net.weight.grad.item() == 1.5, name
    net = TwoHeads()
    with raising(UnusedParameterError, "heads.11.weight"):
        DataParallel(net, comm)(torch.ones(1, 2), 0).sum().backward()
    still_works(comm)


@pytest.mark.parametrize("form", FORMS)
def test_it_goes_with_its_last_loss(alone, form):
    form, logits = FORMS[form]
    net = Giving(form)
    model = DataParallel(net, alone)
    averaging = weakref.ref(model._averaging)
    output = model(torch.ones(1))
    logits(output).sum().backward()
    with torch.no_grad():
        judged = model(torch.ones(1))
    gc.disable()
    try:
        del model
        assert averaging() is not None, "the graph may be gone through again"
        with pytest.raises(ValueError, match="it lives as long as a loss of its does"):
            DataParallel(net, alone)
        del output
        assert averaging() is None
    finally:
        gc.enable()
    assert judged is not None
    DataParallel(net, alone)


def test_a_network_that_keeps_its_output_can_be_collected(alone):
    net = Giving(lambda y: y)
    model = DataParallel(net, alone)
    net.last = model(torch.ones(1))
    dead = weakref.ref(model._averaging)
    del net, model
    gc.collect()
    assert dead() is None


KEPT_TO_THE_END = """
import collectives, torch
from trainers.data_parallel import DataParallel
with collectives.init() as comm:
    model = DataParallel(torch.nn.Linear(1, 1), comm)
    loss = model(torch.ones(1, 1)).sum()
"""


def test_a_loss_that_is_there_at_the_end_of_a_program_leaks_nothing():
    command = [sys.executable, "-c", KEPT_TO_THE_END]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_model_that_nobody_keeps_is_an_error(alone, fullgraph):
    """A graph of torch.compile cannot keep it."""
    net = nn.Linear(1, 1, bias=False)

    def loss_of(model):
        return torch.compile(model, backend="aot_eager", fullgraph=fullgraph)(torch.ones(1, 1))

    model = DataParallel(net, alone)
    for _ in range(2):
        loss_of(model).sum().backward()
    del model
    net(torch.ones(1, 1)).sum().backward()  # alone, after the last backward of the model
    assert net.weight.grad.item() == 3
    torch.compiler.reset()
    loss = loss_of(DataParallel(net, alone))
    gc.collect()
    with pytest.raises(RuntimeError, match="must be kept, or its gradients are not averaged"):
        loss.sum().backward()


def test_hooks_do_not_pile_up(alone):
    net = nn.Linear(1, 1, bias=False)
    for _ in range(3):
        DataParallel(net, alone)(torch.ones(1, 1)).sum().backward()
    assert len(net.weight._post_accumulate_grad_hooks) == 1


def check_plain(net, expected):
    """Passes if it has the weights, and no hook."""
    assert type(net) is nn.Linear
    assert net.weight.tolist() == expected
    assert not net.weight._post_accumulate_grad_hooks
    assert not net.weight.__dict__


@pytest.mark.parametrize("shard", [None, "elements"])
def test_a_wrapped_network_is_saved_and_copied_as_a_plain_one(alone, shard):
    net = nn.Linear(2, 1, bias=False)
    model = DataParallel(net, alone, shard=shard)
    model(torch.ones(1, 2)).sum().backward()
    expected = net.weight.tolist()
    check_plain(pickle.loads(pickle.dumps(net)), expected)
    check_plain(copy.deepcopy(net), expected)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    check_plain(torch.load(file, weights_only=False), expected)


def wrapped(comm):
    net = nn.Linear(2, 1, bias=False)
    net.weight.data.fill_(comm.rank)
    model = DataParallel(net, comm)
    model(torch.ones(1, 2)).sum().backward()
    return net


def test_a_wrapped_network_comes_back_from_a_rank():
    for net in launch.spawn(wrapped, 2):
        check_plain(net, [[0.0, 0.0]])
