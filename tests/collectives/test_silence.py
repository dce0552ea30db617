"""A wait that has become long says who is waited for, and where each of them is."""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import time

import numpy as np
import pytest
from harness.processes import Ranks, say, told

import collectives
from transports.reminder import Reminder
from transports.silence import Describe
from transports.stacks import Readiness, ask, be_ready, be_ready_no_more

QUIET = {"COLLECTIVES_SILENCE_SECONDS": "0.3"}


def evaluate_for_long(how):
    """Rank 2 is long in something else while the others wait; what each printed."""
    printed = []
    with collectives.init(timeout=8) as comm:
        comm.barrier()
        # Only now: on a busy machine a rank that starts late is waited for, and told of, too.
        sys.stderr = type("Printed", (), {"write": lambda self, text: printed.append(text),
                                          "flush": lambda self: None})()  # fmt: skip
        if comm.rank == 2:
            say("away")
            if how == "message":
                comm.recv(np.zeros(4), source=0, tag=3)  # which comes
            elif how == "computes":  # in C, and holds the interpreter's lock
                until = time.monotonic() + 1.2
                while time.monotonic() < until:
                    math.factorial(30_000)
            else:
                told()
        if how == "message" and comm.rank == 0:
            told()
            comm.send(np.zeros(4), dest=2, tag=3)
        found = ""
        try:
            comm.allreduce(np.ones(1000, np.float32))
        except collectives.CollectiveTimeout as error:
            found = str(error)
    return "".join(printed), found


@pytest.mark.parametrize("how", ["waits", "computes", "stopped"])
def test_a_rank_in_no_call_is_shown_with_its_stack(how):
    with Ranks(evaluate_for_long, 3, how, environment=QUIET) as job:
        assert job.said(2) == "away"
        if how == "stopped":
            job.kill(2, signal.SIGSTOP)
        time.sleep(1.2)
        if how == "stopped":
            job.kill(2, signal.SIGCONT)
        if how != "computes":
            job.tell(2)
        texts = [job.outcome(rank).value[0] for rank in range(3)]
        pid = job.processes[2].pid
    assert not texts[2]
    spoken = "".join(texts)
    # At 0.3 seconds and at 0.6, by one of the two each time; at 1.2, maybe.
    assert 1 <= len(re.findall("collectives: .* rank [01] has waited", spoken)) <= 4
    first = spoken.split("collectives: ")[1]
    assert re.match(
        r"allreduce float32\[1000\] sum by \w+ #2: rank [01] has waited \d\.\d+ s", first
    )
    assert f"rank 2 (pid {pid} on {os.uname().nodename})" in first
    assert "is in no collective; its last was barrier by" in first
    assert re.search(r"rank [01] \(pid \d+ on .*\) is in it too, waiting for rank 2", spoken)
    if how == "stopped":
        assert "it is stopped by a signal" in first
    else:
        assert re.search(r"test_silence.py:\d+ in evaluate_for_long", first)


def test_a_rank_that_waits_for_a_message_is_shown_with_it():
    with Ranks(evaluate_for_long, 3, "message", environment=QUIET) as job:
        assert job.said(2) == "away"
        time.sleep(0.6)
        job.tell(0)
        spoken = "".join(job.outcome(rank).value[0] for rank in range(3))
    assert "to receive float64[4] with tag 3 from rank 0" in spoken  # by itself, or of it


def test_a_time_out_says_the_same():
    def late():
        with collectives.init(timeout=60) as comm:
            comm.barrier()
            if comm.rank == 1:
                say("here")
                told()
                return ""
            try:
                comm.allreduce(np.ones(3), timeout=0.2)
            except collectives.CollectiveTimeout as error:
                return str(error)

    with Ranks(late, 2, environment={"COLLECTIVES_SILENCE_SECONDS": "0"}) as job:
        job.said(1)
        text = job.outcome(0).value
        job.tell(1)
        assert job.outcome(1).value == ""
    assert re.match(r"allreduce float64\[3\] sum .* has waited \d\.\d+ s", text)
    assert "is in no collective; its last was barrier" in text
    assert re.search(r"test_silence.py:\d+ in late", text)


