"""Libraries on arrays of devices: to the device and back, and what they say they do not carry."""

from __future__ import annotations

import importlib
import os
from types import SimpleNamespace

import numpy as np
import pytest

from collectives.bench.cases import Case, NotCarried
from collectives.bench.libraries import torch_distributed
from collectives.bench.libraries.limit import Limit
from collectives.bench.libraries.limit_on_devices import LimitOnDevices
from collectives.bench.libraries.ours_on_devices import OursOnCuda, OursOnDevices
from collectives.bench.tasks import aligned_memory
from transports.cuda_ipc.emulation import EmulatedDevice, parse_machine


@pytest.fixture
def device():
    found = EmulatedDevice(parse_machine("devices=1,memory=4096"), 0)
    yield found
    found.end()


def library_of(kind, device):
    """A library that has not met anybody: the constructor would."""
    library = object.__new__(kind)
    vars(library).update({"rank": 0, "size": 2, "_device": device})
    return library


@pytest.mark.parametrize("dtype, storage", [("float64", np.float64), ("bfloat16", np.uint16)])
def test_what_is_sent_to_a_device_is_fetched_from_it(device, dtype, storage):
    ours = library_of(OursOnDevices, device)
    memory = aligned_memory(16 * np.dtype(storage).itemsize).view(storage)
    memory[:] = np.arange(16)
    array = ours.array(memory, dtype, "auto")
    assert str(array.dtype) == dtype and array.shape == (16,)
    ours.send_in(array, memory)
    memory[:] = 7  # nothing on its way sees this
    ours.send_in(array, memory[:2])
    found = np.zeros(16, storage)
    ours.fetch(array, found)
    assert found.tolist() == [7, 7, *range(2, 16)]
    ours.fetch(array, found[:0])
    rows = array.reshape(2, -1)
    assert rows.shape == (2, 8) and (rows.get().ravel() == array.get()).all()
    assert array.part(0, 0).reshape(2, -1).shape == (2, 0)


def lacking(monkeypatch, **modules):
    """`importlib.import_module` without some, or with others in their place."""
    usual = importlib.import_module

    def find(name):
        if name in modules and modules[name] is None:
            raise ModuleNotFoundError(name)
        return modules.get(name) or usual(name)

    monkeypatch.setattr("importlib.import_module", find)


def test_bfloat16_needs_what_has_it(device, monkeypatch):
    emulated, cuda = library_of(OursOnDevices, device), library_of(OursOnCuda, device)
    memory = np.zeros(4, np.uint16)
    lacking(monkeypatch, ml_dtypes=None, torch=None)
    with pytest.raises(NotCarried, match="emulated arrays of bfloat16 need ml_dtypes"):
        emulated.array(memory, "bfloat16", "auto")
    with pytest.raises(NotCarried, match="cupy has no bfloat16, and torch is not installed"):
        cuda.array(memory, "bfloat16", "auto")
    without = SimpleNamespace(is_available=lambda: False)
    lacking(monkeypatch, torch=SimpleNamespace(__version__="9+cpu", cuda=without))
    with pytest.raises(NotCarried, match=r"torch 9\+cpu finds no GPU that it can use"):
        cuda.array(memory, "bfloat16", "auto")


def test_torch_without_a_gpu_says_so_before_it_meets_anybody(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = {"threads": torch.get_num_threads(), "device": "cuda"}
    with pytest.raises(NotCarried, match=r"torch .* finds no GPU that it can use"):
        torch_distributed.start_group("gloo", options)


@pytest.fixture
def limit(device):
    shared = os.memfd_create("limit")
    os.ftruncate(shared, 1 << 16)
    yield LimitOnDevices(Limit(0, 1, shared), device)
    os.close(shared)


def test_the_limit_copies_on_the_device_and_gives_back_what_it_took(limit):
    assert limit.describe()["device"] == "emulated device 0"
    for _ in range(3):  # 4096 bytes are there
        task = limit.task(Case(collective="allreduce", nbytes=2048, op="sum"), "device copy", 0)
        assert task.seconds(5) > 0
        assert task.check() == {"wrong": 0} and task.expected() == {} and task.most_calls is None
        del task


def test_the_limit_says_what_it_cannot_copy(limit):
    with pytest.raises(NotCarried, match="barrier moves nothing on devices"):
        limit.task(Case(collective="barrier", nbytes=0), "device copy", 0)
    with pytest.raises(MemoryError):
        limit.task(Case(collective="allreduce", nbytes=4096, op="sum"), "device copy", 0)
