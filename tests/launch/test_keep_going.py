"""`collectives run --keep-going`: the failure of a rank leaves the others to themselves."""

from __future__ import annotations

import re
import signal

from launch.watching import ASKED, GRACE

# Longer than the launcher would let them live.
SHRINKS = f"""
    import time, numpy as np, collectives
    comm = collectives.init(timeout=30)
    before = comm.rank
    for step in range(4):
        try:
            total = comm.allreduce(np.full(3, before + 1))
        except collectives.PeerLostError:
            smaller = comm.shrink()
            comm.close()
            comm = smaller
            lost = time.monotonic()
    while comm.allreduce(np.array([time.monotonic() - lost]), op="min")[0] < {GRACE + ASKED + 0.5}:
        time.sleep(0.01)
    total = comm.allreduce(np.full(3, before + 1))
    print(f"rank {{before}} is {{comm.rank}} of {{comm.size}}, total {{total[0]}}", flush=True)
    comm.close()
"""

RAISES = """
    import time, collectives
    comm = collectives.init(timeout=30)
    comm.barrier()
    if comm.rank == 1:
        raise ValueError("of this one alone")
    try:
        comm.barrier()
        comm.barrier()
    except collectives.AbortedError:
        comm = comm.shrink()
    print("sees", comm.size)
    comm.close()
"""


def test_those_that_are_left_shrink_and_finish(launcher, program):
    done = launcher(
        "run", "-n", 3, "--keep-going", "--inject", "kill rank=1 op=2", program(SHRINKS)
    )
    assert sorted(done.stdout.splitlines()) == [
        "[0] rank 0 is 0 of 2, total 4",
        "[2] rank 2 is 1 of 2, total 4",
    ], done.stderr
    assert done.returncode == 128 + signal.SIGKILL
    failed = r"rank 1 \(pid (\d+)\) failed, killed by SIGKILL.*; ranks 0, 2 may go on\n"
    (pid,) = re.findall(failed, done.stderr)
    heading, last = done.stderr.splitlines()[-2:]
    assert heading.startswith(f"rank 1 (pid {pid}) failed first, killed by SIGKILL")
    assert last == "collectives: injected: kill rank=1 op=2"


def test_the_first_cause_is_shown_last(launcher, program):
    done = launcher("run", "-n", 3, "--keep-going", program(RAISES))
    assert sorted(done.stdout.splitlines()) == ["[0] sees 2", "[2] sees 2"], done.stderr
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-1] == "ValueError: of this one alone"
    heading = [bool(re.match(r"rank 1 .* failed first, exit code 1:", line)) for line in lines]
    assert sum(heading) == 1 and lines[heading.index(True) + 1].startswith("Traceback")


def test_all_that_end_well_are_a_success(launcher, program):
    done = launcher("run", "-n", 2, "--keep-going", program("print('ran')"))
    assert (done.returncode, sorted(done.stdout.splitlines())) == (0, ["[0] ran", "[1] ran"])
    assert "failed" not in done.stderr


def test_going_on_and_starting_anew_exclude_each_other(launcher, program):
    script = program("print('started')")
    done = launcher("run", "-n", 2, "--keep-going", "--max-restarts", 3, script)
    assert (done.returncode, done.stdout) == (2, "")
    assert "found both (3 restarts)" in done.stderr
