"""async_op=True: calls run in the order they were made, beside the program, and fail in wait()."""

from __future__ import annotations

import contextlib
import sys
import threading
import time

import numpy as np
from harness.batches import Batch
from harness.errors import raising, refused, still_works
from harness.processes import Ranks

import collectives
from collectives.work import Work, WorkQueue

ranks = Batch()


@ranks(1, 3)
def test_every_collective(comm):
    size, rank = comm.size, comm.rank
    x = np.arange(4.0) + rank
    rows = np.arange(4.0 * size).reshape(size, 4)
    every = np.stack([np.arange(4.0) + other for other in range(size)])
    works = {
        "allreduce": (comm.allreduce(x, async_op=True), every.sum(0)),
        "reduce": (comm.reduce(x, async_op=True), every.sum(0) if rank == 0 else None),
        "broadcast": (comm.broadcast(x, async_op=True), every[0]),
        "gather": (comm.gather(x, async_op=True), every if rank == 0 else None),
        "allgather": (comm.allgather(x, async_op=True), every),
        "scatter": (comm.scatter(rows if rank == 0 else None, async_op=True), rows[rank]),
        "reduce_scatter": (comm.reduce_scatter(rows, async_op=True), size * rows[rank]),
        "alltoall": (comm.alltoall(rows, async_op=True), np.stack([rows[rank]] * size)),
        "barrier": (comm.barrier(async_op=True), None),
    }
    for name, (work, wanted) in works.items():
        assert isinstance(work, collectives.Work), name
        found = work.wait()
        assert work.done(), name
        assert found is None if wanted is None else np.array_equal(found, wanted), name
        assert work.wait() is found, name
    still_works(comm)


@ranks(2)
def test_blocking_calls_take_their_turn(comm):
    x = np.zeros(1)
    works = []
    for number in range(50):
        if number % 3 == comm.rank:  # one rank blocks where the other does not: they still agree
            assert comm.allreduce(np.full(500, number))[0] == 2 * number
        else:
            works.append((number, comm.allreduce(np.full(500, number), async_op=True)))
        if number % 7 == 0:
            comm.broadcast_object(number)
            comm.scatter(np.zeros((2, 3)) if comm.rank == 0 else None)
    assert comm.allreduce(x)[0] == 0
    assert all(work.wait(5)[0] == 2 * number for number, work in works)


@ranks(2)
def test_arrays_live_as_long_as_the_call_needs_them(comm):
    works = []
    for number in range(20):
        works.append(comm.allreduce(np.full(100_000, number)[::2], async_op=True))
    outs = [np.zeros(100_000)[::2] for _ in range(5)]
    works += [comm.allreduce(np.full(50_000, 7.0), out=out, async_op=True) for out in outs]
    for number, work in enumerate(works[:20]):
        assert np.all(work.wait() == 2 * number)
    for out, work in zip(outs, works[20:], strict=True):
        assert work.wait() is out and np.all(out == 14)


@ranks(2)
def test_wrong_arguments_are_refused_at_the_call(comm):
    for call in (comm.allreduce, comm.broadcast, comm.allgather):
        refused(comm, TypeError, ["numpy array"], lambda c=call: c([1], async_op=True))
        refused(comm, ValueError, ["out"],
                lambda c=call: c(np.zeros(2), out=np.zeros(3), async_op=True))  # fmt: skip
    refused(comm, ValueError, ["op must be"],
            lambda: comm.allreduce(np.zeros(2), op="sun", async_op=True))  # fmt: skip


@ranks(2)
def test_errors_come_out_of_wait_every_time(comm):
    part = comm.split(0)
    work = part.allreduce(np.zeros(2 + part.rank), async_op=True)
    later = part.allreduce(np.zeros(2), async_op=True)
    for each in (work, work, later):
        with raising(collectives.MismatchError, "float64[2]", "float64[3]"):
            each.wait()
    assert work.done() and later.done()
    with raising(collectives.MismatchError):
        part.allreduce(np.zeros(2))
    part.close()


@ranks(2)
def test_a_wait_may_be_shorter_than_the_call(comm):
    part = comm.split(0)
    if comm.rank == 0:
        work = part.allreduce(np.ones(2), async_op=True)
        with raising(collectives.CollectiveTimeout, "allreduce float64[2]", "0.01", "goes on"):
            work.wait(0.01)
        assert not work.done()
        comm.barrier()
        assert work.wait()[0] == 2
    else:
        comm.barrier()
        assert part.allreduce(np.ones(2))[0] == 2
    part.close()


@ranks(2)
def test_closing_ends_what_is_under_way(comm):
    part = comm.split(0)
    if comm.rank == 0:
        running = part.allreduce(np.ones(2), async_op=True)
        waiting = part.allreduce(np.ones(2), async_op=True)
        while part._engine.calls == 0:  # until the first has begun
            pass
        part.close()
        with raising(collectives.CollectiveError, "closed while allreduce"):
            running.wait(10)
        with raising(collectives.CollectiveError, "closed before this call"):
            waiting.wait(10)
        with raising(collectives.CollectiveError, "closed"):
            part.allreduce(np.ones(2), async_op=True)
        comm.barrier()
    else:
        comm.barrier()
        with raising(collectives.CollectiveError, "rank 0"):
            part.allreduce(np.ones(2))  # may end well: what rank 0 had posted counts
            part.allreduce(np.ones(2))
        part.close()


