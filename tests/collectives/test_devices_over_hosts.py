"""Arrays of devices between hosts, by carriers of their own; on emulated devices."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from harness.batches import Batch
from harness.device_arrays import (
    Captured,
    check_uneven_counts,
    environment,
    given,
    on_device,
    total,
)
from harness.errors import raising
from harness.under_mpi import mpi_spawn

import collectives
from collectives.settings import mpi_reaches_devices
from transports.cuda_ipc.device import DeviceError
from transports.cuda_ipc.inboxes import Inboxes

FEW = {"COLLECTIVES_DEVICE_SLOTS": "2", "COLLECTIVES_DEVICE_SLOT_BYTES": "1024"}
DEVICES = environment("devices=2,seed=1") | FEW
DIRECT = DEVICES | {"COLLECTIVES_MPI_REACHES_DEVICES": "1"}
ranks = Batch(DEVICES, hosts="aabb")
direct = Batch(DIRECT, hosts="aab")


def carrier_of(comm):
    return comm._connected.engine.carrier


def many_calls(comm):
    works = [
        comm.allreduce(on_device(given(comm.rank + turn)), async_op=True, algorithm=algorithm)
        for turn in range(10)
        for algorithm in ("hierarchical", "ring", "one_shot", None)
    ]
    for number, work in enumerate(works):
        wanted = sum(given(rank + number // 4) for rank in range(comm.size))
        assert np.array_equal(work.wait().get(), wanted), number


@ranks(4)
def test_many_calls_in_a_row(comm):
    """Slots and flags are used again and again, on the wire as well; nobody waits between."""
    many_calls(comm)


@direct(3)
def test_many_calls_where_mpi_reaches_devices(comm):
    many_calls(comm)


@ranks(4)
def test_what_leaves_a_host_is_as_stated(comm):
    x = on_device(given(comm.rank, 1 << 14))
    comm.allreduce(x).get()  # connects
    before = comm.wire_bytes
    for _ in range(3):
        found = comm.allreduce(x, algorithm="hierarchical")
    assert np.array_equal(found.get(), total(comm, 1 << 14))
    sent = comm.allgather_object(comm.wire_bytes - before)
    told = 3 * 96 * 100  # at most, of what hosts agree on meanwhile
    for host in (0, 1):
        payload = sum(sent[2 * host : 2 * host + 2])
        assert 0 <= payload - 3 * 4 * (1 << 14) < told


@ranks(4)
def test_host_and_device_take_turns(comm):
    for turn in range(10):
        x = on_device(given(comm.rank + turn))
        y = comm.allreduce(x, async_op=True)
        assert comm.allreduce(np.ones(3))[0] == comm.size
        assert np.array_equal(y.wait().get(), sum(given(turn + r) for r in range(comm.size)))


@ranks(4)
def test_parts_of_a_communicator(comm):
    """Those of a host share memory; those between hosts have carriers of their own."""
    x = on_device(given(comm.rank))
    assert np.array_equal(comm.allreduce(x).get(), total(comm))
    here = comm.local.allreduce(x)
    assert np.array_equal(here.get(), given(comm.rank) + given(comm.rank ^ 1))
    assert comm.local.transport == "shm" and carrier_of(comm.local) is None
    there = comm.cross.allreduce(here)
    assert np.array_equal(there.get(), total(comm))
    assert carrier_of(comm.cross) is not None


@ranks(4)
def test_memory_for_it_is_ordinary(comm):
    x = comm.empty(1 << 16, np.float32, device="cuda")
    x.set(given(comm.rank, 1 << 16))
    assert comm.allreduce(x, out=x) is x
    assert np.array_equal(x.get(), total(comm, 1 << 16))
    assert comm.explain("allreduce", x).algorithm == "hierarchical"
    with raising(ValueError, "expected x and out from comm.empty"):
        comm.allreduce(x, algorithm="one_sided")


@ranks(4)
def test_uneven_counts_and_roots(comm):
    check_uneven_counts(comm, [3, 0, 700, 1])
    rows = np.stack([given(rank, 6) for rank in range(comm.size)])
    mine = comm.scatter(on_device(rows) if comm.rank == 3 else None, root=3)
    assert np.array_equal(mine.get(), given(comm.rank, 6))


@ranks(4)
def test_nothing_is_captured(comm):
    x = on_device(given(comm.rank))
    comm.allreduce(x, out=x)
    with raising(collectives.CollectiveError, "several hosts", "captured in a graph"), Captured():
        comm.allreduce(x, out=x)


@ranks(4)
def test_what_mpi_refuses(comm):
    """It ends the call on all ranks, with what MPI has said."""
    x = on_device(given(comm.rank))
    comm.allreduce(x).get()
    comm.barrier()

    class Refusing:
        def __getattr__(self, name):
            raise OSError("no buffers")

    if comm.rank == 2:
        carrier_of(comm)._comm = Refusing()
    with raising(collectives.CollectiveError, "messages of devices between hosts: no buffers"):
        comm.allreduce(x).get()
        while True:
            comm.allreduce(x)
            time.sleep(0.01)
    if comm.rank == 2:
        carrier_of(comm)._comm = comm._group.world.communicator()


def some_are_told_that_mpi_reaches_devices(comm):
    """Only where every rank is does it: else ranks would look where nothing was put."""
    os.environ["COLLECTIVES_MPI_REACHES_DEVICES"] = "1" if comm.rank == 0 else "0"
    for algorithm in ("one_shot", "ring", "recursive_doubling"):
        found = comm.allreduce(on_device(given(comm.rank)), algorithm=algorithm)
        assert np.array_equal(found.get(), total(comm))


def test_some_are_told_that_mpi_reaches_devices():
    mpi_spawn(some_are_told_that_mpi_reaches_devices, 3, hosts="aab", environment=DEVICES)


def one_call_less(comm):
    """Rank 1 closes when others have what it has sent, though rank 0 waits for more."""
    x = on_device(given(comm.rank))
    comm.allreduce(x).get()
    comm.barrier()
    began = time.monotonic()
    if comm.rank == 1:
        time.sleep(0.5)
        comm.allreduce(x)
        comm.close()
        return time.monotonic() - began
    works = [comm.allreduce(x, async_op=True) for _ in range(2)]
    assert np.array_equal(works[0].wait().get(), total(comm))
    with raising(collectives.PeerLostError, "rank 1", "closed its communicator"):
        works[1].wait(timeout=30)
        comm.barrier()
    return time.monotonic() - began


def test_a_rank_that_makes_one_call_less_leaves_at_once():
    assert max(mpi_spawn(one_call_less, 2, hosts="ab", environment=DEVICES)) < 10


def handled(comm):
    """What was sent in vain keeps nobody: rank 1 goes on long after the call has failed."""
    x = on_device(np.ones(1 << 20, np.float32))
    part = comm.split(0, comm.rank)
    part.allreduce(x).get()
    with raising(collectives.MismatchError, "broadcast", "barrier"), part:
        if comm.rank == 0:
            part.broadcast(x, root=0, algorithm="linear")
        part.barrier()
    comm.barrier()
    time.sleep(12 * comm.rank)


@pytest.mark.full
def test_a_program_that_handles_a_mismatch_ends_as_it_should():
    mpi_spawn(handled, 2, hosts="ab", environment=DEVICES)


def nothing_stays(comm):
    """Of communicators that all have closed."""
    x = on_device(np.ones(1 << 16, np.float32))
    for _ in range(6):
        with comm.split(0, comm.rank) as part:
            part.allreduce(x).get()
        comm.barrier()
        time.sleep(0.1)
    return comm._group.world.let_go()


def test_carriers_of_closed_communicators_go():
    assert mpi_spawn(nothing_stays, 2, hosts="ab", environment=DEVICES) == [1, 1]


def nothing_against_much(comm):
    """A message without elements, where another has some: the call, not MPI, says what is wrong."""
    comm.allreduce(on_device(given(comm.rank))).get()
    x = on_device(given(comm.rank, 1000 * comm.rank))
    with raising(collectives.MismatchError, "float32[0]", "float32[1000]"):
        comm.allreduce(x, algorithm="ring").get()
        comm.barrier()


@pytest.mark.parametrize("turn", range(3))
def test_nothing_against_much(turn):
    mpi_spawn(nothing_against_much, 2, hosts="ab", environment=DEVICES)


class SendsNothing:
    def __init__(self, comm):
        self._comm = comm

    def __getattr__(self, name):
        return getattr(self._comm, name)

    def Isend(self, what, member, tag):
        if what[1] > 8:  # news are shorter
            raise OSError("no buffers")
        return self._comm.Isend(what, member, tag)


class TellsNothing(SendsNothing):
    def Isend(self, what, member, tag):
        if what[1] == 8:
            raise OSError("no news")
        return self._comm.Isend(what, member, tag)


def nothing_is_told(comm):
    """That a message has come cannot be told: both hear why."""
    x = on_device(given(comm.rank))
    comm.allreduce(x).get()
    comm.barrier()
    if comm.rank == 1:
        carrier_of(comm)._comm = TellsNothing(carrier_of(comm)._comm)
    began = time.monotonic()
    with raising(collectives.CollectiveError, "between hosts: no news"):
        comm.broadcast(x, async_op=True, algorithm="linear").wait(timeout=30)
        while True:
            comm.allreduce(x)
            time.sleep(0.01)
    if comm.rank == 1:
        carrier_of(comm)._comm = comm._group.world.communicator()
    return time.monotonic() - began


def test_news_that_mpi_refuses():
    assert max(mpi_spawn(nothing_is_told, 2, hosts="ab", environment=DEVICES)) < 10


def refused_at_last(comm):
    """Its call is done on the root's stream when MPI refuses to send what the root has left."""
    x = on_device(given(comm.rank))
    comm.allreduce(x).get()
    comm.barrier()
    if comm.rank == 0:
        carrier_of(comm)._comm = SendsNothing(carrier_of(comm)._comm)
    began = time.monotonic()
    with raising(collectives.CollectiveError, "between hosts: no buffers"):
        comm.broadcast(x, async_op=True, algorithm="linear").wait(timeout=30)
        comm.close()
    return time.monotonic() - began


