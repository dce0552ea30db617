"""Calls that do not fit together: who raises, when, and what the text names."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import numpy as np
import pytest
from harness.batches import Batch
from harness.errors import raising, still_works
from harness.processes import Ranks

import collectives
import launch

ranks = Batch()
SOON = 10.0  # the contract says a second; tests share their cores with others

DIFFERENT = {
    "collective": (
        lambda comm, x: comm.allreduce(x),
        lambda comm, x: comm.allgather(x),
        "allreduce float32[4] sum", "allgather float32[4]",
    ),
    "dtype": (
        lambda comm, x: comm.allreduce(x),
        lambda comm, x: comm.allreduce(x.astype(np.float64)),
        "allreduce float32[4] sum", "allreduce float64[4] sum",
    ),
    "count": (
        lambda comm, x: comm.allreduce(x),
        lambda comm, x: comm.allreduce(x[1:]),
        "allreduce float32[4] sum", "allreduce float32[3] sum",
    ),
    "large count": (
        lambda comm, x: comm.allreduce(np.zeros(1_000_000, np.float32)),
        lambda comm, x: comm.allreduce(np.zeros(1_000_001, np.float32)),
        "allreduce float32[1000000] sum", "allreduce float32[1000001] sum",
    ),
    "op": (
        lambda comm, x: comm.allreduce(x, op="max"),
        lambda comm, x: comm.allreduce(x, op="min"),
        "float32[4] max", "float32[4] min",
    ),
    "algorithm": (
        lambda comm, x: comm.allreduce(x, algorithm="ring"),
        lambda comm, x: comm.allreduce(x, algorithm="recursive_doubling"),
        "by ring", "by recursive_doubling",
    ),
    "root": (
        lambda comm, x: comm.broadcast(x, root=0),
        lambda comm, x: comm.broadcast(x, root=1),
        "root 0", "root 1",
    ),
    "number": (
        lambda comm, x: [comm.allreduce(x), comm.allreduce(x)],
        lambda comm, x: [comm.barrier(), comm.allreduce(x)],
        "allreduce float32[4] sum", "barrier",
    ),
}  # fmt: skip


@ranks(2, 3)
def test_calls_that_do_not_fit_together(comm):
    x = np.arange(4, dtype=np.float32)
    for name, (usual, other, *both) in DIFFERENT.items():
        part = comm.split(0)
        part.barrier()
        began = time.monotonic()
        with raising(collectives.MismatchError, "rank") as caught:
            # A rank that has nothing to receive learns of it in its next call.
            (other if part.rank == part.size - 1 else usual)(part, x)
            part.barrier()
        assert time.monotonic() - began < SOON, name
        text = str(caught)
        if name != "root":  # roots that only post are in their next call when it is noticed
            assert any(word in text for word in both), (name, text)
        assert len(set(re.findall(r"rank (\d+) has", text))) == 2, (name, text)  # both sides
        assert re.search(r"#\d+", text), (name, text)
        for call in (part.barrier, lambda p=part: p.allreduce(x)):
            with raising(collectives.MismatchError, text):  # the same at once
                call()
        part.close()
        still_works(comm)  # a mismatch breaks only its own communicator


@ranks(2)
def test_both_sides_are_named_where_both_are_still_there(comm):
    for name, (usual, other, *both) in DIFFERENT.items():
        if name == "root":
            continue  # one of the two may have left its call
        part = comm.split(0)
        with raising(collectives.MismatchError, *both):
            (other if part.rank else usual)(part, np.arange(4, dtype=np.float32))
            raise AssertionError(f"{name}: data came out of calls that do not fit together")
        part.close()


@ranks(3)
def test_a_call_before_that_differed_is_blamed(comm):
    """Broadcasts of two roots may return; the calls after them fit, but their messages do not."""
    part = comm.split(0)
    with raising(collectives.MismatchError, "rank") as caught:
        part.broadcast(np.ones(3), root=part.rank)
        part.barrier()
    assert re.search(
        "(a call before this one|so the two calls) differed(,| between them,) in (its|their) root",
        str(caught),
    ), str(caught)
    part.close()


@ranks(2, 3)
def test_the_line_of_each_call_is_named(comm):
    part = comm.split(0)
    line = sys._getframe().f_lineno
    with raising(collectives.MismatchError, *(
        f"test_mismatch.py:{line + number}" for number in (5, 7)
    )):  # fmt: skip
        if part.rank == 0:
            part.allreduce(np.ones(5))
        else:
            part.allreduce(np.ones(6))
    part.close()


def each_as_root(comm, part):
    """One rank after the other broadcasts as the root; what comes too late for rank 0 to see."""
    if comm.rank:
        comm.recv(np.zeros(1), source=comm.rank - 1)
        with raising(collectives.MismatchError, "root", "#1", "did not take in its own"):
            part.broadcast(np.ones(4), root=part.rank, algorithm="linear")
    else:
        part.broadcast(np.ones(4), root=0, algorithm="linear")
    if comm.rank + 1 < comm.size:
        comm.send(np.zeros(1), dest=comm.rank + 1)
    comm.barrier()


@ranks(2, 3, 4)
def test_several_roots_are_found_at_close_or_in_the_next_call(comm):
    """A rank that only sends returns before the others are found to differ."""
    for then in ("close", "next", "block"):
        part = comm.split(0)
        each_as_root(comm, part)
        if comm.rank == 0:
            with raising(collectives.MismatchError, "rank", "root", "#1"):
                if then == "close":
                    part.close()
                elif then == "next":
                    part.broadcast(np.ones(4), root=0, algorithm="linear")
                else:
                    with part:
                        pass
        part.close()  # says nothing more
        assert part._engine.closed
        still_works(comm)


@ranks(2)
def test_a_message_that_nobody_waits_for_is_told_at_close(comm):
    for waits in (False, True):
        part = comm.split(0)
        if comm.rank == 0:
            receive = part.irecv(np.zeros(8, np.float32), source=1)
            while not receive._operation.done:  # the thread behind it finds that it does not fit
                time.sleep(0.001)
        else:
            part.send(np.zeros(4, np.float32), dest=0)
        comm.barrier()
        words = "rank 1 sends float32[4] (16 bytes), rank 0 receives float32[8] (32 bytes)"
        if waits and comm.rank == 0:
            with raising(collectives.MismatchError, words):
                receive.wait()
        else:
            with raising(collectives.MismatchError, words):
                part.close()
        part.close()  # says nothing more


@ranks(2)
def test_an_asynchronous_call_that_nobody_waits_for_is_told_at_close(comm):
    for hears in ("at close", "in wait", "in the next call"):
        part = comm.split(0)
        work = part.allreduce(np.zeros(3 + comm.rank), async_op=True)
        while not work.done():
            time.sleep(0.001)
        with raising(collectives.MismatchError, "float64[3]", "float64[4]"):
            if hears == "at close":
                part.close()
            elif hears == "in wait":
                work.wait()
            else:
                part.barrier()
        part.close()  # says nothing more


@ranks(2)
def test_another_error_is_not_hidden_by_what_close_finds(comm):
    part = comm.split(0)
    each_as_root(comm, part)
    with raising(KeyError, "mine"), part:
        raise KeyError("mine")
    still_works(comm)


@ranks(3)
def test_what_was_raised_is_not_raised_again_by_close(comm):
    part = comm.split(0)
    with raising(collectives.MismatchError, "rank"):
        part.broadcast(np.ones(4), root=part.rank)
        part.barrier()
    part.close()


@ranks(2, 3)
def test_parts_of_a_call_are_named_by_it(comm):
    """The user has called split; that it is an allgather within is no concern of his."""

    def objects(part):
        return part.allgather_object(1)

    for call, name in (
        (lambda part: part.split(0), "split: "),
        (lambda part: part.broadcast_object(1, root=1), "broadcast_object: broadcast int64[1]"),
        (objects, "allgather_object: allgather int64[1]"),
        (lambda part: part.empty(3), "empty: "),
    ):
        part = comm.split(0)
        with raising(collectives.MismatchError, name, "allreduce float64[3]"):
            if part.rank == 0:
                call(part)
            else:
                part.allreduce(np.ones(3))
            part.barrier()
        part.close()
    part = comm.split(0)
    with raising(collectives.MismatchError, "split: ", "allgather_object: "):
        part.split(0) if part.rank else objects(part)
    part.close()
    # The same array again, first in an object, then alone: another call, though it looks alike.
    for _ in range(3):
        comm.broadcast_object("x")
        assert comm.broadcast(np.array([comm.rank]), root=0)[0] == 0
    still_works(comm)


@ranks(3)
def test_one_rank_calls_twice(comm):
    part = comm.split(0)
    with raising(collectives.MismatchError, "allreduce float64[3] sum", "barrier"):
        part.allreduce(np.ones(3))
        if part.rank == 1:
            part.allreduce(np.ones(3))
        part.barrier()
        part.barrier()
    part.close()


def call_twice_and_leave():
    with collectives.init(timeout=30) as comm:
        comm.allreduce(np.ones(3))
        if comm.rank == 1:
            comm.allreduce(np.ones(3))


def test_one_rank_calls_twice_and_the_others_leave():
    with Ranks(call_twice_and_leave, 3) as job:
        outcomes = job.outcomes()
    assert [outcome.error for outcome in outcomes] == ["", "PeerLostError", ""]
    assert re.search(r"rank [02] \(.*\) closed its communicator before it completed allreduce "
                     r".* #2.*last call was allreduce .* #1", outcomes[1].text)  # fmt: skip


def test_what_is_found_at_the_interpreters_end_is_printed(tmp_path):
    script = tmp_path / "roots.py"
    script.write_text(
        "import numpy as np, collectives, time, sys, pathlib\n"
        "comm = collectives.init(timeout=30)\n"
        f"first, second = (pathlib.Path({str(tmp_path)!r}) / each for each in 'ab')\n"
        "while comm.rank and not first.exists(): time.sleep(0.01)\n"
        "try:\n"
        "    comm.broadcast(np.ones(3), root=comm.rank)\n"
        "except collectives.MismatchError:\n"
        "    second.touch()\n"
        "first.touch()\n"
        "while not second.exists(): time.sleep(0.01)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "launch", "run", "-n", "2", str(script)],
        capture_output=True, text=True, timeout=60, cwd=collectives.__path__[0] + "/..",
    )  # fmt: skip
    assert "collectives: MismatchError: ranks are in different calls" in done.stderr
    assert done.returncode == 0


def test_two_threads_at_once():
    def twice(comm):
        import threading

        if comm.rank == 1:
            comm.recv(np.zeros(1), source=0)
            return comm.allreduce(np.ones(1))[0]
        first = threading.Thread(target=comm.allreduce, args=(np.ones(1),))
        first.start()
        while comm._engine.calls == 0:
            time.sleep(0.001)
        with pytest.raises(collectives.CollectiveError, match="two collectives at once") as caught:
            comm.allreduce(np.ones(1))
        assert type(caught.value) is collectives.CollectiveError
        comm.send(np.zeros(1), dest=1)
        first.join()
        return 2.0

    assert launch.spawn(twice, 2) == [2.0, 2.0]