@ranks(2)
def test_two_threads_at_once_are_told(comm):
    part = comm.split(0)
    if comm.rank == 0:
        found = []
        thread = threading.Thread(target=lambda: found.append(part.allreduce(np.ones(2))))
        thread.start()
        while part._engine.calls == 0:  # until the thread is in its call
            pass
        for call in (lambda: part.allreduce(np.ones(2)), part.barrier):
            with raising(collectives.CollectiveError, "two collectives at once"):
                call()
        comm.barrier()
        thread.join()
        assert found[0].tolist() == [2, 2]
    else:
        comm.barrier()
        part.allreduce(np.ones(2))
    still_works(part)  # nothing was sent by what was refused
    part.close()


@ranks(2)
def test_threads_that_take_turns_are_fine(comm):
    found = []
    for number in range(10):
        thread = threading.Thread(target=lambda n=number: found.append(comm.allreduce(np.array(n))))
        thread.start()
        thread.join()
    assert [int(each) for each in found] == [2 * number for number in range(10)]


def test_a_queue_runs_in_order_and_stops_at_close():
    queue = WorkQueue("test")
    order, gate, begun = [], threading.Event(), threading.Event()

    def first():
        begun.set()
        gate.wait()
        order.append("first")

    works = [queue.submit("first", first)]
    works.append(queue.submit("second", lambda: order.append("second")))
    assert not queue.idle and not works[0].done()
    begun.wait()
    queue.close()
    gate.set()
    works[0].wait()
    with raising(collectives.CollectiveError, "closed before"):
        works[1].wait()
    with raising(collectives.CollectiveError, "closed"):
        queue.submit("third", lambda: None)
    queue.close()
    assert order == ["first"] and queue.idle


def test_a_queue_goes_on_after_an_error():
    queue = WorkQueue("test")

    def fail():
        raise KeyError("lost")

    failing, after = queue.submit("fails", fail), queue.submit("works", lambda: 5)
    assert after.wait(10) == 5
    with raising(KeyError, "lost"):
        failing.wait()
    queue.close()


def test_a_work_tells_who_waits_too_long():
    work = Work("allreduce of test")
    with raising(TimeoutError, "allreduce of test has not ended within 0.001 s"):
        work.wait(0.001)
    work.finish(3)
    assert work.wait() == 3


class Rang(BaseException):
    """What a signal handler raises."""


def test_an_exception_of_a_signal_handler_in_a_wait_keeps_nobody_waiting():
    work = Work("allreduce of test")

    def trace(frame, event, argument):
        code = frame.f_code
        if (event, code.co_name, code.co_filename) == ("return", "__enter__", threading.__file__):
            raise Rang
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with contextlib.suppress(Rang, collectives.CollectiveTimeout):
            work.wait(0.01)
    finally:
        sys.settrace(before)
    end = threading.Thread(target=work.finish, args=(3,), daemon=True)
    end.start()
    end.join(5.0)
    assert not end.is_alive()

    def ring(frame, event, argument):  # once it has what it waited for
        if event == "c_return" and argument == work._gate.acquire:
            sys.setprofile(None)
            raise Rang

    profiled = sys.getprofile()
    work._has_ended = False  # for this wait it ends just now
    sys.setprofile(ring)
    try:
        with contextlib.suppress(Rang):
            work.wait()
            raise AssertionError("no handler was called")
    finally:
        sys.setprofile(profiled)
    work._has_ended = True
    assert work._gate.locked() and work.wait() == 3


def test_an_exception_of_a_signal_handler_leaves_the_queue_unlocked():
    """It may come between any two lines of Python, those of the standard library too."""
    queue = WorkQueue("queue-of-a-test")
    queue.submit("first", lambda: None).wait()

    def trace(frame, event, argument):
        code = frame.f_code
        if (event, code.co_name, code.co_filename) == ("return", "__enter__", threading.__file__):
            raise Rang
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with contextlib.suppress(Rang):
            queue.submit("second", lambda: None)
    finally:
        sys.settrace(before)
    queue.close()
    queue.join(5.0)
    assert not any(thread.name == "queue-of-a-test" for thread in threading.enumerate())


def test_a_mismatch_says_where_the_program_made_the_call():
    """Of a blocking call that waits its turn behind asynchronous ones, and runs where they do."""

    def body():
        with collectives.init(timeout=60) as comm:
            if comm.rank == 1:
                time.sleep(0.3)
            work = comm.barrier(async_op=True)
            with raising(collectives.MismatchError) as caught:
                comm.allreduce(np.zeros(4 + comm.rank))
            work.wait()
            return str(caught)

    with Ranks(body, 2) as job:
        outcomes = job.outcomes()
    assert [outcome.error for outcome in outcomes] == ["", ""], outcomes
    for outcome in outcomes:
        assert "rank 0 has allreduce float64[4]" in outcome.value
        assert "test_async.py:" in outcome.value and "threading.py" not in outcome.value
