"""Long messages that stay in the sender's array until the kernel has copied them to the receiver.

With COLLECTIVES_LEND=always all but the shortest are, wherever the call allows it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from harness.conformance import sweep
from harness.processes import Ranks, say, told

import collectives
import launch
from collectives.schedule import algorithm, recv, recv_reduce, send

ALWAYS = {"COLLECTIVES_LEND": "always", "COLLECTIVES_SLOT_BYTES": "2048"}
LONG = 1 << 18  # elements of 8 bytes
PR_SET_DUMPABLE = 4
CAP_SYS_PTRACE = 19
LINUX_CAPABILITY_VERSION_3 = 0x20080522


@pytest.mark.parametrize("size", [2, 3])
def test_every_algorithm(size, full):
    counts = (0, 11, 257, 4099)
    found = launch.spawn(
        sweep, size, counts, ("numpy",), full, environment=ALWAYS, timeout=600 if full else 100
    )
    failures = [problem for problems, _ in found for problem in problems]
    assert not failures, "\n".join(failures[:20])
    assert all(sum(passed for passed, _ in tally.values()) > 100 for _, tally in found)


def _in_place_and_not(comm):
    lent = []
    comm.barrier()  # until a peer has come it has not said that it may be lent to
    for name in ("ring", "two_shot", "one_shot", "recursive_doubling", "tree"):
        for in_place in (False, True):
            before = comm._engine.lent
            for op in ("sum", "max", "avg"):
                for turn in range(3):
                    x = np.arange(9001, dtype=np.float64) * (comm.rank + 1) + turn
                    out = x if in_place else np.empty_like(x)
                    comm.allreduce(x, out=out, op=op, algorithm=name)
                    each = [np.arange(9001.0) * (rank + 1) + turn for rank in range(comm.size)]
                    fold = {"sum": np.sum, "max": np.max, "avg": np.mean}[op]
                    assert np.array_equal(out, fold(each, axis=0)), (name, op, in_place)
            lent.append((name, in_place, comm._engine.lent - before))
    return lent


def test_in_place_and_not():
    """What a later step overwrites is not lent: of an array that is the result, its own chunk."""
    for lent in launch.spawn(_in_place_and_not, 2, environment={"COLLECTIVES_LEND": "always"}):
        counts = {(name, in_place): count for name, in_place, count in lent}
        assert counts["one_shot", False] == 9 and counts["one_shot", True] == 0
        # Of sum and max the chunk of the other and the sum of the own, of avg what is no result.
        assert counts["ring", False] == 3 * (2 + 2 + 1)
        assert counts["ring", True] == 3 * (1 + 1 + 0)


def _by_trial(comm):
    x, out = np.empty(LONG), np.empty(LONG)
    for turn in range(60):
        x[:] = comm.rank + turn
        comm.allreduce(x, out=out, algorithm="ring")
        assert (out == 2 * turn + 1).all()
    tried = comm._engine.lent
    # Nobody waits for whoever does not send, unless it is for room: of two that root scatters the
    # short one is not lent.
    rows = np.empty((2, LONG)) if comm.rank == 0 else None
    for turn in range(40):
        if rows is not None:
            rows[:] = [[turn], [turn + 1]]
        part = comm.scatter(None if rows is None else rows[:, :1000], out=x[:1000], root=0)
        assert (part == turn + comm.rank).all()
    short = comm._engine.lent - tried
    for turn in range(40):
        if rows is not None:
            rows[:] = [[turn], [turn + 1]]
        part = comm.scatter(rows, out=x, root=0, algorithm="linear")  # else it may be reached
        assert (part == turn + comm.rank).all()
    long = comm._engine.lent - tried - short
    return tried, short, long if comm.rank == 0 else -long, comm._engine.lend


def test_it_is_tried_and_the_results_are_the_same():
    (tried, short, long, lend), (other, *rest) = launch.spawn(_by_trial, 2)
    assert tried > 0 and other > 0 and (short, lend) == (0, 1) and rest == [0, 0, 1]
    assert long > 0
    never = launch.spawn(_by_trial, 2, environment={"COLLECTIVES_LEND": "never"})
    assert never == [(0, 0, 0, 0)] * 2


def _forbid():
    """What processes of one user may do to each other ends where one is not to be traced."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # twice: effective, permitted, inheritable
    assert libc.capget(head, sets) == 0
    for i in range(3):  # which root has: to trace everybody
        sets[i] &= ~(1 << CAP_SYS_PTRACE)
    assert libc.capset(head, sets) == 0, os.strerror(ctypes.get_errno())
    assert libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0


def _forbidden(early, later):
    if early:
        _forbid()
    x = np.ones(LONG)
    with collectives.init(timeout=20) as comm:
        comm.barrier()
        before = float(comm.allreduce(x, algorithm="ring")[-1]), comm._engine.lent > 0
        if comm.rank in later:
            _forbid()
        comm.barrier()
        lent = comm._engine.lent
        return *before, float(comm.allreduce(x, algorithm="ring")[-1]), comm._engine.lent > lent


