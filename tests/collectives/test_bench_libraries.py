"""What each library is asked to do, and what it says it does not carry. The races call them."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest

from collectives.bench.cases import Case, NotCarried
from collectives.bench.libraries.deepspeed import DeepSpeed
from collectives.bench.libraries.mpi import Mpi, own_rank
from collectives.bench.libraries.ours import algorithm_of
from collectives.bench.libraries.torch_distributed import TorchDistributed


def case_of(**changes):
    usual = {"collective": "allreduce", "nbytes": 64, "op": "sum"}
    return Case(**{**usual, **changes})


def library_of(kind, **attributes):
    """A library that has not met anybody: the constructor would."""
    library = object.__new__(kind)
    vars(library).update({"rank": 0, "size": 2, **attributes})
    return library


def test_a_variant_names_an_algorithm_or_none():
    assert algorithm_of("ring") == algorithm_of("symmetric:ring") == "ring"
    assert (
        algorithm_of("auto") is algorithm_of("symmetric") is algorithm_of("symmetric:auto") is None
    )


def test_a_rank_of_any_mpi_knows_itself_before_mpi_begins():
    assert own_rank({"PMI_RANK": "3"}) == own_rank({"OMPI_COMM_WORLD_RANK": "3"}) == 3
    assert own_rank({}) == 0


@pytest.fixture
def mpi():
    names = ("SUM", "FLOAT", "C_BOOL", "INT8_T", "IN_PLACE")
    return library_of(Mpi, _mpi=SimpleNamespace(**{name: name for name in names}), _comm=Recorder())


class Recorder:
    """Notes what is called, with what."""

    def __getattr__(self, name):
        return lambda *words: (name, *words)


def test_mpi_is_called_with_buffers_and_in_place(mpi):
    x, out = np.zeros(4, np.float32), np.ones(4, np.float32)
    call = mpi.operation(case_of(), "", x, out)
    assert call() == ("Allreduce", [x, "FLOAT"], [out, "FLOAT"], "SUM")
    call = mpi.operation(case_of(place="in"), "", x, out)
    assert call()[1] == "IN_PLACE"
    assert mpi.operation(case_of(dtype="bool"), "", x, out)()[1] == [x, "C_BOOL"]
    assert mpi.operation(case_of(dtype="int8"), "", x, out)()[1] == [x, "INT8_T"]
    reduce = case_of(collective="reduce", root=1)
    assert mpi.operation(reduce, "", x, out)() == ("Reduce", [x, "FLOAT"], None, "SUM", 1)
    assert mpi.operation(case_of(collective="scatter", root=1), "", x, out)()[1] is None


def test_mpi_copies_the_roots_array_where_a_broadcast_is_out_of_place(mpi):
    x, out = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    mpi.operation(case_of(collective="broadcast", op=""), "", x, out)()
    assert (out == x).all()


@pytest.mark.parametrize(
    "change, text",
    [
        ({"op": "avg"}, "MPI has no avg"),
        ({"dtype": "bfloat16"}, "MPI has no bfloat16 that every library can reduce"),
    ],
)
def test_mpi_says_what_it_does_not_carry(mpi, change, text):
    x = np.zeros(4, np.float32)
    with pytest.raises(NotCarried, match=text):
        mpi.operation(case_of(**change), "", x, x)


@pytest.fixture
def gloo():
    import torch
    import torch.distributed as distributed

    return library_of(TorchDistributed, _torch=torch, distributed=distributed, _device="cpu")


def test_torch_sees_the_same_memory(gloo):
    import torch

    memory = np.zeros(4, np.uint16)
    tensor = gloo.array(memory, "bfloat16", "")
    assert tensor.dtype == torch.bfloat16
    tensor[:] = 1.0
    assert (memory == 0x3F80).all()


def test_torch_says_what_it_does_not_carry(gloo):
    with pytest.raises(NotCarried, match=r"torch\.distributed has no lxor"):
        gloo.operation(case_of(op="lxor"), "", None, None)
    with pytest.raises(NotCarried, match="torch has no text"):
        gloo.array(np.zeros(4, "U4"), "text", "")


def test_deepspeed_says_what_it_does_not_carry():
    deepspeed = library_of(DeepSpeed, _level=1)
    for change, text in (
        ({"collective": "allgather"}, "has the sum of allreduce only"),
        ({"op": "max"}, "has the sum of allreduce only"),
        ({"dtype": "bfloat16"}, "has no bfloat16 on this processor"),
        ({"dtype": "int32"}, "has no int32 on this processor"),
    ):
        with pytest.raises(NotCarried, match=text):
            deepspeed.operation(case_of(**change), "", None, None)
    with pytest.raises(NotCarried, match="no asynchronous allreduce"):
        deepspeed.begin(case_of(), "", None, None)


def test_deepspeed_that_has_built_nothing_is_refused(monkeypatch):
    import torch

    monkeypatch.setattr(
        "importlib.import_module", lambda name: SimpleNamespace(init_distributed=lambda **_: None)
    )
    monkeypatch.setattr(
        TorchDistributed, "__init__", lambda self, *_: vars(self).update(_torch=torch)
    )
    with pytest.raises(NotCarried, match="has not built its shared-memory operation"):
        DeepSpeed({})


def test_mpi_takes_its_cores_before_it_begins(monkeypatch):
    from collectives.bench.libraries import mpi as module

    taken = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: taken.append(cores))
    monkeypatch.setattr(module, "Mpi", lambda settings: taken.append(settings))
    monkeypatch.setenv("PMI_RANK", "1")
    module.connect({"cores": [[4], [5, 6]], "settings": {}})
    assert taken == [[5, 6], {}]
