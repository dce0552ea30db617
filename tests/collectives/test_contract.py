"""What happens when things go wrong: who raises what, soon, and what still works afterwards."""

from __future__ import annotations

import os
import re
import signal
import threading
import time

import numpy as np
import pytest
from harness.batches import Batch
from harness.errors import raising, still_works
from harness.processes import Ranks, say, told

import collectives

ranks = Batch()
SOON = 10.0  # the contract says a second; tests share their cores with others


# --- exceptions


@ranks(2, 3)
def test_an_exception_reaches_the_others_with_its_traceback(comm):
    def stumble():
        return {}["a key that is not there"]

    part = comm.split(0)
    began = time.monotonic()
    if comm.rank == comm.size - 1:
        with raising(KeyError), part:
            stumble()
    else:
        with raising(
            collectives.AbortedError, f"rank {comm.size - 1} raised KeyError", "stumble",
            "a key that is not there", "test_contract.py",
        ):  # fmt: skip
            part.allreduce(np.ones(3))
        with raising(collectives.AbortedError, "stumble"):
            part.barrier()
        part.close()
    assert time.monotonic() - began < SOON
    still_works(comm)


@ranks(2)
def test_a_very_long_traceback_is_cut_not_lost(comm):
    part = comm.split(0)
    if comm.rank:
        with raising(ValueError), part:
            raise ValueError("long " * 10_000)
    else:
        with raising(collectives.AbortedError, "rank 1 raised ValueError", "long long"):
            part.barrier()
        part.close()


# --- deadlines


@ranks(3)
def test_a_deadline_names_the_operation_and_who_is_missing(comm):
    part = comm.split(0)
    part.barrier()
    if comm.rank == 2:
        comm.barrier()
        with raising(collectives.CollectiveTimeout, "allreduce float64[3]"):
            part.allreduce(np.ones(3))
    else:
        with raising(
            collectives.CollectiveTimeout, "allreduce float64[3] sum", "rank 2", "barrier", "0.2"
        ) as caught:
            part.allreduce(np.ones(3), timeout=0.2)
        assert isinstance(caught.error, TimeoutError)
        comm.barrier()
        with raising(collectives.CollectiveTimeout, "allreduce float64[3] sum"):
            part.barrier()
    part.close()
    still_works(comm)


@ranks(2)
def test_the_deadline_of_the_communicator_counts_where_a_call_has_none(comm):
    part = comm.split(0)
    part.timeout = 0.1
    if comm.rank == 0:
        for call in (part.barrier, lambda: part.broadcast_object(1)):
            with raising(collectives.CollectiveTimeout, "0.1", "rank 1", "no call yet"):
                call()
    comm.barrier()
    part.close()


# --- a lost peer


def lose(how):
    """Three ranks; rank 1 ends in some way; what the others' calls raise, and how long it took."""
    with collectives.init(timeout=60) as comm:
        half = comm.split(0)
        comm.barrier()
        say("past")
        if comm.rank == 1:
            told()  # all are past the barrier, which an exception here would end
            if how == "kill inside":
                comm.allreduce(np.ones(100_000), async_op=True)
                while comm._engine.calls < 3:  # until the call has been entered
                    pass
                say("inside")
                told()
            if how == "exit":
                os._exit(3)
            if how == "return":
                return None
            if how == "raise":
                raise LookupError("on purpose")
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "kill inside" and comm.rank == 2:
            say(str(os.getpid()))
            told()  # rank 1 is inside, and dead
        began = time.monotonic()
        found = []
        for each in (comm, comm, half, half):
            try:
                each.allreduce(np.ones(100_000))
                each.allreduce(np.ones(100_000))
            except collectives.CollectiveError as error:
                found.append((type(error).__name__, str(error)))
        return found, time.monotonic() - began


