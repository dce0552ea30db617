"""What ranks must agree on where names, and the first segments of messages, agree already."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest
import torch

import collectives
import launch
from collectives.proof import ProofError, verify
from collectives.schedule import algorithm, recv, recv_reduce, send

SMALL_SLOTS = {"COLLECTIVES_SLOT_BYTES": "1024", "COLLECTIVES_SLOTS": "2"}


def error_of(call):
    try:
        call()
    except collectives.CollectiveError as error:
        return type(error).__name__, str(error)
    return None, ""


def unequal_counts(comm, more):
    """Rank 0 sends `more` to rank 1 than rank 1 expects, by whole segments."""
    peer = 1 - comm.rank
    sent = [0, 0]
    sent[peer] = 2048 if comm.rank == 0 and more else 1024
    received = [0, 0]
    received[peer] = 2048 if comm.rank == 1 and not more else 1024
    x = np.ones(sum(sent), np.uint8)

    def call():
        comm.alltoall(x, counts=(sent, received), timeout=20)
        comm.barrier(timeout=20)  # who had all it wanted hears of it in the next call

    return error_of(call)[0]


@pytest.mark.parametrize("more", [True, False])
def test_counts_that_differ_by_whole_segments_are_a_mismatch(more):
    found = launch.spawn(unequal_counts, 2, more, environment=SMALL_SLOTS, timeout=60)
    assert found == ["MismatchError"] * 2


def same_name_other_steps(comm):
    order = (0, 1) if comm.rank == 0 else (1, 0)

    @algorithm("broadcast", chunks=2)
    def mine(rank, size, root):
        for chunk in order:
            if rank == root:
                yield send(1 - root, chunk=chunk)
            else:
                yield recv(root, chunk=chunk)

    x = np.arange(8) + comm.rank
    # A root has nothing to receive: it hears of it in its next call at the latest.
    calls = (
        lambda: comm.broadcast(x, algorithm=mine, timeout=20),
        lambda: comm.barrier(timeout=20),
    )
    return error_of(lambda: [call() for call in calls])


def test_a_schedule_that_is_not_the_proved_one_does_not_run():
    found = launch.spawn(same_name_other_steps, 2, timeout=60)
    assert [kind for kind, _ in found] == ["MismatchError"] * 2
    assert all("rank 1" in text and "mine" in text for _, text in found)


def test_sums_that_differ_in_the_order_of_operands_are_refused():
    @algorithm("allreduce", sizes=(4,))
    def mirror(rank, size):
        # The same two pairs meet in opposite order on the upper half: NaNs may differ in bits.
        for peer in (size - 1 - rank, rank ^ 1):
            yield send(peer, chunk=0)
            yield recv_reduce(peer, chunk=0)

    with pytest.raises(ProofError, match="different sums"):
        verify(mirror, size=4)


def drop_a_send(comm):
    """The handle and the tensor go away before the receive comes; the message must not."""
    if comm.rank == 0:
        comm.isend(torch.full((100_000,), 7.0), 1)
        gc.collect()
        others = [torch.full((100_000,), 99.0) for _ in range(8)]
        comm.barrier()
        comm.barrier()
        return len(others)
    comm.barrier()
    found = comm.recv(torch.empty(100_000), 0)
    comm.barrier()
    return found.unique().tolist()


def test_what_a_dropped_send_reads_stays_alive():
    assert launch.spawn(drop_a_send, 2, timeout=60)[1] == [7.0]


def wait_briefly(comm):
    """A wait that runs out in the user's hands breaks nothing."""
    x = np.zeros(3)
    work = comm.irecv(x, 1 - comm.rank)
    with pytest.raises(collectives.CollectiveTimeout, match="goes on"):
        work.wait(0.05)
    comm.barrier()
    comm.send(np.full(3, float(comm.rank)), 1 - comm.rank)
    return work.wait().tolist()


def test_a_wait_that_runs_out_leaves_the_message_under_way():
    assert launch.spawn(wait_briefly, 2, timeout=60) == [[1.0] * 3, [0.0] * 3]


def send_from_a_fork(comm):
    """A forked child is no rank: what it sends is refused, and its parent's message arrives."""
    if comm.rank == 1:
        return comm.recv(np.zeros(1), 0).tolist()
    child = os.fork()
    if child == 0:
        code = 0 if "forked" in error_of(lambda: comm.send(np.full(1, 666.0), 1))[1] else 1
        os._exit(code)
    _, status = os.waitpid(child, 0)
    comm.send(np.full(1, 5.0), 1)
    return os.waitstatus_to_exitcode(status)


def test_a_forked_child_sends_nothing():
    assert launch.spawn(send_from_a_fork, 2, timeout=60) == [0, [5.0]]


def leave_in_good_order(comm):
    with pytest.raises(SystemExit), comm:
        raise SystemExit(0)


def test_a_block_left_by_a_good_exit_aborts_nobody():
    launch.spawn(leave_in_good_order, 2, timeout=60)


def raise_at_length(comm):
    if comm.rank == 0:
        raise ValueError("é" * 20_000 + " the end of it")
    return error_of(comm.barrier)[1]


def test_the_end_of_a_long_traceback_arrives():
    with pytest.raises(ValueError, match="the end of it"):
        launch.spawn(raise_at_length, 2, timeout=60)


def hear_the_end(comm):
    """As above, caught on the rank that hears of it."""
    if comm.rank == 0:
        comm.abort(ValueError("é" * 20_000 + " the end of it"))
        return ""
    return error_of(lambda: comm.barrier(timeout=30))[1]


def test_others_hear_how_a_long_traceback_ends():
    assert launch.spawn(hear_the_end, 2, timeout=60)[1].rstrip().endswith("the end of it")
