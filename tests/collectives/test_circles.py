"""Ranks that wait for each other in a circle are told so; those that can go on are left alone."""

from __future__ import annotations

import _thread
import os
import re
import signal
import threading
import time

import numpy as np
import pytest
from harness.processes import Ranks

import collectives

SOON = 10.0


def each_waits(what):
    """What a program of this rank ends with, and after how many seconds."""
    with collectives.init(timeout=30) as comm:
        comm.barrier()
        x, long = np.zeros(4), np.zeros(200_000)
        rank, other = comm.rank, 1 - comm.rank
        began = time.monotonic()
        try:
            match what, rank:
                case ("receives", _):
                    comm.recv(x, source=other)
                case ("tag", 0):
                    comm.send(x, dest=1, tag=1)
                    comm.allreduce(x)
                case ("tag", 1):
                    comm.recv(x, source=0, tag=2)
                case ("any", 0):
                    comm.barrier()
                case ("any", 1):
                    comm.recv(x, source=collectives.ANY)
                case ("work", 0):
                    comm.allreduce(x, async_op=True).wait()
                case ("work", 1):
                    comm.recv(x, source=0)
                case ("work receive", 0):
                    comm.irecv(x, source=1).wait()
                case ("work receive", 1):
                    comm.barrier()
                case ("long sends", _):
                    comm.send(long, dest=other)
                case ("self", 0):
                    comm.recv(x, source=0)
                case ("self", 1):
                    comm.barrier()
        except collectives.CollectiveError as error:
            return type(error).__name__, str(error), time.monotonic() - began
        return "", "", 0.0


@pytest.mark.parametrize(
    "what, words",
    [
        ("receives", ["waits to receive float64[4] with any tag from rank 1"]),
        ("tag", ["waits to receive float64[4] with tag 2 from rank 0", "waits in allreduce"]),
        ("any", ["waits to receive float64[4] with any tag from any rank", "waits in barrier"]),
        ("work", ["waits to receive float64[4] with any tag from rank 0", "waits in allreduce"]),
        ("work receive", ["waits to receive float64[4] with any tag from rank 1", "in barrier"]),
        ("long sends", ["waits to send float64[200000] with tag 0 to rank 1"]),
        ("self", ["rank 0", "waits to receive float64[4] with any tag from rank 0"]),
    ],
)
def test_none_can_go_on(what, words):
    with Ranks(each_waits, 2, what) as job:
        outcomes = [job.outcome(rank).value for rank in range(2)]
        pids = [process.pid for process in job.processes]
    for kind, text, took in outcomes:
        assert kind == "MismatchError", text
        assert text.startswith("the ranks wait for each other, and none can go on:")
        assert all(word in text for word in words), text
        assert took < SOON
    assert outcomes[0][1] == outcomes[1][1]
    if what != "self":
        assert all(f"(pid {pid} on" in outcomes[0][1] for pid in pids)
    if what == "tag":
        assert re.search(r"#2 at .*test_circles.py:\d+ for rank 1", outcomes[0][1])


def three_wait(what):
    """As each_waits, among three ranks, one of which waits for any other."""
    with collectives.init(timeout=30) as comm:
        comm.barrier()
        x = np.zeros(4)
        began = time.monotonic()
        try:
            match what, comm.rank:
                case ("one has left" | "one was killed", 0):
                    comm.recv(x, source=1)
                case ("one has left" | "one was killed" | "all for any", 1):
                    comm.recv(x, source=collectives.ANY)
                case ("one has left", 2):
                    return "", "", 0.0
                case ("one was killed", 2):
                    os.kill(os.getpid(), signal.SIGKILL)
                case ("two have left" | "a call", 0):
                    comm.recv(x, source=collectives.ANY)
                case ("two have left", _):
                    return "", "", 0.0
                case ("all for any", _):
                    comm.recv(x, source=collectives.ANY)
                case ("a call", _):
                    comm.barrier()
        except collectives.CollectiveError as error:
            return type(error).__name__, str(error), time.monotonic() - began
        return "", "", 0.0


