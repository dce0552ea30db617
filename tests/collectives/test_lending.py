"""Long messages that stay in the sender's array until the kernel has copied them to the receiver.

With COLLECTIVES_LEND=always all but the shortest are, wherever the call allows it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading

import numpy as np
import pytest
from harness.conformance import sweep
from harness.processes import Ranks, say, told

import collectives
import launch

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
    for algorithm in ("ring", "two_shot", "one_shot", "recursive_doubling", "tree"):
        for in_place in (False, True):
            before = comm._engine.lent
            for op in ("sum", "max", "avg"):
                for turn in range(3):
                    x = np.arange(9001, dtype=np.float64) * (comm.rank + 1) + turn
                    out = x if in_place else np.empty_like(x)
                    comm.allreduce(x, out=out, op=op, algorithm=algorithm)
                    each = [np.arange(9001.0) * (rank + 1) + turn for rank in range(comm.size)]
                    fold = {"sum": np.sum, "max": np.max, "avg": np.mean}[op]
                    assert np.array_equal(out, fold(each, axis=0)), (algorithm, op, in_place)
            lent.append((algorithm, in_place, comm._engine.lent - before))
    return lent


def test_in_place_and_not():
    """What a later step overwrites is not lent: of an array that is the result, its own chunk."""
    for lent in launch.spawn(_in_place_and_not, 2, environment={"COLLECTIVES_LEND": "always"}):
        counts = {(algorithm, in_place): count for algorithm, in_place, count in lent}
        assert counts["one_shot", False] == 9 and counts["one_shot", True] == 0
        # Of sum and max the chunk of the other and the sum of the own, of avg what is no result.
        assert counts["ring", False] == 3 * (2 + 2 + 1)
        assert counts["ring", True] == 3 * (1 + 1 + 0)


def _by_trial(comm):
    x, out = np.empty(LONG), np.empty(LONG)
    for turn in range(60):
        x[:] = comm.rank + turn
        comm.allreduce(x, out=out)
        assert (out == 2 * turn + 1).all()
    tried = comm._engine.lent
    for turn in range(40):  # nobody waits for whoever does not send: a broadcast is not lent
        x[:] = turn if comm.rank == 0 else -1
        comm.broadcast(x, out=x, root=0)
        assert (x == turn).all()
    return tried, comm._engine.lent - tried, comm._engine.lend


def test_it_is_tried_and_the_results_are_the_same():
    for tried, more, lend in launch.spawn(_by_trial, 2):
        assert lend == 1 and tried > 0 and more == 0
    for tried, more, lend in launch.spawn(_by_trial, 2, environment={"COLLECTIVES_LEND": "never"}):
        assert (tried, more, lend) == (0, 0, 0)


def _forbidden():
    """What processes of one user may do to each other ends where one is not to be traced."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # twice: effective, permitted, inheritable
    assert libc.capget(head, sets) == 0
    for i in range(3):  # which root has: to trace everybody
        sets[i] &= ~(1 << CAP_SYS_PTRACE)
    assert libc.capset(head, sets) == 0, os.strerror(ctypes.get_errno())
    assert libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0
    with collectives.init(timeout=20) as comm:
        return float(comm.allreduce(np.ones(LONG))[-1]), comm._engine.lent


def test_where_the_system_forbids_it_nothing_is_lent():
    with Ranks(_forbidden, 2, environment=ALWAYS) as ranks:
        for outcome in ranks.outcomes():
            assert outcome.value == (2.0, 0), outcome


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