def test_where_the_system_forbids_it_nothing_is_lent():
    with Ranks(_forbidden, 2, True, (), environment=ALWAYS) as ranks:
        for outcome in ranks.outcomes():
            assert outcome.value == (2.0, False, 2.0, False), outcome
    with Ranks(_forbidden, 2, False, (0, 1), environment=ALWAYS) as ranks:
        for outcome in ranks.outcomes():
            assert outcome.value == (2.0, True, 2.0, False), outcome


def _demoted():
    x = np.ones(LONG)
    comm = collectives.init(timeout=20)
    comm.allreduce(x)
    if comm.rank == 0:
        os.setresuid(65533, 65533, 65533)
    comm.barrier()
    return float(comm.allreduce(x)[-1])


@pytest.mark.skipif(os.getuid() != 0, reason="no privilege to become another user")
def test_who_may_read_others_no_more_says_so():
    with Ranks(_demoted, 2, environment=ALWAYS) as ranks:
        for outcome in ranks.outcomes():
            assert outcome.error == "CollectiveError", outcome
            assert "rank 0 may copy from and to the memory of rank 1 " in outcome.text, outcome
            assert "With COLLECTIVES_LEND=never it need not" in outcome.text, outcome


def _uncopied(comm):
    """Of a kind that the kernel copies for nobody, as memory of devices is: here the kernel's."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    begin = next(line for line in lines if "[vvar" in line).split("-")[0]
    comm.barrier()
    found = np.frombuffer((ctypes.c_char * 4096).from_address(int(begin, 16)), np.uint8)
    same = comm.allgather(found, algorithm="ring")
    copied = comm.allgather(found.copy(), algorithm="ring")
    assert same.shape == copied.shape == (2, 4096)
    return comm._engine.lent


def test_what_the_kernel_would_not_copy_is_not_lent():
    environment = {"COLLECTIVES_LEND": "always"}
    assert launch.spawn(_uncopied, 2, environment=environment) == [1, 1]  # the copy of it


@algorithm("allreduce", name="star", chunks=lambda size: 5)
def star(rank, size):
    """Rank 1 adds up five chunks at once; rank 0 has too many steps for that."""
    for chunk in range(5):
        if rank == 0:
            yield send(1, chunk=chunk)
            yield recv(1, chunk=chunk)
        else:
            yield recv_reduce(0, chunk=chunk)
            yield send(0, chunk=chunk)


def _woven(comm):
    x = (np.arange(5 << 15, dtype=np.float64) + 1) * (comm.rank + 1)
    out = np.empty_like(x)
    for _ in range(5):
        out[:] = -1
        comm.allreduce(x, out=out, algorithm=star)
        assert np.array_equal(out, 3 * (np.arange(5 << 15) + 1.0))
    return comm._engine.lent


def test_steps_that_are_woven_have_room_each():
    environment = {
        "COLLECTIVES_LEND": "always", "COLLECTIVES_SLOTS": "16", "COLLECTIVES_SLOT_BYTES": "65536",
        "COLLECTIVES_CACHE_BYTES": "0",
    }  # fmt: skip
    assert min(launch.spawn(_woven, 2, environment=environment)) > 0


def _late(what):
    comm = collectives.init(timeout=30)
    comm.barrier()
    x = np.full(LONG, 1.0 + comm.rank)
    if comm.rank == 0:
        say("there")
        told()  # until the other has lent, and more has happened to it
        return float(comm.allreduce(x, algorithm="one_shot")[0])
    if what == "raises":

        def stop(number, frame):
            raise InterruptedError("enough")

        signal.signal(signal.SIGUSR1, stop)
    threading.Timer(0.5, lambda: say("lent")).start()
    try:
        comm.allreduce(x, algorithm="one_shot")
    except InterruptedError:
        x[:] = 1e9  # what nobody may get
        say("changed")
        told()
    comm.close()
    return None


def test_a_rank_that_is_killed_after_lending():
    with Ranks(_late, 2, "dies", environment=ALWAYS) as ranks:
        assert (ranks.said(0), ranks.said(1)) == ("there", "lent")
        ranks.kill(1)
        ranks.outcome(1)
        ranks.tell(0)
        outcome = ranks.outcome(0)
    assert outcome.error == "PeerLostError" and "rank 1" in outcome.text, outcome


def test_what_a_rank_that_gave_up_changes_goes_to_nobody():
    with Ranks(_late, 2, "raises", environment=ALWAYS) as ranks:
        assert (ranks.said(0), ranks.said(1)) == ("there", "lent")
        ranks.kill(1, signal.SIGUSR1)
        assert ranks.said(1) == "changed"
        ranks.tell(0)
        outcome = ranks.outcome(0)
        ranks.tell(1)
    assert outcome.error == "AbortedError" and "rank 1" in outcome.text, outcome