def test_what_mpi_refuses_after_the_call_is_done():
    assert max(mpi_spawn(refused_at_last, 2, hosts="ab", environment=DEVICES)) < 10


def no_memory_on_one_host(comm, what):
    if comm.rank == 1:
        shared = type(comm)._share_host_memory

        def refuses(myself, nbytes, wanted):
            if wanted == what:
                raise MemoryError("none left")
            return shared(myself, nbytes, wanted)

        type(comm)._share_host_memory = refuses
    began = time.monotonic()
    with raising(MemoryError, "rank 1", "none left"):
        comm.allreduce(on_device(given(comm.rank)))
    comm.barrier()
    return time.monotonic() - began


@pytest.mark.parametrize("what", ["flags", "an outbox on the host"])
def test_no_memory_on_one_host(what):
    """All hear of it, and go on."""
    assert max(mpi_spawn(no_memory_on_one_host, 2, what, hosts="ab", environment=DEVICES)) < 10


class Refusing:
    def allocate(self, nbytes):
        raise MemoryError("none left")

    def register(self, address, nbytes):
        raise DeviceError("not permitted")


@pytest.mark.parametrize("reaches, words", [(True, "none left"), (False, "not permitted")])
def test_no_room_for_what_comes(reaches, words):
    inboxes = Inboxes(Refusing(), 4096, reaches, [])
    with raising(collectives.CollectiveError, "4096 bytes for messages of rank 3", words):
        inboxes.of(3)


def test_a_setting_that_is_none():
    told = {"COLLECTIVES_MPI_REACHES_DEVICES": "1"}
    assert mpi_reaches_devices(told) and not mpi_reaches_devices({})
    with raising(ValueError, "COLLECTIVES_MPI_REACHES_DEVICES must be 0 or 1, found 'yes'"):
        mpi_reaches_devices(dict.fromkeys(told, "yes"))
