"""The rank that failed first is named last, with its traceback once and its exit code."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from launch.failures import Failure, RankFailedError, ending, first_failure, is_consequence
from launch.processes import LOOK_EVERY, Job, RankCommand

QUICKLY = 12.0  # seconds in which a job with a failed rank has ended, on a busy machine

# Errors as the runtime raises them, by their names only: the launcher reads what is printed.
ERRORS = """
    import os, sys, time
    class PeerLostError(Exception): pass
    class AbortedError(Exception): pass
    PeerLostError.__module__ = "transports.errors"
    AbortedError.__module__ = "collectives"
    rank = int(os.environ["RANK"])
    def wait_for(path):
        while not os.path.exists(path):
            time.sleep(0.01)
"""


def with_errors(code: str) -> str:
    return ERRORS + code


def failure(rank: int, time: float, consequence: bool = False) -> Failure:
    return Failure(rank=rank, pid=100 + rank, code=1, time=time, consequence=consequence)


def test_the_earliest_cause_comes_before_earlier_consequences():
    assert first_failure([]) is None
    assert first_failure([failure(0, 2.0), failure(1, 1.0)]).rank == 1
    assert first_failure([failure(0, 1.0, consequence=True), failure(1, 2.0)]).rank == 1
    both = [failure(0, 2.0, consequence=True), failure(1, 1.0, consequence=True)]
    assert first_failure(both).rank == 1


def test_how_a_process_ended_is_said_in_words():
    assert ending(3) == "exit code 3"
    assert ending(-signal.SIGSEGV) == "killed by SIGSEGV"
    assert ending(-signal.SIGKILL).startswith("killed by SIGKILL; ")
    assert ending(-40) == "killed by signal 40"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"transports.errors.PeerLostError: rank 1 has gone", True),
        (b"collectives.AbortedError: rank 2 raised", True),
        (b"  | collectives.AbortedError: rank 2 raised", True),
        (b"PeerLostError", True),
        (b"ValueError: not a PeerLostError", False),
        (b"my.PeerLostErrors: x", False),
        (b"    raise PeerLostError(text)", False),
    ],
)
def test_consequences_are_known_by_their_names(line, expected):
    assert is_consequence([b"Traceback (most recent call last):", line]) is expected


def test_the_error_of_a_killed_rank_keeps_its_facts_when_pickled():
    import pickle

    error = pickle.loads(pickle.dumps(RankFailedError("text", 3, -9)))
    assert (str(error), error.rank, error.code) == ("text", 3, -9)


def test_the_first_traceback_comes_last_and_once(launcher, program):
    script = program("""
        import os, time
        if os.environ["RANK"] == "1":
            print("about to fail")
            raise ValueError("boom")
        time.sleep(600)
    """)
    began = time.monotonic()
    done = launcher("run", "-n", 3, script)
    assert time.monotonic() - began < QUICKLY
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    (heading,) = [line for line in lines if "failed first" in line]
    assert re.fullmatch(r"rank 1 \(pid \d+\) failed first, exit code 1:", heading)
    after = lines[lines.index(heading) + 1 :]
    assert after[0] == "Traceback (most recent call last):"
    assert after[-1] == "ValueError: boom"
    assert done.stderr.count("ValueError: boom") == 1
    assert "[1] about to fail" in done.stdout


def test_the_exit_code_is_handed_on(launcher, program):
    script = program("""
        import os, sys, time
        if os.environ["RANK"] == "0":
            sys.exit("bad configuration") if os.environ.get("TEXT") else sys.exit(7)
        time.sleep(600)
    """)
    done = launcher("run", "-n", 2, script)
    assert done.returncode == 7
    assert re.search(r"rank 0 \(pid \d+\) failed first, exit code 7$", done.stderr, re.M)
    done = launcher("run", "-n", 2, script, environment={"TEXT": "1"})
    assert done.returncode == 1
    assert done.stderr.endswith("exit code 1; the last it wrote to stderr:\nbad configuration\n")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM"])
def test_a_rank_that_is_killed_is_named_with_the_signal(launcher, program, name):
    script = program(f"""
        import os, signal, time
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.{name})
        time.sleep(600)
    """)
    done = launcher("run", "-n", 2, script)
    assert done.returncode == 128 + getattr(signal, name)
    assert re.search(rf"rank 1 \(pid \d+\) failed first, killed by {name}", done.stderr)


def test_a_fault_handlers_stack_is_the_traceback(launcher, program):
    script = program("""
        import faulthandler, os, signal
        faulthandler.enable()
        os.kill(os.getpid(), signal.SIGABRT)
    """)
    done = launcher("run", "-n", 1, script)
    assert done.returncode == 128 + signal.SIGABRT
    last = done.stderr.partition("failed first, killed by SIGABRT:\n")[2]
    assert last.startswith("Fatal Python error: Aborted\n")


def test_a_syntax_error_of_the_script_comes_last_and_once(launcher, program):
    done = launcher("run", "-n", 2, program("x = = 1"))
    assert done.returncode == 1
    last = done.stderr.partition("failed first, exit code 1:\n")[2]
    assert last.startswith('  File "')
    assert last.splitlines()[-1] == "SyntaxError: invalid syntax"


def test_a_consequence_that_ends_earlier_is_not_first(launcher, program):
    script = program(
        with_errors("""
    if rank == 0:
        try:
            open("told-0", "x")
            wait_for("raised-1")
            raise AbortedError("rank 1 raised:\\nTraceback (most recent call last):\\nKeyError: 1")
        finally:
            open("raised-0", "x")
    if rank == 1:
        open("raised-1", "x")
        wait_for("raised-0")  # and then some: its interpreter takes its time
        time.sleep(0.5)
        raise ValueError("the cause")
    time.sleep(600)
        """)
    )
    done = launcher("run", "-n", 3, script)
    assert done.returncode == 1
    assert re.search(r"rank 1 \(pid \d+\) failed first, exit code 1:", done.stderr)
    assert done.stderr.endswith("ValueError: the cause\n")
    said = [line for line in done.stderr.splitlines() if "AbortedError" in line]
    assert [re.sub(r"\d+:", "N:", line) for line in said] == [
        "rank 0 ended by it at program.py:N: AbortedError: rank 1 raised"
    ]
    assert "KeyError" not in done.stderr


def test_of_consequences_alone_the_earliest_is_first(launcher, program):
    script = program(
        with_errors("""
    if rank == 0:
        raise PeerLostError("rank 1 has gone")
    sys.exit(0)
        """)
    )
    done = launcher("run", "-n", 2, script)
    assert done.returncode == 1
    assert done.stderr.endswith("transports.errors.PeerLostError: rank 1 has gone\n")


def test_others_may_say_what_they_miss(launcher, program):
    script = program(
        with_errors("""
    if rank == 1:
        open("gone", "x")
        os._exit(5)
    wait_for("gone")
    time.sleep(0.3)
    raise PeerLostError("rank 1 has gone")
        """)
    )
    done = launcher("run", "-n", 2, script)
    assert done.returncode == 5
    assert re.fullmatch(
        r"rank 0 ended by it at program.py:\d+: PeerLostError: rank 1 has gone\n"
        r"rank 1 \(pid \d+\) failed first, exit code 5\n",
        done.stderr.partition("\n")[2],
    )


def test_a_rank_on_its_way_out_with_a_traceback_is_the_cause(launcher, program):
    script = program(
        with_errors("""
    import atexit
    if rank == 1:
        atexit.register(time.sleep, 600)
        open("soon", "x")
        raise ValueError("the cause, slow to end")
    wait_for("soon")
    raise AbortedError("rank 1 raised")
        """)
    )
    done = launcher("run", "-n", 2, script)
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: the cause, slow to end\n")


def test_ranks_that_end_early_and_well_are_no_failure(launcher, program):
    script = program("""
        import os, time
        if os.environ["RANK"] == "1":
            time.sleep(1.0)  # longer than the others by any measure
        print("done")
    """)
    done = launcher("run", "-n", 5, script)
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [f"[{rank}] done" for rank in range(5)]
    assert len(done.stderr.splitlines()) == 1


def test_a_rank_that_ignores_sigterm_is_killed(launcher, program):
    script = program("""
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.environ["RANK"] == "0":
            os._exit(3)
        while True:
            time.sleep(600)
    """)
    began = time.monotonic()
    assert launcher("run", "-n", 3, script).returncode == 3
    assert time.monotonic() - began < QUICKLY


def test_a_traceback_that_is_only_logged_appears_and_ends_nothing(launcher, program, read_lines):
    script = program("""
        import logging, os, sys, time
        try:
            1 / 0
        except ZeroDivisionError:
            logging.exception("went wrong")
        print("logged")
        sys.stdin.read()
    """)
    import subprocess

    process = launcher.start("run", "-n", 1, script, stdin=subprocess.PIPE)
    read_lines(process, "logged")
    seen = ""
    while "ZeroDivisionError" not in seen:  # while the rank still waits
        seen += process.stderr.readline()
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=30) == 0
    assert "failed first" not in process.stderr.read()


def test_without_a_kernels_notice_ends_are_seen_nevertheless(monkeypatch):
    def unknown(pid: int) -> int:
        raise OSError("not in this kernel")

    monkeypatch.setattr(os, "pidfd_open", unknown)
    environment = {**os.environ, "COLLECTIVES_JOB": "test-of-looking"}
    command = RankCommand(command=["/bin/sh", "-c", "exit 4"], environment=environment)
    with Job("test-of-looking", [command]) as job:
        codes = []
        while job.running:
            began = time.monotonic()
            codes += [event.code for event in job.events(None) if hasattr(event, "code")]
            assert time.monotonic() - began < 10 * LOOK_EVERY + 5
    assert codes == [4]


def test_a_rank_that_cannot_be_started_leaves_none_behind(monkeypatch):
    environment = {**os.environ, "COLLECTIVES_JOB": "test-of-starting"}
    good = RankCommand(command=["/bin/sleep", "600"], environment=environment)
    bad = RankCommand(command=["/bin/sleep\0", "600"], environment=environment)
    with pytest.raises(ValueError, match="null byte"), Job("test-of-starting", [good, bad]):
        pass