def test_a_rendezvous_says_who_has_not_come():
    def come():
        import io

        sys.stderr = io.StringIO()
        with pytest.raises(collectives.CollectiveTimeout):
            collectives.init(timeout=1)
        return sys.stderr.getvalue()

    for only, words in (([0, 1], "rank 0 has waited "), ([1, 2], "rank 0 to come")):
        with Ranks(come, 3, only=only, environment=QUIET) as job:
            texts = [outcome.value for outcome in job.outcomes()]
        spoken = "".join(texts)
        assert words in spoken, spoken
        assert "to the rendezvous" in spoken
        # On a busy machine rank 0 may have been waited for, too, until it came.
        assert sum(words in text for text in texts) == 1, "one of them says it"
        if only == [0, 1]:
            assert "for rank 2 of 3 to come" in spoken


def test_a_reminder_is_due_after_twice_as_long():
    now = [0.0]
    reminder = Reminder(5, lambda: now[0])
    due = []
    for second in range(60):
        now[0] = float(second)
        if waited := reminder.due():
            due.append(waited)
    assert due == [5, 10, 20, 40]
    assert Reminder(0, lambda: 1e9).due() is None


# --- stacks


def ready_child(prepare):
    """A child that sits in `sit`, and how it can be asked; prepared in some way."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        ready = be_ready()
        prepare(ready)
        sit(lambda: os.write(writing, f"{ready.signal} {ready.descriptor} {ready.file}".encode()))
    os.close(writing)
    number, descriptor, file = os.read(reading, 100).decode().split()
    os.close(reading)
    return child, Readiness(int(number), int(descriptor), file)


def sit(begin):
    begin()
    while True:
        signal.pause()


@pytest.mark.parametrize(
    "prepare, words",
    [
        (lambda ready: None, "in sit"),
        (lambda ready: signal.signal(ready.signal, signal.SIG_DFL), "sleeps"),  # it would kill
        (lambda ready: os.close(ready.descriptor), "sleeps"),
        (lambda ready: signal.pthread_sigmask(signal.SIG_BLOCK, {ready.signal}), "sleeps"),
    ],
    ids=["ready", "no handler", "no file", "blocked"],
)
def test_asking(prepare, words):
    child, ready = ready_child(prepare)
    try:
        for _ in range(2):
            found = ask(child, ready)
            text = found.state or " ".join(found.frames)
            assert words in text or (words == "sleeps" and "waits for a core" in text), found
        os.kill(child, signal.SIGSTOP)
        os.waitid(os.P_PID, child, os.WSTOPPED)
        assert "stopped by a signal" in ask(child, ready).state
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert "ended" in ask(child, ready).state
        os.waitpid(child, 0)
    assert "ended" in ask(child, ready).state


def test_readiness_is_held_as_long_as_anybody_needs_it():
    first, second = be_ready(), be_ready()
    assert first == second and first.signal > signal.SIGRTMIN
    be_ready_no_more()
    os.fstat(first.descriptor)
    be_ready_no_more()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(first.descriptor)
    be_ready_no_more()  # once too often does nothing
    taken = {number: signal.signal(number, lambda *_: None)
             for number in range(signal.SIGRTMIN + 1, signal.SIGRTMAX + 1)}  # fmt: skip
    try:
        assert be_ready() == Readiness()  # every signal is somebody's
        be_ready_no_more()
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


def test_what_cannot_be_asked_is_said():
    from dataclasses import replace

    from transports.rendezvous.identity import pid_namespace
    from transports.rendezvous.local import Introduction

    here = Introduction(rank=0, size=3, pid=os.getpid(), host="h", host_id="i", version="1",
                        pid_namespace=pid_namespace())  # fmt: skip
    # In another container the very same number is another process.
    words = Describe([here, replace(here, pid_namespace=7), replace(here, pid=0)])
    seen = [(rank, f"rank {rank}", "is away", True) for rank in range(3)]
    said = [line for line in words.wait("A wait", seen, False).splitlines() if line[:4] == "    "]
    assert said == [
        "    it is a thread of this process",
        "    it runs in another container, or on another machine",
        "    it has ended",
    ]  # fmt: skip
    assert words.place(1) == ""
    assert words.place(0).endswith(".py:" + words.place(0).rpartition(":")[2])
