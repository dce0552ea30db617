"""`collectives run --inject`, and exceptions that end a script: what the user reads."""

from __future__ import annotations

import re

CALLS = """
    import os, numpy as np, collectives
    with collectives.init(timeout=30) as comm:
        for _ in range(6):
            comm.allreduce(np.ones(3))
        attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
        print("done in attempt", attempt, flush=True)
"""


def test_a_fault_is_met_and_named(launcher, program):
    done = launcher("run", "-n", 3, "--inject", "kill rank=1 op=4", program(CALLS))
    assert done.returncode == 128 + 9
    assert "[1] collectives: injected: kill rank=1 op=4" in done.stderr
    assert re.search(r"rank 1 \(pid \d+\) failed first, killed by SIGKILL", done.stderr)
    assert re.search(r"PeerLostError: rank 1 \(pid \d+ on .*\) ended .*before it completed "
                     r"allreduce .* #4", done.stderr)  # fmt: skip


def test_a_restarted_job_goes_on_without_it(launcher, program):
    done = launcher(
        "run", "-n", 2, "--max-restarts", 1, "--inject", "raise rank=0 op=2",
        "--inject", "slow rank=1 by=1ms", program(CALLS),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done in attempt 1") == 2
    assert "InjectedError: injected: raise rank=0 op=2" in done.stderr


def test_what_is_no_fault_is_said_before_a_rank_starts(launcher, program):
    script = program("print('started')")
    for fault, words in (
        ("kill rank=1", "fault 'kill rank=1': op missing"),
        ("kill rank=2 op=1", "fault 'kill rank=2 op=1': rank is below 2, found 2"),
    ):
        done = launcher("run", "-n", 2, "--inject", fault, script)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"collectives run: error: {words}" in done.stderr


def test_an_exception_at_the_top_of_a_script_reaches_the_others(launcher, program):
    """There is no block to leave: the script ends, and its communicator with it."""
    script = program("""
        import sys, collectives, numpy as np
        def stumble():
            return {}["a key that is not there"]
        before = sys.excepthook
        comm = collectives.init(timeout=30)
        assert sys.excepthook is not before
        second = comm.split(0)
        if comm.rank == 1:
            stumble()
        try:
            second.allreduce(np.ones(3))
        except collectives.AbortedError as error:
            text = str(error)
            assert "rank 1 raised KeyError" in text and "in stumble" in text, text
            print("heard of it", flush=True)
    """)
    done = launcher("run", "-n", 3, script)
    assert done.returncode == 1
    assert done.stdout.count("heard of it") == 2, done.stderr
    assert done.stderr.count("KeyError: 'a key that is not there'") == 1
