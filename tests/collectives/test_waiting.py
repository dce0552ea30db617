"""Waits: other threads run meanwhile, Ctrl-C ends them, who sleeps is woken.

Only known calls are made here, and short ones: those that hold the interpreter's lock at first.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import random
import signal
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from harness.batches import Batch
from harness.errors import raising, still_works
from harness.processes import Ranks, say, told
from harness.ways import long_ways

import collectives

ranks = Batch()
NUMBERS = {"x86_64": 324, "aarch64": 283}  # of the system call membarrier


@ranks(2)
def test_other_threads_run_while_a_short_call_waits(comm):
    x, out, rows, part = np.ones(2), np.zeros(2), np.ones((2, 3)), np.zeros(3)

    def scatter(root):
        return lambda: comm.scatter(rows if comm.rank == root else None, root=root, out=part)

    calls = (
        lambda: comm.allreduce(x, out=out), comm.barrier, lambda: comm.allreduce(x),
        lambda: comm.broadcast(x, root=1, out=out), scatter(1),
    )  # fmt: skip
    for call in calls:
        for _ in range(3):
            call()
        comm.barrier()
        if comm.rank == 1:
            told_by = np.zeros(1)
            comm.recv(told_by, source=0)  # rank 0 has seen its thread run
            call()
            continue
        ticks, inside, done = [], threading.Event(), threading.Event()

        def tick(inside=inside, ticks=ticks, done=done):
            inside.wait()
            while not done.is_set():
                ticks.append(None)
                if len(ticks) == 1000:  # far more than could run before the call began to wait
                    comm.send(np.zeros(1), 1)
                time.sleep(0)

        thread = threading.Thread(target=tick)
        thread.start()
        inside.set()
        call()  # would never end if the thread did not run
        done.set()
        thread.join()
        assert len(ticks) >= 1000


def wait_in_a_known_call(name):
    with collectives.init(timeout=60) as comm:
        x, out, rows, part = np.ones(2), np.zeros(2), np.ones((2, 3)), np.zeros(3)
        calls = {
            "allreduce": lambda: comm.allreduce(x, out=out), "barrier": comm.barrier,
            "scatter": lambda: comm.scatter(rows if comm.rank == 1 else None, root=1, out=part),
        }  # fmt: skip
        for _ in range(3):
            calls[name]()
        comm.barrier()
        if comm.rank == 1:
            told()
            comm.allreduce(x)
            comm.barrier()
            return
        main = threading.main_thread().native_id

        def watch():  # the main thread sleeps in the kernel: it holds no lock, we run
            while "futex" not in Path(f"/proc/self/task/{main}/wchan").read_text():
                pass
            say("waits")

        threading.Thread(target=watch, daemon=True).start()
        calls[name]()


@pytest.mark.parametrize("name", ["allreduce", "barrier", "scatter"])
def test_ctrl_c_in_a_known_call(name):
    with Ranks(wait_in_a_known_call, 2, name) as job:
        assert job.said(0) == "waits"
        job.kill(0, signal.SIGINT)
        assert job.outcome(0).error == "KeyboardInterrupt"
        job.tell(1)
        outcome = job.outcome(1)
        assert outcome.error == "AbortedError" and "rank 0" in outcome.text


# --- without membarrier


def refuse_membarrier():
    """From here on the kernel has no membarrier for this process. False if we may not have that."""
    number = NUMBERS[platform.machine()]
    program = b"".join(
        struct.pack("=HBBI", *line)
        for line in (
            (0x20, 0, 0, 0),  # the number of the call
            (0x15, 0, 1, number),
            (0x06, 0, 0, 0x00050000 | errno.ENOSYS),
            (0x06, 0, 0, 0x7FFF0000),
        )
    )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) != 0:  # PR_SET_NO_NEW_PRIVS
        return False
    lines = ctypes.create_string_buffer(program)
    filtering = ctypes.create_string_buffer(struct.pack("HP", 4, ctypes.addressof(lines)))
    if libc.prctl(22, 2, filtering) != 0:  # PR_SET_SECCOMP
        return False
    assert libc.syscall(number, 0, 0, 0) == -1 and ctypes.get_errno() == errno.ENOSYS
    return True


def come_late(without):
    """Sums of which a rank comes late by up to tens of milliseconds, so that the others sleep."""
    mine = int(os.environ["RANK"])
    if mine in without and not refuse_membarrier():
        return "refused"
    dice = random.Random(3)
    with collectives.init(timeout=30) as comm:
        x, out = np.zeros(3), np.zeros(3)
        for turn in range(60):
            late, milliseconds = dice.randrange(comm.size), dice.choice((0, 0.2, 1, 4, 11, 30))
            if comm.rank == late:
                time.sleep(milliseconds / 1000)
            x[:] = turn + comm.rank
            comm.allreduce(x, out=out)
            wanted = comm.size * turn + sum(range(comm.size))
            assert out.tolist() == [wanted] * 3, (turn, out)
            comm.barrier()
        return "right"


@pytest.mark.parametrize("without", [(), (0,), (0, 1, 2)], ids=["none", "one", "all"])
def test_ranks_that_come_late_with_and_without_membarrier(without):
    with Ranks(come_late, 3, without) as job:
        found = [outcome.value for outcome in job.outcomes(60)]
    if "refused" in found:
        pytest.skip("no privilege: filters of system calls")
    assert found == ["right"] * 3


# --- calls without data, and those that must wait for their turn


@ranks(1, 2, 3)
def test_barriers(comm):
    for turn in range(200):
        name = (None, "ring", "tree", "dissemination")[turn % 4]
        assert comm.barrier(algorithm=name) is None
    still_works(comm)


@ranks(2)
def test_nobody_leaves_a_known_barrier_early(comm):
    for _ in range(3):
        comm.barrier()
    for turn in range(20):
        if comm.rank == turn % 2:
            time.sleep(0.005)
        came = time.monotonic()
        comm.barrier()
        left = time.monotonic()
        times = comm.allgather(np.array([came, left]))  # one clock for all of a machine
        assert times[:, 1].min() >= times[:, 0].max(), times


def until_idle(comm):
    """The last work is finished just before it is counted."""
    while not comm._queue.idle:
        time.sleep(0)


@ranks(2)
def test_a_call_waits_for_asynchronous_ones_before_it(comm):
    """One that is known must not overtake what is in the queue."""
    x, out, first = np.zeros(4), np.zeros(4), np.zeros(40_000)
    for _ in range(3):
        comm.allreduce(x, out=out)
    for turn in range(40):
        x[:] = turn
        first[:] = turn
        works = [comm.allreduce(first, async_op=True) for _ in range(3)]
        assert comm.allreduce(x, out=out) is out and out.tolist() == [2 * turn] * 4
        for work in works:
            assert work.done()  # its turn came after theirs
            assert work.wait()[0] == 2 * turn
        comm.barrier(async_op=True)
        comm.barrier()
    comm.barrier(async_op=True).wait()
    until_idle(comm)
    with long_ways(comm) as taken:
        comm.allreduce(x, out=out)
        assert taken == []


@ranks(2)
def test_after_asynchronous_calls_that_failed_the_way_is_short_again(comm):
    """What counts the calls under way counts down where they fail, too."""
    x, out = np.ones(3), np.zeros(3)

    def fail():
        raise KeyError("lost")

    work = comm._queue.submit("fails", fail)
    with raising(KeyError, "lost"):
        work.wait()
    until_idle(comm)
    comm.allreduce(x, out=out)
    with long_ways(comm) as taken:
        comm.allreduce(x, out=out)
        assert taken == []
    gate = threading.Event()
    waiting = comm._queue.submit("waits", gate.wait)
    threading.Timer(0.05, gate.set).start()
    with long_ways(comm) as taken:
        comm.allreduce(x, out=out)  # waits for its turn
        assert taken != []
    waiting.wait()
    until_idle(comm)
    comm.barrier()
    with long_ways(comm) as taken:
        comm.allreduce(x, out=out)
        assert taken == []


@ranks(2)
def test_a_closed_queue_counts_nothing_any_more(comm):
    part = comm.split(0)
    gate, begun = threading.Event(), threading.Event()
    counted = []
    part._queue._count = counted.append
    running = part._queue.submit("runs", lambda: [begun.set(), gate.wait()])
    waiting = part._queue.submit("waits", lambda: None)
    begun.wait()
    part.close()
    gate.set()
    running.wait()
    with raising(collectives.CollectiveError, "closed before this call"):
        waiting.wait()
    with raising(collectives.CollectiveError, "the communicator is closed"):
        part._queue.submit("late", lambda: None)
    part._queue.join(10)
    assert counted.count(1) == 2 and counted.count(-1) == 2
    with raising(collectives.CollectiveError, "closed"):
        part.barrier()
    still_works(comm)
