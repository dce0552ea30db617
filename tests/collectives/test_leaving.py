"""A communicator, or its program, that ends while a call of it is under way."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time

import numpy as np
import pytest
from harness.processes import Ranks, say, told

import collectives
from transports import _native


def close_in_a_call(how):
    """Rank 0 closes in a gather to which rank 2 has sent, and rank 1 not; what each hears."""
    comm = collectives.init(timeout=60)
    comm.barrier()
    x = np.ones(4)
    heard = []

    def hear(call):
        try:
            call()
        except collectives.CollectiveError as error:
            heard.append((type(error).__name__, str(error)))

    if comm.rank == 0:
        before = comm._engine.calls
        if how == "in a handler":
            signal.signal(signal.SIGTERM, lambda number, frame: hear(comm.close))

        def watch():
            while comm._engine.calls == before:
                time.sleep(0.001)
            say("inside")
            if how == "in a thread":
                told()
                hear(comm.close)

        watcher = threading.Thread(target=watch)
        watcher.start()
        hear(lambda: comm.gather(x, algorithm="linear"))
        watcher.join()
    else:
        if comm.rank == 1:
            told()
        hear(lambda: comm.gather(x, algorithm="linear"))
        say("sent")
        hear(comm.barrier)
        hear(comm.close)
    return heard


@pytest.mark.parametrize("how", ["in a handler", "in a thread"])
def test_close_in_a_call_blames_nobody_for_what_it_has_not_taken_yet(how):
    with Ranks(close_in_a_call, 3, how) as job:
        assert job.said(0) == "inside" and job.said(2) == "sent"
        if how == "in a handler":
            job.kill(0, signal.SIGTERM)
        else:
            job.tell(0)
        ((kind, text),) = job.outcome(0).value
        assert kind == "CollectiveError" and "closed while gather float64[4]" in text
        job.tell(1)
        assert job.said(1) == "sent"
        for rank in (1, 2):
            heard = job.outcome(rank).value
            # Rank 1's gather too, if rank 2 has told everybody before it began.
            assert len(heard) in ((1, 2) if rank == 1 else (1,)), heard
            for kind, text in heard:
                assert kind == "PeerLostError", text
                assert "rank 0" in text and "closed its communicator" in text


# --- daemon threads that are in a call when the program ends


class EndsSlowly:
    """Kept by `sys`, it lets other threads run once the interpreter has begun to end."""

    def __del__(self, sleep=time.sleep):
        sleep(0.1)


def leave_a_thread_behind(what, closes):
    """Ends while a daemon thread of rank 0 waits in a call, or makes one after the other."""
    comm = collectives.init(timeout=60)
    comm.barrier()
    if comm.rank == 1:
        told()
        return
    sys.ends_slowly = EndsSlowly()
    before = comm._engine.calls
    long = np.zeros(100_000)
    calls = {
        "recv": lambda: comm.recv(np.zeros(4), source=1),
        "allreduce": lambda: comm.allreduce(np.zeros(4)),
        "work": lambda: comm.allreduce(np.zeros(4), async_op=True).wait(),
        "long messages": lambda: comm.recv(long, source=1),
        "long calls": lambda: comm.allreduce(long, out=long),
    }

    def serve():
        goes_on = True
        while goes_on:
            goes_on = what.startswith("long")
            with contextlib.suppress(collectives.CollectiveError):
                calls[what]()

    threading.Thread(target=serve, daemon=True).start()
    is_call = what in ("allreduce", "work", "long calls")
    while _native.threads_outside() == 0 or (is_call and comm._engine.calls == before):
        time.sleep(0.001)
    if closes:
        comm.close()


@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("what", ["recv", "allreduce", "work", "long messages", "long calls"])
def test_a_daemon_thread_in_a_call_does_not_abort_the_end(what, closes):
    with Ranks(leave_a_thread_behind, 2, what, closes) as job:
        job.outcome(0)
        job.tell(1)
        job.outcome(1)
        assert [process.returncode for process in job.processes] == [0, 0]  # after all was said