@pytest.mark.parametrize(
    "what, raises, kind, words",
    [
        ("one has left", {0, 1}, "PeerLostError", [r"^rank 2 \(pid .*closed its comm.*; the r"]),
        ("one was killed", {0, 1}, "PeerLostError", ["^rank 2 .*ended.*SIGKILL.*; the ranks that"]),
        ("two have left", {0}, "PeerLostError", ["every other rank ended before one sent"]),
        ("all for any", {0, 1, 2}, "MismatchError", ["^the ranks wait for each other"]),
        ("a call", {0, 1, 2}, "MismatchError", ["^the ranks wait for each other", "in barrier"]),
    ],
)  # fmt: skip
def test_none_can_go_on_though_one_waits_for_any(what, raises, kind, words):
    with Ranks(three_wait, 3, what) as job:
        outcomes = {rank: job.outcome(rank).value for rank in sorted(raises)}
    for found, text, took in outcomes.values():
        assert found == kind, text
        assert all(re.search(word, text) for word in words), text
        assert took < SOON
        if what != "two have left":
            assert len(text.splitlines()) == 1 + len(raises)
            assert "waits to receive float64[4] with any tag from any rank" in text


class Deaf:
    """A lock of which a waiter hears late, as on a machine that has no time for it."""

    def __init__(self, lock):
        self.lock, self.waits = lock, 0

    def __getattr__(self, name):
        return getattr(self.lock, name)

    def acquire(self, timeout):
        self.waits += 1
        if self.waits < 2:
            return False
        time.sleep(1.0)
        return self.lock.acquire(timeout=timeout)


def each_goes_on(what):
    """What looks like a circle for a while, and is none."""
    with collectives.init(timeout=30) as comm:
        comm.barrier()
        x, long = np.full(4, comm.rank + 1.0), np.full(200_000, comm.rank + 1.0)
        if what == "thread":  # another thread ends the wait
            if comm.rank == 0:
                later = threading.Timer(1.0, comm.send, [x], {"dest": 1})
                later.start()
                comm.allreduce(x)
                later.join()
            else:
                comm.recv(x, source=0)
                comm.allreduce(x)
        elif what == "pending send":  # it is on its way while the rank is in a collective
            if comm.rank == 0:
                work = comm.isend(long, dest=1)
                comm.barrier()
                work.wait()
            else:
                time.sleep(0.7)
                comm.recv(long, source=0)
                comm.barrier()
                assert long[0] == 1
        elif what == "pending receive":
            if comm.rank == 0:
                work = comm.irecv(long, source=1)
                comm.barrier()
                work.wait()
                assert long[0] == 2
            else:
                time.sleep(0.7)
                comm.send(long, dest=0)
                comm.barrier()
        elif what == "long transfer":  # it moves for longer than a circle takes to be found
            x = np.full(2_000_000, comm.rank + 1.0)
            if comm.rank == 0:
                works = [comm.isend(x, dest=1, tag=tag) for tag in range(300)]
                comm.send(x[:1], dest=1, tag=300)
                comm.barrier()
            else:  # all are announced; their bytes take turns, so that the first ends with the last
                comm.recv(x[:1], source=0, tag=300)
                works = [comm.irecv(x, source=0, tag=tag) for tag in range(300)]
                works[0].wait()
                comm.barrier()
            for work in works:
                work.wait()
            assert (x == 1).all()
        elif what == "timed receive":  # the wait ends, the receive goes on
            if comm.rank == 0:
                y = np.zeros(4)
                receive = comm.irecv(y, source=1)
                with pytest.raises(collectives.CollectiveTimeout):
                    receive.wait(timeout=1.0)
                comm.send(x, dest=1)
                assert receive.wait().tolist() == [3.0] * 4
            else:
                y = comm.recv(np.zeros(4), source=0)
                comm.send(x + y, dest=0)
        elif what == "timed call":
            if comm.rank == 0:
                work = comm.allreduce(x, async_op=True)
                with pytest.raises(collectives.CollectiveTimeout):
                    work.wait(timeout=1.0)
                comm.send(x, dest=1)
                assert work.wait().tolist() == [3.0] * 4
            else:
                comm.recv(np.zeros(4), source=0)
                comm.allreduce(x)
        elif what == "between calls":  # of the queue, which is at what follows the first
            if comm.rank == 0:
                comm._queue.submit("what takes its time", lambda: time.sleep(1.0))
                work = comm.barrier(async_op=True)
                comm.recv(np.zeros(4), source=1)
                work.wait()
            else:
                comm.barrier()
                comm.send(x, dest=0)
        elif what == "work that ended":  # its waiter is about to be told
            if comm.rank == 0:
                work = comm.allreduce(x, async_op=True)
                later = comm.barrier(async_op=True)
                work._gate = Deaf(work._gate)
                work.wait()
                comm.send(x, dest=1)
                later.wait()
            else:
                comm.allreduce(x)
                comm.recv(x, source=0)
                comm.barrier()
        elif what == "unknown thread":
            if comm.rank == 0:
                _thread.start_new_thread(lambda: (time.sleep(1.0), comm.send(x, dest=1)), ())
                comm.recv(np.zeros(4), source=1)
            else:
                comm.recv(np.zeros(4), source=0)
                comm.send(x, dest=0)
        elif what == "unknown thread waits":  # while the one that Python knows does something else
            if comm.rank == 0:
                gate = _thread.allocate_lock()
                gate.acquire()
                y = np.zeros(4)
                wait = lambda: (comm.recv(y, source=1), gate.release())  # noqa: E731
                _thread.start_new_thread(wait, ())
                time.sleep(1.0)
                comm.send(x, dest=1)
                gate.acquire()
            else:
                comm.recv(np.zeros(4), source=0)
                comm.send(x, dest=0)
        elif what == "signal":  # whose handler ends the wait of the others
            if comm.rank == 0:
                signal.signal(signal.SIGALRM, lambda *_: comm.send(x, dest=1))
                signal.setitimer(signal.ITIMER_REAL, 1.0)
                comm.recv(np.zeros(4), source=1)
            else:
                comm.recv(np.zeros(4), source=0)
                comm.send(x, dest=0)
        elif what == "asynchronous call":  # which rank 1 joins before it sends
            if comm.rank == 0:
                work = comm.allreduce(x, async_op=True)
                comm.recv(x, source=1)
                work.wait()
            else:
                time.sleep(0.7)
                comm.allreduce(x)
                time.sleep(0.7)
                comm.send(x, dest=0)
        elif what == "late":
            if comm.rank:
                time.sleep(1.0)
            comm.allreduce(x)
        return float(comm.allreduce(np.ones(1))[0])


