"""Faults on purpose: how they are written, and what the others of the job say."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from harness.processes import Ranks, say, told

import collectives
from collectives.faults import Fault, InjectedError, parse_faults
from collectives.settings import injected_faults


def test_how_they_are_written():
    found = parse_faults(
        "kill rank=1 op=57; freeze rank=2 op=10 for=3s at=middle;; raise rank=0 op=5;"
        "slow rank=1 by=2ms; exit rank=0 op=1 code=9 at=end; kill rank=0 op=2 signal=11"
    )
    assert [(each.action, each.rank, each.op, each.at) for each in found] == [
        ("kill", 1, 57, "begin"), ("freeze", 2, 10, "middle"), ("raise", 0, 5, "begin"),
        ("slow", 1, None, "begin"), ("exit", 0, 1, "end"), ("kill", 0, 2, "begin"),
    ]  # fmt: skip
    assert [each.seconds for each in found] == [0, 3, 0, 0.002, 0, 0]
    assert found[0].signal == signal.SIGKILL and found[5].signal == signal.SIGSEGV
    assert found[4].code == 9
    assert parse_faults("kill rank=1 op=1 signal=SEGV") == (
        Fault(text="kill rank=1 op=1 signal=SEGV", action="kill", rank=1, op=1,
              signal=signal.SIGSEGV),
    )  # fmt: skip
    assert parse_faults("") == ()


@pytest.mark.parametrize(
    "text, words",
    [
        ("kil rank=1 op=2", "kill, exit, raise, freeze, slow, found 'kil'; did you mean kill?"),
        ("kill rank=1", "op missing"),
        ("kill op=1", "rank missing"),
        ("freeze rank=1", "for and op missing"),
        ("kill rank=1 op=x", "op is an integer from 1 on, found 'x'"),
        ("kill rank=-1 op=1", "rank is an integer from 0 on, found '-1'"),
        ("kill rank=1 op=0", "op is an integer from 1 on, found '0'"),
        ("kill rank=1 op=1 op=2", "at most once"),
        ("kill rank=1 opp=1", "found 'opp=1'; did you mean op?"),
        ("kill rank=1 op", "as key=value, found 'op'"),
        ("kill rank=1 op=1 signal=FOO", "expected a signal, as SEGV, found 'FOO'"),
        ("kill rank=1 op=1 signal=999", "expected a signal"),
        ("freeze rank=1 op=1 for=3h", "expected seconds, or a number of s, ms, us"),
        ("slow rank=1 by=fast", "such as 1us, found 'fast'"),
        ("kill rank=1 op=1 at=dawn", "at is one of begin, middle, end, found 'dawn'"),
        ("raise rank=1 op=1 at=middle", "at is one of begin, end, found 'middle'"),
    ],
)  # fmt: skip
def test_what_is_none(text, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_faults(text)


def test_a_restarted_job_meets_none():
    assert injected_faults({"COLLECTIVES_INJECT": "x"}) == "x"
    assert injected_faults({"COLLECTIVES_INJECT": "x", "TORCHELASTIC_RESTART_COUNT": "1"}) == ""


def call_on():
    """Ten calls; what ended them, how long after the last that went well."""
    with collectives.init(timeout=20) as comm:
        x, out = np.ones(50_000), np.empty(50_000)
        done, last = 0, time.monotonic()
        try:
            for _ in range(10):
                comm.allreduce(x, out=out)
                done, last = done + 1, time.monotonic()
        except (collectives.CollectiveError, InjectedError) as error:
            return done, type(error).__name__, str(error), time.monotonic() - last
        return done, "", "", 0.0


def says_how_others_end():
    """Whether this kernel does, of processes that are not our children: from Linux 6.15 on."""
    major, minor = re.match(r"(\d+)\.(\d+)", os.uname().release).groups()
    return (int(major), int(minor)) >= (6, 15)


@pytest.mark.parametrize("at", ["begin", "middle", "end"])
@pytest.mark.parametrize(
    "fault, code, words",
    [
        ("kill rank=1 op=4", -signal.SIGKILL, "killed by SIGKILL"),
        ("kill rank=1 op=4 signal=SEGV", -signal.SIGSEGV, "killed by SIGSEGV"),
        ("exit rank=1 op=4 code=7", 7, "exit code 7"),
    ],
)
def test_ends(fault, code, words, at):
    fault = f"{fault} at={at}"
    with Ranks(call_on, 3, environment={"COLLECTIVES_INJECT": fault}) as job:
        assert job.outcome(1).code == code
        pid = job.processes[1].pid
        for rank in (0, 2):
            done, kind, text, took = job.outcome(rank).value
            # What it had sent before its end in the middle may be all that the others needed.
            assert done in {"begin": [3], "middle": [3, 4], "end": [4]}[at], (done, text)
            assert kind == "PeerLostError"
            assert f"rank 1 (pid {pid} on {os.uname().nodename}) ended" in text
            assert took < 10
            if says_how_others_end():
                assert words in text


@pytest.mark.parametrize("at", ["begin", "end"])
def test_raises(at):
    fault = f"raise rank=1 op=4 at={at}"
    with Ranks(call_on, 3, environment={"COLLECTIVES_INJECT": fault}) as job:
        assert job.outcome(1).value[:3] == (3, "InjectedError", f"injected: {fault}")
        for rank in (0, 2):
            done, kind, _, _ = job.outcome(rank).value
            assert (done, kind) == (3 if at == "begin" else 4, "PeerLostError")  # it was handled


@pytest.mark.parametrize("at", ["begin", "middle", "end"])
def test_freezes_and_goes_on(at):
    fault = f"freeze rank=1 op=4 for=600ms at={at}"
    with Ranks(call_on, 2, environment={"COLLECTIVES_INJECT": fault}) as job:
        began = time.monotonic()
        assert [outcome.value for outcome in job.outcomes()] == [(10, "", "", 0.0)] * 2
        assert time.monotonic() - began > 0.3


def call_late():
    """Rank 0 comes to the fourth call only when it is told; the other's children at the end."""
    with collectives.init(timeout=20) as comm:
        x, out = np.ones(2_000_000), np.empty(2_000_000)  # many passes: they need the peer
        for number in range(10):
            if number == 3 and comm.rank == 0:
                told()
            elif number == 3:
                say("goes in")
            comm.allreduce(x, out=out)
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def state_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_freezes_as_long_as_it_says_however_late_the_middle_comes():
    fault = "freeze rank=1 op=4 for=300ms at=middle"
    with Ranks(call_late, 2, environment={"COLLECTIVES_INJECT": fault}) as job:
        assert job.said(1) == "goes in"
        time.sleep(1.0)  # longer than the fault, from any clock that started with the call
        assert state_of(job.processes[1].pid) != "T"
        began = time.monotonic()
        job.tell(0)
        assert [outcome.value for outcome in job.outcomes()] == [[], []]  # no waker is left
        assert time.monotonic() - began > 0.3