@pytest.mark.parametrize("how", ["kill", "kill inside", "exit", "return", "raise"])
def test_a_lost_peer(how):
    with Ranks(lose, 3, how) as job:
        assert [job.said(rank) for rank in range(3)] == ["past"] * 3
        job.tell(1)
        if how == "kill inside":
            assert job.said(1) == "inside" and job.said(2) == str(job.processes[2].pid)
            job.kill(1)
            assert job.outcome(1).code == -signal.SIGKILL
            job.tell(2)
        pid = job.processes[1].pid
        ended = job.outcome(1).code
        assert ended == {"exit": 3, "return": 0, "raise": 1}.get(how, -signal.SIGKILL)
        for rank in (0, 2):
            found, took = job.outcome(rank).value
            assert took < SOON
            assert len(found) == 4, "a communicator with a lost rank worked"
            for number, (kind, text) in enumerate(found):
                if how == "raise" and number < 2:
                    assert kind == "AbortedError" and "LookupError" in text
                    assert "on purpose" in text and "rank 1 raised" in text
                    continue
                assert kind == "PeerLostError", text
                assert "rank 1" in text and f"pid {pid}" in text and "allreduce" in text
                assert os.uname().nodename in text
            assert found[0] == found[1] and found[2] == found[3]  # the same error at once


def leave_in_turn():
    """Every rank ends as soon as its own part is done; nobody waits for anybody at the end."""
    comm = collectives.init(timeout=60)
    for count in (1, 100, 300_000):
        total = comm.allreduce(np.full(count, comm.rank))
        assert total[0] == sum(range(comm.size))
    found = comm.reduce(np.ones(200_000), root=comm.size - 1)
    assert found is None or found[0] == comm.size
    got = comm.broadcast(np.full(10, comm.rank), root=0)  # rank 0 posts, and is gone
    return int(got[0])


def test_ranks_that_are_done_may_leave_without_closing():
    with Ranks(leave_in_turn, 4) as job:
        assert [outcome.value for outcome in job.outcomes()] == [0] * 4


# --- signals


def wait_for_ever(what):
    """Rank 0 waits in vain, and says so once it does."""
    with collectives.init(timeout=60) as comm:
        comm.barrier()
        if comm.rank == 0:
            before = comm._engine.calls

            def watch():
                while what not in ("recv",) and comm._engine.calls == before:
                    pass
                say("waits")

            threading.Thread(target=watch, daemon=True).start()
            if what == "recv":
                comm.recv(np.zeros(1), source=1)
            elif what == "work":
                comm.allreduce(np.zeros(1), async_op=True).wait()
            else:
                comm.allreduce(np.zeros(1))
        else:
            told()
            comm.allreduce(np.zeros(1))
            comm.barrier()


@pytest.mark.parametrize("what", ["allreduce", "work", "recv"])
def test_ctrl_c_ends_any_wait(what):
    with Ranks(wait_for_ever, 2, what) as job:
        assert job.said(0) == "waits"
        began = time.monotonic()
        job.kill(0, signal.SIGINT)
        assert job.outcome(0).error == "KeyboardInterrupt"
        assert time.monotonic() - began < SOON
        job.tell(1)
        outcome = job.outcome(1)
        assert outcome.error == "AbortedError" and "rank 0" in outcome.text
        assert re.search("KeyboardInterrupt|interrupted", outcome.text)


def go_on_after_ctrl_c():
    with collectives.init(timeout=60) as comm:
        if comm.rank:
            told()
            comm.barrier()  # may end well: what rank 0 had posted counts
            comm.barrier()
            return None
        before = comm._engine.calls

        def interrupt():
            while comm._engine.calls == before:
                pass
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        found = []
        for _ in range(2):
            try:
                comm.barrier()
            except (KeyboardInterrupt, collectives.CollectiveError) as error:
                found.append((type(error).__name__, str(error)))
        say("caught")
        told()
        return found


def test_a_call_that_was_interrupted_leaves_the_communicator_broken():
    with Ranks(go_on_after_ctrl_c, 2) as job:
        assert job.said(0) == "caught"
        job.tell(0)
        (first, _), (second, text) = job.outcome(0).value
        assert first == "KeyboardInterrupt" and second in ("CollectiveError", "AbortedError")
        assert "interrupted" in text
        job.tell(1)
        assert job.outcome(1).error in ("PeerLostError", "AbortedError")