def three_go_on(what):
    """As each_goes_on, among three ranks: one waits for any, one for that, and the third acts."""
    with collectives.init(timeout=30) as comm:
        comm.barrier()
        long = np.full(200_000, comm.rank + 1.0)
        if comm.rank == 0:
            long = comm.recv(long, source=1)
        elif comm.rank == 1:
            if what == "the last comes late":
                comm.recv(np.zeros(4), source=collectives.ANY)
            comm.send(comm.recv(long, source=collectives.ANY), dest=0)
        elif what == "sends and leaves":
            comm.send(long, dest=1)
        else:
            time.sleep(0.7)
            if what == "the last comes late":
                comm.send(np.zeros(4), dest=1)
                time.sleep(0.7)
            comm.send(long, dest=1)
        return float(long[-1])


@pytest.mark.parametrize("what", ["comes late", "the last comes late", "sends and leaves"])
def test_what_can_go_on_does_though_one_waits_for_any(what):
    with Ranks(three_go_on, 3, what) as job:
        outcomes = job.outcomes()
    assert [(outcome.text, outcome.value) for outcome in outcomes] == [("", 3.0)] * 3


@pytest.mark.parametrize(
    "what",
    [
        "thread",
        "pending send",
        "pending receive",
        "timed receive",
        "unknown thread",
        "signal",
        "asynchronous call",
        "late",
        *(
            pytest.param(what, marks=pytest.mark.full)
            for what in (
                "long transfer",
                "timed call",
                "between calls",
                "work that ended",
                "unknown thread waits",
            )
        ),
    ],
)
def test_what_can_go_on_does(what):
    with Ranks(each_goes_on, 2, what) as job:
        outcomes = job.outcomes()
    assert [(outcome.text, outcome.value) for outcome in outcomes] == [("", 2.0)] * 2