def fail_before_the_middle():
    """Rank 0 never comes to the call; what the other's raises, and its children after it."""
    with collectives.init(timeout=60) as comm:
        comm.barrier()
        if comm.rank == 0:
            told()
            return "", []
        try:
            comm.allreduce(np.ones(2_000_000), timeout=0.2)
        except collectives.CollectiveError as error:
            found = type(error).__name__
        return found, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_a_call_that_fails_before_its_middle_leaves_no_waker():
    fault = "freeze rank=1 op=2 for=60s at=middle"
    with Ranks(fail_before_the_middle, 2, environment={"COLLECTIVES_INJECT": fault}) as job:
        assert job.outcome(1).value == ("CollectiveTimeout", [])
        job.tell(0)
        assert job.outcome(0).error == ""


def every_call():
    with collectives.init(timeout=20) as comm:
        began = time.monotonic()
        x = np.ones(3)
        for _ in range(5):
            comm.allreduce(x, out=x)
        comm.scatter(np.ones((2, 3)) if comm.rank == 0 else None)
        comm.barrier(async_op=True).wait()
        part = comm.split(0)  # whose calls are none of those that are counted
        for _ in range(20):
            part.barrier()
        return time.monotonic() - began


def test_is_slow():
    with Ranks(every_call, 2, environment={"COLLECTIVES_INJECT": "slow rank=1 by=50ms"}) as job:
        for outcome in job.outcomes():
            assert 0.4 < outcome.value < 10, outcome.text


def _few_calls():
    with collectives.init() as comm:
        for _ in range(3):
            comm.barrier()


def test_a_fault_that_was_not_met_is_told(capfd):
    faults = "kill rank=1 op=99; kill rank=0 op=50 at=middle; slow rank=1 by=1us"
    with Ranks(_few_calls, 2, environment={"COLLECTIVES_INJECT": faults}) as job:
        assert [outcome.error for outcome in job.outcomes()] == ["", ""]
    spoken = capfd.readouterr().err
    for rank, text in ((1, "kill rank=1 op=99"), (0, "kill rank=0 op=50 at=middle")):
        assert f"not injected: {text}: rank {rank} made " in spoken
    assert spoken.count("not injected") == 2 and " calls in all" in spoken


def test_what_is_no_fault_names_where_it_stands():
    def come():
        collectives.init()

    with Ranks(come, 1, environment={"COLLECTIVES_INJECT": "foo"}) as job:
        (outcome,) = job.outcomes()
    assert (outcome.error, outcome.text.partition(": expected")[0]) == (
        "ValueError", "COLLECTIVES_INJECT: fault 'foo'",
    )  # fmt: skip
