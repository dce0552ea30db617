"""What hosts do for arrays on devices: messages, and scatters that the queue puts there."""

from __future__ import annotations

import random
import time

import numpy as np
from harness.batches import Batch
from harness.device_arrays import emulated_only, environment, given, new_array, on_device, total
from harness.errors import raising

import collectives

ranks = Batch(environment("devices=2,seed=1"))


@emulated_only
@ranks(2)
def test_a_first_scatter_follows_the_callers_stream(comm):
    from transports.cuda_ipc import emulated_array

    device = emulated_array.emulated_device()
    stream = device.new_stream()
    emulated_array.use_stream(device, stream)
    try:
        x = None
        if comm.rank == 0:
            x = on_device(np.zeros((2, 1000), np.float32))
            device._streams[stream].put(lambda: time.sleep(0.3))
            x.set(np.stack([given(0), given(1)]))
        work = comm.scatter(x, root=0, async_op=True)  # a thread of the queue's puts it there
        assert np.array_equal(work.wait().get(), given(comm.rank))
    finally:
        emulated_array.use_stream(device, 0)


@ranks(2, 3)
def test_asynchronous_scatters_keep_their_place(comm):
    """A thread of the queue puts them on the device, when it has heard what the root scatters."""
    dice = random.Random(comm.rank)  # ranks are late in different places
    x, whole = new_array(4), on_device(np.ones((comm.size, 4), np.float32))
    for turn in range(60):
        scatter = comm.scatter(whole if comm.rank == 0 else None, root=0, async_op=True)
        time.sleep(dice.choice((0, 0.001)))
        host = comm.allreduce(np.full(3, turn), async_op=True)
        time.sleep(dice.choice((0, 0.001)))
        device = comm.allreduce(x, async_op=turn % 2 == 0)
        if turn % 3:
            assert np.array_equal(scatter.wait().get(), np.ones(4))
        assert host.wait()[0] == turn * comm.size
        if turn % 2 == 0:
            device.wait()
        comm.allreduce(x, out=x)
    comm.barrier()


@ranks(2)
def test_what_comes_behind_a_scatter_does_not_wait_for_it(comm):
    """Rank 1 comes to it only when rank 0 has gone on."""
    x, whole = new_array(4), on_device(np.ones((2, 4), np.float32))
    comm.allreduce(x)
    if comm.rank == 1:
        comm.recv(np.zeros(1), source=0)
    scatter = comm.scatter(whole if comm.rank == 1 else None, root=1, async_op=True)
    work = comm.allreduce(on_device(given(comm.rank)), async_op=True)
    if comm.rank == 0:
        comm.send(np.zeros(1), 1)
    assert np.array_equal(work.wait().get(), total(comm))
    assert np.array_equal(scatter.wait().get(), np.ones(4))
    assert work.done() and scatter.done()


@ranks(2)
def test_memory_that_all_reach_behind_a_first_scatter(comm):
    x = on_device(np.ones((2, 4), np.float32)) if comm.rank == 0 else None
    scatter = comm.scatter(x, root=0, async_op=True)
    comm.empty((4,), np.float32, device="cuda")
    connected = comm._connected
    assert np.array_equal(scatter.wait().get(), np.ones(4))
    assert comm._connected is connected, "connected once"


@emulated_only
@ranks(2)
def test_a_scatter_is_waited_for_until_the_device_has_done_it(comm):
    from transports.cuda_ipc import emulated_array

    x = on_device(np.ones((2, 4), np.float32)) if comm.rank == 0 else None
    comm.allreduce(new_array(4))
    device = emulated_array.emulated_device()
    device._streams[comm._connected.engine.stream].put(lambda: time.sleep(0.5))
    scatter = comm.scatter(x, root=0, async_op=True)
    with raising(collectives.CollectiveTimeout, "scatter", "goes on"):
        scatter.wait(timeout=0.05)
    assert not scatter.done()
    assert np.array_equal(scatter.wait(timeout=30).get(), np.ones(4))
    assert scatter.done()


@ranks(2, 3)
def test_point_to_point(comm):
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for count in (0, 1, 1000, 300_000):
        x, out = on_device(given(comm.rank, count)), new_array(count)
        work = comm.isend(x, right, tag=5)
        assert comm.recv(out, source=left, tag=5) is out
        assert work.wait() is None and work.done()
        assert np.array_equal(out.get(), given(left, count))
        comm.sendrecv(x, right, source=left, out=x)
        assert np.array_equal(x.get(), given(left, count))
        found = comm.sendrecv(x, left, source=right)
        assert np.array_equal(found.get(), given(comm.rank, count))
    receive = comm.irecv(out)
    comm.send(x, right, tag=9)
    assert np.array_equal(receive.wait().get(), given((left - 1) % comm.size, count))
    assert (receive.source, receive.tag) == (left, 9)


@ranks(2)
def test_one_end_of_a_message_on_a_device(comm):
    if comm.rank == 0:
        x = comm.allreduce(on_device(given(0)), async_op=True)
        comm.send(x.wait(), 1)  # which waits until the device has come to it
        assert np.array_equal(comm.recv(new_array(3), source=1).get(), [1, 2, 3])
        with raising(collectives.MismatchError, "float32[3]", "float32[4]"):
            comm.send(new_array(3), 1)
            comm.barrier()
        return
    comm.allreduce(on_device(given(1)))
    assert np.array_equal(comm.recv(np.empty(1000, np.float32), source=0), total(comm))
    comm.send(np.array([1, 2, 3], np.float32), 0)
    with raising(collectives.MismatchError, "float32[3]", "float32[4]"):
        comm.recv(new_array(4), source=0)
