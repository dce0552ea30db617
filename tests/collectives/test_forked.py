"""A child of fork is not the rank, whatever the rank was at: it is refused, and can leave."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
from harness.processes import Ranks, say, told

import collectives
from transports import _native


def child_hears(call):
    """What `call` raises in a forked child, which has our communicators, but is not our rank."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # ends a call that waits for ever
        try:
            call()
        except collectives.CollectiveError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "the child's call never ended"
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read().decode()


def descend():
    with collectives.init(timeout=60) as comm:
        comm.barrier()
        text = child_hears(comm.barrier) if comm.rank == 0 else ""
        comm.barrier()
        return text


def test_a_forked_child_is_not_the_rank():
    with Ranks(descend, 2) as job:
        assert "forked" in job.outcome(0).value
        assert job.outcome(1).value == ""


def descend_in_a_call():
    """The fork comes while a thread of the parent is in a call that the child is not in."""
    with collectives.init() as comm:
        if comm.rank == 1:
            told()  # comes late, so that rank 0 forks first
        thread = threading.Thread(target=comm.allreduce, args=(np.ones(4),))
        thread.start()
        text = ""
        if comm.rank == 0:
            while comm._engine.calls == 0:
                time.sleep(0.001)
            text = child_hears(comm.barrier)
            say("forked")
        thread.join()
        comm.barrier()
        return text


def test_a_child_forked_in_a_call_is_not_the_rank():
    with Ranks(descend_in_a_call, 2) as job:
        assert job.said(0) == "forked"
        job.tell(1)
        assert "forked" in job.outcome(0).value
        assert job.outcome(1).value == ""


def descend_beside_asynchronous_calls():
    """What children hear that are forked while one asynchronous call runs and another waits."""
    with collectives.init(timeout=60) as comm:
        x = np.ones(4)
        past = comm.allreduce(x, async_op=True)
        past.wait()
        found = {}
        if comm.rank == 0:
            before = comm._engine.calls
            works = [comm.allreduce(x, async_op=True) for _ in range(2)]
            while comm._engine.calls == before:
                time.sleep(0.001)
            calls = {
                "blocking": lambda: comm.allreduce(x),
                "asynchronous": lambda: comm.allreduce(x, async_op=True).wait(),
                "running": works[0].wait,
                "waiting": lambda: works[1].wait(5),
                "done": works[1].done,
                "shrink": comm.shrink,
            }
            found = {name: child_hears(call) for name, call in calls.items()}
            found["past"] = child_hears(past.wait)
            say("forked")
        else:
            told()
            works = [comm.allreduce(x, async_op=True) for _ in range(2)]
        assert [work.wait().tolist() for work in works] == [[2.0] * 4] * 2
        return found


def test_asynchronous_calls_of_a_forked_child_are_refused():
    with Ranks(descend_beside_asynchronous_calls, 2) as job:
        assert job.said(0) == "forked"
        job.tell(1)
        found = job.outcome(0).value
        assert job.outcome(1).error == ""
    for name in ("blocking", "asynchronous", "shrink"):
        assert "forked from rank 0 and is no rank itself" in found.pop(name), name
    assert found.pop("past") == ""  # it has its result
    for name, text in found.items():
        assert "allreduce float64[4]" in text and "had not ended" in text, name


def descend_while_the_queue_is_locked():
    """How a child ended that leaves its parent's communicator: another thread held the lock."""
    with collectives.init() as comm:
        comm.barrier(async_op=True).wait()
        held, leave = threading.Event(), threading.Event()

        def hold():
            with comm._queue._lock:
                held.set()
                leave.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            comm.close()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        leave.set()
        thread.join()
        comm.barrier()  # the parent's is as it was
        return status


def test_a_forked_child_can_leave_whatever_was_locked():
    with Ranks(descend_while_the_queue_is_locked, 1) as job:
        assert job.outcome(0).value == 0


def count_threads_of_a_child():
    """What a child counts that was forked while a thread of its parent was in a call; and then."""
    with collectives.init(timeout=60) as comm:
        receive = threading.Thread(target=lambda: comm.recv(np.zeros(4), source=0))
        receive.start()
        while _native.threads_outside() == 0:
            time.sleep(0.001)
        child = os.fork()
        if child == 0:
            os._exit(_native.threads_outside())
        _, status = os.waitpid(child, 0)
        comm.send(np.ones(4), dest=0)
        receive.join()
        return status, _native.threads_outside()


def test_a_forked_child_waits_for_no_thread_of_its_parent():
    with Ranks(count_threads_of_a_child, 1) as job:
        assert job.outcome(0).value == (0, 0)
