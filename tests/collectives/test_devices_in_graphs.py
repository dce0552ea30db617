"""Calls captured in graphs of a device: run as often as the program says, on what is there then."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
from harness.batches import Batch
from harness.device_arrays import (
    Captured,
    emulated_only,
    environment,
    finish,
    kind_here,
    new_array,
    on_device,
    symmetric,
)
from harness.errors import raising
from harness.processes import Ranks

import collectives
from transports.cuda_ipc.device import DeviceError

DEVICES = environment("devices=2,seed=1")
SOON = 10.0  # the contract says a second; tests share their cores with others
ranks = Batch(DEVICES)
few_slots = Batch(DEVICES | {
    "COLLECTIVES_DEVICE_SLOTS": "2", "COLLECTIVES_DEVICE_SLOT_BYTES": "256",
})  # fmt: skip


def given(rank, turn, count=1000):
    return ((np.arange(count) * 5 + 3 * rank + turn) % 7).astype(np.float32)


def total(comm, turn, count=1000):
    return sum(given(rank, turn, count) for rank in range(comm.size))


def check_replays(comm, x, out, **options):
    """What is captured once is right each time it runs, whatever runs between."""
    call = {"out": out, **options}
    x.set(given(comm.rank, 0))
    comm.allreduce(x, **call)  # before: kernels are compiled, room is made
    with Captured() as graph:
        comm.allreduce(x, async_op=True, **call).wait()
        comm.broadcast(out, root=comm.size - 1, out=out)
    for turn in range(1, 6):
        x.set(given(comm.rank, turn))
        graph.launch()
        finish(kind_here())
        assert np.array_equal(out.get(), total(comm, turn))
        if turn % 2:
            assert np.array_equal(comm.allreduce(x).get(), total(comm, turn))
    graph.launch()
    graph.launch()
    finish(kind_here())
    assert np.array_equal(out.get(), total(comm, turn))
    comm.barrier()  # a graph that runs needs the others' devices


def warmed(comm, out):
    comm.broadcast(out, root=comm.size - 1, out=out)


@ranks(1, 2, 3)
def test_any_arrays(comm):
    x, out = new_array(1000), new_array(1000)
    warmed(comm, out)
    for algorithm in (None, "ring", "tree", "two_shot"):
        check_replays(comm, x, out, algorithm=algorithm)


@few_slots(2, 3)
def test_messages_of_many_segments(comm):
    x, out = new_array(1000), new_array(1000)
    warmed(comm, out)
    check_replays(comm, x, out, algorithm="ring")


@ranks(2, 3)
def test_symmetric_arrays(comm):
    x, out = (symmetric(comm, np.zeros(1000, np.float32), kind_here()) for _ in range(2))
    warmed(comm, out)
    check_replays(comm, x, out, algorithm="one_sided")


@ranks(2)
def test_a_call_that_was_not_made_before_is_refused(comm):
    x = on_device(given(comm.rank, 0))
    with Captured(), raising(collectives.CollectiveError, "captured in a graph", "one before"):
        comm.allreduce(x)
    comm.allreduce(x)
    y = new_array(7)
    with Captured(), raising(collectives.CollectiveError, "float32[7]", "make it once outside"):
        comm.allreduce(y)
    assert np.array_equal(comm.allreduce(x).get(), total(comm, 0))


@ranks(2)
def test_a_result_that_is_not_waited_for_cannot_be_captured(comm):
    x = on_device(given(comm.rank, 0))
    comm.allreduce(x, out=x)
    with pytest.raises(Exception, match=r"(?i)join") as caught, Captured():
        comm.allreduce(x, out=x, async_op=True)
    assert kind_here() != "emulated" or caught.type is DeviceError
    y = on_device(given(comm.rank, 0))
    assert np.array_equal(comm.allreduce(y).get(), total(comm, 0))


@emulated_only
def test_what_a_capture_does_not_permit(monkeypatch):
    from transports.cuda_ipc import emulated_array as arrays

    monkeypatch.setenv("COLLECTIVES_EMULATED_DEVICES", "1")
    device = arrays.emulated_device()
    x = arrays.to_device(np.arange(4))
    outside = device.mark(device.new_stream())
    with arrays.captured() as graph:
        y = arrays.empty((4,), x.dtype)
        device.copy(0, y.address, x.address, 32)
        for what, text in (
            (lambda: device.allocate(4), "allocating is not permitted"),
            (x.get, "cannot be waited for"),
            (lambda: device.follow(0, outside), "cannot follow work outside"),
        ):
            with pytest.raises(DeviceError, match=text):
                what()
    kept = y.address
    assert not (y.get() == np.arange(4)).all(), "it has not run"
    arrays.replay(graph)
    assert (y.get() == np.arange(4)).all()
    del y  # the graph has its memory still
    arrays.replay(graph)
    device.synchronize()
    assert device.owns(kept)


def test_a_rank_that_is_lost_ends_the_graphs_of_others():
    def body():
        with collectives.init(timeout=60) as comm:
            x, out = new_array(1000), new_array(1000)
            comm.allreduce(x, out=out)
            with Captured() as graph:
                comm.allreduce(x, out=out)
            graph.launch()
            finish(kind_here())
            comm.barrier()
            if comm.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            graph.launch()
            begun = time.monotonic()
            finish(kind_here())  # the stream runs to its end, on rubbish
            took = time.monotonic() - begun
            with raising(collectives.PeerLostError, "rank 1"):
                comm.allreduce(x, out=out)
            return took

    with Ranks(body, 2, environment=DEVICES) as job:
        survivor, lost = job.outcomes(100)
    assert lost.code == -signal.SIGKILL
    assert survivor.text == "" and survivor.value < SOON


def run(body, environment=DEVICES, size=2):
    with Ranks(body, size, environment=environment) as job:
        return job.outcomes(60)


def prepared(comm):
    """A graph with several waits, and its arrays."""
    x, out = new_array(1000), new_array(1000)
    comm.allreduce(x, out=out, algorithm="ring")
    with Captured() as graph:
        for _ in range(3):
            comm.allreduce(x, out=out, algorithm="ring")
    return graph, x, out


@emulated_only
@pytest.mark.parametrize("how", ["killed", "raises"])
def test_graphs_that_wait_do_not_hold_up_the_end(how):
    """Of a rank whose block is left by an exception, though no peer launches its own."""

    def body():
        begun = 0.0
        try:
            with collectives.init(timeout=60) as comm:
                graph, *kept = prepared(comm)
                comm.barrier()
                if comm.rank == 1:
                    if how == "killed":
                        os.kill(os.getpid(), signal.SIGKILL)
                    comm.barrier()
                for _ in range(20):
                    graph.launch()
                begun = time.monotonic()
                raise ValueError("of the program")
        except ValueError:
            return time.monotonic() - begun, len(kept)

    survivor, other = run(body)
    assert survivor.text == "" and survivor.value[0] < SOON
    assert other.code != 0


@emulated_only
def test_a_graph_that_all_others_have_left_runs_to_its_end():
    def body():
        with collectives.init(timeout=60) as comm:
            graph, *_ = prepared(comm)
            graph.launch()
            finish(kind_here())
            comm.barrier()
            if comm.rank == 0:
                graph.launch()
                finish(kind_here())  # on rubbish
        return comm.rank

    assert [outcome.value for outcome in run(body)] == [0, 1]


@emulated_only
def test_a_rank_that_ends_well_is_no_loss_to_who_has_captured():
    def body():
        with collectives.init(timeout=60) as comm:
            graph, *_ = prepared(comm)
            graph.launch()
            finish(kind_here())
            comm.barrier()
            if comm.rank == 0:
                time.sleep(0.6)  # some looks at who is there
        return comm.rank

    assert [outcome.value for outcome in run(body)] == [0, 1]


hosted = Batch(environment("devices=1,hosted=1,seed=1"))


@emulated_only
@hosted(2)
def test_where_hosts_wait_in_the_place_of_streams_nothing_is_captured(comm):
    x = on_device(given(comm.rank, 0))
    comm.allreduce(x, out=x)
    with Captured(), raising(collectives.CollectiveError, "no stream memory operations"):
        comm.allreduce(x, out=x)
    y = on_device(given(comm.rank, 0))
    assert np.array_equal(comm.allreduce(y).get(), total(comm, 0))


@emulated_only
@ranks(2)
def test_point_to_point_is_not_captured(comm):
    x = on_device(given(comm.rank, 0))
    for call in (lambda: comm.send(x, 1 - comm.rank), lambda: comm.recv(x)):
        with Captured(), raising(collectives.CollectiveError, "cannot be captured"):
            call()


@emulated_only
@ranks(2)
def test_a_call_outside_while_another_stream_captures(comm):
    from transports.cuda_ipc import emulated_array as arrays

    x = on_device(given(comm.rank, 0))
    comm.allreduce(x, out=x)
    device = arrays.emulated_device()
    with Captured():
        comm.allreduce(x, out=x)
        arrays.use_stream(device, device.new_stream())
        try:
            with raising(collectives.CollectiveError, "another stream captures"):
                comm.allreduce(x, out=x)
        finally:
            arrays.use_stream(device, 0)
    y = on_device(given(comm.rank, 0))
    assert np.array_equal(comm.allreduce(y).get(), total(comm, 0))


@emulated_only
def test_what_is_whole_cannot_be_followed(monkeypatch):
    from transports.cuda_ipc import emulated_array as arrays

    monkeypatch.setenv("COLLECTIVES_EMULATED_DEVICES", "1")
    device = arrays.emulated_device()
    with arrays.captured():
        mark = device.mark(0)
    with pytest.raises(DeviceError, match="its graph is whole"):
        device.follow(device.new_stream(), mark)
