"""A blocking receive that an exception leaves takes no message: it is there for the next."""

from __future__ import annotations

import re
import signal
import traceback
from unittest.mock import patch

import numpy as np
import psutil
import pytest
from harness.processes import Ranks, say, told

import collectives
from collectives.arrays import NUMPY

SHORT, LONG = 4, 200_000


def interrupted(call):
    """Makes a call that waits, and lets a signal's handler raise in it."""

    def handler(number, frame):
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(KeyboardInterrupt):
        call()


def raising_at_its_end(call, before=lambda: None):
    """Makes a receive into an array with gaps, the last step of which, copying, raises."""

    def raises(*given):
        before()
        raise KeyboardInterrupt

    with patch.object(type(NUMPY), "copy_into", raises), pytest.raises(KeyboardInterrupt):
        call()


def each_receives(what, count):
    """Rank 0 leaves a receive, then receives two messages in their order."""
    with collectives.init(timeout=10) as comm:
        if comm.rank == 1:
            if what.startswith("none"):
                comm.barrier()
            comm.send(np.full(count, 1.0), dest=0)
            if what == "it came for another":
                comm.barrier()
            comm.send(np.full(count, 2.0), dest=0)
            return comm.allreduce(np.ones(1)).tolist()
        x, gaps = np.zeros(count), np.zeros(2 * count)[::2]
        first = []
        match what:
            case "none came":
                interrupted(lambda: comm.recv(x, source=1))
            case "none came from any":
                interrupted(lambda: comm.recv(x))
            case "none came in exchange":
                interrupted(lambda: comm.sendrecv(np.zeros(1), dest=1, source=1, out=x))
            case "it came":
                raising_at_its_end(lambda: comm.recv(gaps, source=1))
            case "it came for another":
                raising_at_its_end(
                    lambda: comm.recv(gaps, source=1),
                    lambda: first.append(comm.irecv(x, source=1)),
                )
        if what.startswith("none"):
            comm.barrier()
        received = first[0].wait() if first else comm.recv(x, source=1)
        assert received.tolist() == [1.0] * count
        if what == "it came for another":
            comm.barrier()
        assert comm.recv(x).tolist() == [2.0] * count
        return comm.allreduce(np.ones(1)).tolist()


@pytest.mark.parametrize("count", [SHORT, LONG])
@pytest.mark.parametrize(
    "what",
    [
        "none came",
        "none came from any",
        "none came in exchange",
        "it came",
        "it came for another",
    ],
)
def test_the_message_is_there_for_the_next(what, count):
    with Ranks(each_receives, 2, what, count) as job:
        outcomes = job.outcomes()
    assert [(outcome.text, outcome.value) for outcome in outcomes] == [("", [2.0])] * 2


def each_is_in_the_midst():
    """Rank 0 leaves a receive of which rank 1, which is stopped, has sent nothing but its begin."""
    with collectives.init(timeout=20) as comm:
        if comm.rank == 1:
            work = comm.isend(np.ones(LONG), dest=0, tag=3)
            comm.send(np.zeros(1), dest=0, tag=1)
            say("announced")
            told()
            with pytest.raises(collectives.AbortedError) as error:
                work.wait()
            return str(error.value)
        comm.recv(np.zeros(1), source=1, tag=1)
        told()
        interrupted(lambda: comm.recv(np.zeros(LONG), source=1, tag=3))
        with pytest.raises(collectives.AbortedError) as error:
            comm.recv(np.zeros(LONG), source=1, tag=3)
        return str(error.value)


def test_a_message_in_the_midst_is_lost_and_all_are_told():
    with Ranks(each_is_in_the_midst, 2) as job:
        assert job.said(1) == "announced"
        job.kill(1, signal.SIGSTOP)
        while psutil.Process(job.processes[1].pid).status() != psutil.STATUS_STOPPED:
            pass
        job.tell(0)
        texts = [job.outcome(0).value]
        job.kill(1, signal.SIGCONT)
        job.tell(1)
        texts.append(job.outcome(1).value)
    for text in texts:
        assert re.fullmatch(
            r"rank 0 was interrupted while it received float64\[200000\] \(1600000 bytes\) "
            "with tag 3 from rank 1",
            text,
        )


class Rang(BaseException):
    """What a signal handler raises."""


def interrupted_once(method):
    """The same, in the first call of which a signal handler raises."""
    left = [Rang]

    def call(*arguments):
        if left:
            raise left.pop()
        return method(*arguments)

    return call


def test_an_interrupted_close_closes(monkeypatch):
    comm = collectives.init()
    monkeypatch.setattr(comm._queue, "close", interrupted_once(comm._queue.close))
    with pytest.raises(Rang):
        comm.close()
    assert comm._engine.closed and comm._queue._closed
    comm.close()


def leaves_interrupted():
    """The traceback that others are to see is being written when another exception comes."""
    comm = collectives.init(timeout=20)
    comm.barrier()
    if comm.rank == 1:
        traceback.format_exception = interrupted_once(traceback.format_exception)
        try:
            with comm:
                raise ValueError("first")
        except Rang:
            assert comm._engine.closed
            return "interrupted"
    comm.barrier()
    return "went on"


def test_an_abort_that_is_interrupted_reaches_the_others():
    with Ranks(leaves_interrupted, 2) as ranks:
        first, second = ranks.outcomes()
    assert second.value == "interrupted"
    assert first.error == "AbortedError" and "rank 1 raised ValueError" in first.text
