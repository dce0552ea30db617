"""What goes to other hosts from where it lies: right whatever the program does to it afterwards."""

from __future__ import annotations

import gc
import os
import signal
import time
import weakref

import numpy as np
import pytest
from harness.batches import Batch
from harness.errors import raising
from harness.under_mpi import mpi_spawn

import collectives

apart = Batch(hosts="ab")
together = Batch(hosts="aabb")
never = Batch({"COLLECTIVES_LEND": "never"}, hosts="ab")
always = Batch({"COLLECTIVES_LEND": "always"}, hosts="aab")

# More in one message than MPI buffers.
LONG = {"COLLECTIVES_SLOT_BYTES": str(1 << 24), "COLLECTIVES_SLOTS": "2"}
LENGTHS = (20_000, 70_001, 1_000_003)


def own(rank, turn, length):
    return ((np.arange(length) * 3 + 7 * rank + turn) % 11).astype(np.float32)


def check_overwritten(comm):
    """The caller's arrays are the caller's again once a call has returned."""
    for turn in range(12):
        for length in LENGTHS:
            x = own(comm.rank, turn, length)
            total = sum(own(rank, turn, length) for rank in range(comm.size))
            for algorithm in (None, "ring", "recursive_doubling"):
                given = x.copy()
                found = comm.allreduce(given, algorithm=algorithm)
                given[:] = -1
                assert np.array_equal(found, total)
                comm.allreduce(x_too := x.copy(), out=x_too, algorithm=algorithm)
                kept, x_too[:] = x_too.copy(), -1
                assert np.array_equal(kept, total)
            root = turn % comm.size
            given = own(root, turn, length) if comm.rank == root else np.empty_like(x)
            found = comm.broadcast(given, root=root)
            given[:] = -1
            assert np.array_equal(found, own(root, turn, length))
            every = comm.allgather(given := x.copy())
            given[:] = -1
            assert np.array_equal(every, [own(r, turn, length) for r in range(comm.size)])
            mean = comm.allreduce(given := x.copy(), op="avg", out=given)
            kept, given[:] = mean.copy(), -1
            assert np.array_equal(kept, total / np.float32(comm.size))
            comm.barrier()


@apart(2)
def test_between_two_ranks(comm):
    check_overwritten(comm)
    assert comm._engine.lent > 100


@together(4)
def test_between_hosts_of_two_ranks(comm):
    check_overwritten(comm)
    assert comm._engine.lent > 100


@always(3)
def test_however_short(comm):
    check_overwritten(comm)
    assert comm._engine.lent > 100


@never(2)
def test_never(comm):
    check_overwritten(comm)
    assert comm._engine.lent == 0


def stopped(comm, kind):
    """Rank 1 is stopped, so MPI cannot be done with what rank 0 sends."""
    x, out = np.ones(1 << 22, np.float32), np.empty(1 << 22, np.float32)
    if kind == "torch":
        import torch

        x, out = torch.from_numpy(x).clone(), torch.from_numpy(out).clone()
    if kind == "repeated":  # a call that the engine repeats by itself
        for _ in range(3):
            comm.allreduce(x, out=out)
    pids = comm.allgather_object(os.getpid())
    if comm.rank == 1:
        time.sleep(1)  # before it comes to the call, rank 0 stops it
        with raising(collectives.CollectiveError):
            comm.allreduce(x, out=out)
        return None
    os.kill(pids[1], signal.SIGSTOP)
    try:
        comm.timeout = 2
        with raising(collectives.CollectiveTimeout, "rank 1") as caught:
            if kind == "asynchronous":
                comm.allreduce(x, out=out, async_op=True).wait()
            else:
                comm.allreduce(x, out=out)
        # As a rule: some of MPI's ways need nothing of a rank that is stopped.
        told = "MPI has not done with what this rank sends" in str(caught)
        kept = weakref.ref(x), weakref.ref(out)
        del x, out, caught
        gc.collect()
        return told, [each() is not None for each in kept]
    finally:
        os.kill(pids[1], signal.SIGCONT)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["numpy", "repeated", "asynchronous", "torch"])
def test_arrays_of_a_call_that_failed_live_on(kind):
    found = mpi_spawn(stopped, 2, kind, hosts="ab", environment=LONG)
    told, kept = found[0]
    assert kept == [told, told]


def late(comm):
    """Rank 1 comes too late, but lives, so MPI soon has what rank 0 sends: nothing is kept."""
    x, out = np.ones(1 << 22, np.float32), np.empty(1 << 22, np.float32)
    comm.barrier()
    comm.timeout = 1
    if comm.rank == 1:
        time.sleep(2)
    try:
        comm.allreduce(x, out=out)
    except collectives.CollectiveError as error:
        assert "MPI has not done" not in str(error), error
        kept = weakref.ref(x), weakref.ref(out)
    del x, out
    gc.collect()
    return [each() is not None for each in kept]


@pytest.mark.full
def test_what_mpi_has_taken_is_not_kept():
    assert mpi_spawn(late, 2, hosts="ab") == [[False, False]] * 2
