"""Calls that run one-sided on arrays that lie anywhere, which the kernel copies from and to.

With COLLECTIVES_LEND=always every call that may does, of any length.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from harness.conformance import FLOATS, OPS_OF, Case, run_case
from harness.processes import Ranks, say, told
from soak.bad_bytes import WRITES_TO, areas, mapped_at

import collectives
import launch
from collectives import settings
from transports import _native

ALWAYS = {"COLLECTIVES_LEND": "always"}
REDUCING = ("allreduce", "reduce_scatter")
COLLECTIVES = (*REDUCING, "allgather", "alltoall")
LONG = 1 << 20  # elements of 8 bytes
SOON = 10.0


def _definition(comm):
    """Every call that may against the definition: what is wrong, and how many were not reached."""
    failures, missed = [], []
    comm.barrier()
    for collective in COLLECTIVES:
        for number, dtype in enumerate(OPS_OF):
            for op in OPS_OF[dtype] if collective in REDUCING else ("sum",):
                for count in (0, 1, 257, 70_001):
                    kind = ("numpy", "torch")[(number + count) % 2]
                    if kind == "torch" and dtype in ("uint16", "uint32", "uint64"):
                        kind = "numpy"
                    case = Case(collective, "", kind, dtype, count, op, 0)
                    before = comm._engine.reached
                    if problem := run_case(comm, case):
                        failures.append(f"{case}: {problem}")
                    may = count > 0 and (comm.size == 2 or collective not in REDUCING)
                    if comm._engine.reached - before != may:
                        missed.append(case)
    return failures[:20], missed[:20]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_what_the_definition_says(size):
    """And not where a sum of more than two would be folded in another order."""
    for failures, missed in launch.spawn(_definition, size, environment=ALWAYS, timeout=100):
        assert not failures, "\n".join(failures)
        assert not missed


def _places(comm):
    """Results in place, at odd addresses, past the caches, in symmetric memory, and later."""
    comm.barrier()
    for count in (5, 40_000, 300_001):
        for dtype in FLOATS[:2]:
            block = np.zeros(3 * count + 9, dtype)
            x, out = block[1 : count + 1], block[count + 3 : 2 * count + 3]
            symmetric = comm.empty(count, dtype)
            for op, want in (("sum", 3), ("max", 2), ("avg", 1.5)):
                for source, result in ((x, out), (x, x), (symmetric, out), (x, symmetric)):
                    for async_op in (False, True):
                        block[:], symmetric[:] = -1, -2
                        source[:] = comm.rank + 1
                        before = comm._engine.reached
                        done = comm.allreduce(source, out=result, op=op, async_op=async_op)
                        if async_op:
                            done.wait()
                        assert (result == want).all(), (count, dtype, op, async_op)
                        assert (block[[0, count + 1, count + 2, 2 * count + 3]] == -1).all()
                        assert comm._engine.reached == before + 1
    x = np.full(9, comm.rank + 0.0)
    before = comm._engine.reached
    assert comm.allreduce(x, deterministic=True)[0] == 1.0
    return comm._engine.reached - before


@pytest.mark.parametrize("cache", ["0", str(1 << 40)])
def test_wherever_the_arrays_lie(cache):
    environment = {**ALWAYS, "COLLECTIVES_CACHE_BYTES": cache}
    assert launch.spawn(_places, 2, environment=environment) == [1, 1]


def _by_trial(comm):
    counts = []
    for count in (LONG // 64, LONG):
        before = comm._engine.reached
        for turn in range(600):
            x = np.full(count if turn < 20 or turn > 500 else 64, comm.rank + turn)
            out = x if turn % 3 == comm.rank else np.empty_like(x)  # on each rank as it likes
            comm.allreduce(x, out=out)
            assert (out == 2 * turn + 1).all()
        counts.append(comm._engine.reached - before)
    return counts


def test_it_is_tried_and_the_results_are_the_same():
    both = launch.spawn(_by_trial, 2)
    assert both[0] == both[1] and min(both[0]) >= 3, both
    never = launch.spawn(_by_trial, 2, environment={"COLLECTIVES_LEND": "never"})
    assert never == [[0, 0]] * 2


def _uncopied(comm):
    """Of a kind that the kernel copies for nobody, as memory of devices is: here the kernel's."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    begin = next(line for line in lines if "[vvar" in line).split("-")[0]
    comm.barrier()
    found = np.frombuffer((ctypes.c_char * 4096).from_address(int(begin, 16)), np.uint8)
    mine = found if comm.rank == 1 else np.arange(4096, dtype=np.uint8)
    both = comm.allgather(mine)
    assert (both[0] == np.arange(4096, dtype=np.uint8)).all() and both.shape == (2, 4096)
    before = comm._engine.reached
    comm.allgather(mine.copy())
    return before, comm._engine.reached


def test_where_one_rank_has_what_the_kernel_would_not_copy_messages_go():
    assert launch.spawn(_uncopied, 2, environment=ALWAYS) == [(0, 1)] * 2


def _untraceable():
    comm = collectives.init(timeout=20)
    x = np.ones(LONG)
    assert comm.allreduce(x)[-1] == 2 and comm._engine.reached == 1
    if comm.rank == 1:
        assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0  # PR_SET_DUMPABLE
    assert comm.allreduce(x)[-1] == 2
    return comm._engine.reached


def test_a_rank_that_is_not_to_be_traced_is_left_alone():
    with Ranks(_untraceable, 2, environment=ALWAYS) as ranks:
        assert [outcome.value for outcome in ranks.outcomes()] == [1, 1]


def _other_algorithm(comm):
    x = np.ones(LONG)
    comm.allreduce(x, algorithm="ring" if comm.rank else None)


def test_a_rank_that_names_its_algorithm_fits_no_rank_that_does_not():
    with pytest.raises(collectives.MismatchError, match=r"sum by \w+ or one_sided #1") as caught:
        launch.spawn(_other_algorithm, 2, environment=ALWAYS)
    assert "sum by ring #1" in str(caught.value)


def _with_seal(comm, key):
    comm._engine.set_seal(key + comm.rank)
    comm.allreduce(np.ones(LONG))


def test_an_address_that_is_not_under_the_seal_is_not_used():
    with pytest.raises(collectives.MismatchError, match=r"rank \d .* posted a damaged message"):
        launch.spawn(_with_seal, 2, 5, environment=ALWAYS)


def _until_lost(timeout):
    comm = collectives.init(timeout=timeout)
    x = np.ones(8 * LONG)
    comm.allreduce(x)
    say("runs")
    began = time.monotonic()
    try:
        while True:
            began = time.monotonic()
            comm.allreduce(x, out=x)
    except collectives.CollectiveError as error:
        return type(error).__name__, str(error), time.monotonic() - began


@pytest.mark.parametrize("delay", [0.001, 0.02, 0.0337])
def test_a_rank_that_is_killed_in_the_midst(delay):
    with Ranks(_until_lost, 2, 30, environment=ALWAYS) as ranks:
        assert (ranks.said(0), ranks.said(1)) == ("runs", "runs")
        time.sleep(delay)
        ranks.kill(1)
        kind, text, took = ranks.outcome(0).value
    assert kind == "PeerLostError" and "rank 1" in text and "SIGKILL" in text, text
    assert took < SOON


def test_a_rank_that_is_stopped_in_the_midst_is_waited_for_until_the_deadline():
    with Ranks(_until_lost, 2, 1.0, environment=ALWAYS) as ranks:
        assert (ranks.said(0), ranks.said(1)) == ("runs", "runs")
        ranks.kill(1, signal.SIGSTOP)
        kind, text, _ = ranks.outcome(0).value
    assert kind == "CollectiveTimeout" and "rank 1" in text, text


def _with_trouble_half_told(comm):
    """As when a rank is killed while it writes down why it gives up."""
    comm.barrier()
    geometry = settings.geometry()
    region = mapped_at(_native.region_bytes(**geometry.for_ranks(2)))
    board = next(area for area in areas(geometry, 2) if area.name == "trouble")
    ctypes.c_uint32.from_address(region + board.begin).value = 1
    comm.allreduce(np.ones(LONG))


def test_trouble_of_which_nobody_says_why_is_no_leave_to_use_what_was_copied():
    with pytest.raises(collectives.AbortedError, match="a rank gave up, and did not say why"):
        launch.spawn(_with_trouble_half_told, 2, environment=ALWAYS)


def _without_its_first_thread(known):
    """Rank 1 goes on in another thread, of a process whose memory none finds by its number."""
    comm = collectives.init(timeout=60)
    x = np.ones(LONG)
    if known:  # what the kernel has copied from once is not asked about again
        comm.allreduce(x, out=x)
    comm.barrier()
    if comm.rank == 0:
        say("there")
        told()
        began = time.monotonic()
        try:
            return "", str(comm.allreduce(x, out=x)[0]), 0.0
        except collectives.CollectiveError as error:
            return type(error).__name__, str(error), time.monotonic() - began

    def go_on():
        first = Path(f"/proc/self/task/{os.getpid()}/stat")
        while first.read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.001)
        with contextlib.suppress(collectives.CollectiveError):
            comm.allreduce(x, out=x)
        os._exit(0)

    threading.Thread(target=go_on).start()
    exit_thread = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
    ctypes.CDLL(None).syscall(exit_thread, 0)
    return None


def _without_first_thread(known):
    with Ranks(_without_its_first_thread, 2, known, environment=ALWAYS) as ranks:
        assert ranks.said(0) == "there"
        time.sleep(0.5)
        ranks.tell(0)
        outcome = ranks.outcome(0)
        assert outcome.value, outcome
        return outcome.value


def test_a_rank_whose_memory_is_not_found_is_sent_messages():
    assert _without_first_thread(False) == ("", "2.0", 0.0)


@pytest.mark.full
def test_a_rank_whose_memory_is_not_found_any_more_is_lost_after_a_while():
    kind, text, took = _without_first_thread(True)
    assert kind == "PeerLostError" and "rank 1" in text, text
    assert 9 < took < 30


class Stop(Exception):
    pass


def _interrupted():
    """Rank 1 is interrupted somewhere in the call; what it then writes to its array stays."""
    stopped = 0.0

    def stop(number, frame):
        nonlocal stopped
        stopped = time.monotonic()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        raise Stop

    comm = collectives.init(timeout=30)
    x, out = np.ones(LONG), np.ones(LONG)
    for number in range(ROUNDS):
        result = (x, out)[number % 2]
        comm.allreduce(x, out=result)
        if comm.rank == 1:
            signal.signal(signal.SIGUSR1, stop)
        say("runs")
        try:
            while True:
                comm.allreduce(x, out=result)
        except (Stop, collectives.AbortedError):
            comm._engine.abort("interrupted between two calls")  # if it was not within one
        if comm.rank == 1:
            # Else the other was stopped just between its look at this rank and the kernel's copy.
            is_sure = time.monotonic() - stopped < 0.9
            result[:] = 7
            say("changed")
            told()
            time.sleep(0.02)
            assert (result == 7).all() or not is_sure
        comm = comm.shrink()


ROUNDS = 40


def test_nobody_writes_to_the_array_of_a_call_that_was_interrupted():
    dice = np.random.default_rng(7)
    with Ranks(_interrupted, 2, environment=ALWAYS) as ranks:
        for _ in range(ROUNDS):
            assert (ranks.said(0), ranks.said(1)) == ("runs", "runs")
            time.sleep(dice.uniform(0, 3e-3))
            ranks.kill(0, signal.SIGSTOP)  # wherever it is
            ranks.kill(1, signal.SIGUSR1)
            assert ranks.said(1) == "changed"
            ranks.kill(0, signal.SIGCONT)
            ranks.tell(1)
        assert [outcome.text for outcome in ranks.outcomes()] == ["", ""]


def _with_a_writer_that_stands_still():
    comm = collectives.init(timeout=1.0)
    x, out = np.ones(LONG), np.ones(LONG)
    comm.allreduce(x, out=out)
    if comm.rank == 1:
        told()
        return None
    # As if rank 1 had been stopped between its look at this rank and the kernel's copy.
    geometry = settings.geometry()
    region = mapped_at(_native.region_bytes(**geometry.for_ranks(2)))
    standing = [area for area in areas(geometry, 2) if area.name == "standing"][1]
    writes_to = ctypes.c_uint32.from_address(region + standing.begin + WRITES_TO)
    writes_to.value = 1
    held = sys.getrefcount(out)
    found = []
    for _ in range(2):
        began = time.monotonic()
        try:
            comm.allreduce(x, out=out)
        except collectives.CollectiveTimeout as error:
            found.append((str(error), time.monotonic() - began))
    gc.collect()
    return found, sys.getrefcount(out) - held


def test_an_array_that_a_stopped_rank_may_write_to_is_kept():
    with Ranks(_with_a_writer_that_stands_still, 2, environment=ALWAYS) as ranks:
        ((text, took), (again, _)), more = ranks.outcome(0).value
    assert "a rank was stopped while it wrote to the array of the result" in text, text
    assert again.startswith("allreduce") and more == 1  # it is kept once
    assert took < SOON


FEW_NUMBERS = """
mount --bind {few} /proc/sys/kernel/pid_max && exec {python} -c '
import numpy as np, launch
def reached(comm):
    assert (comm.allreduce(np.ones(9)) == 2).all()
    return comm._engine.reached
print(launch.spawn(reached, 2, environment={{"COLLECTIVES_LEND": "always"}}))'
"""


@pytest.mark.skipif(os.getuid() != 0, reason="no privilege to mount")
@pytest.mark.parametrize(
    "most, reached", [("32768", "[1, 1]"), ("32767", "[0, 0]"), ("", "[0, 0]")]
)
def test_where_numbers_of_processes_come_again_soon_nothing_is_written(tmp_path, most, reached):
    few = tmp_path / "pid_max"
    few.write_text(most)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", FEW_NUMBERS.format(few=few, python=sys.executable)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if "Operation not permitted" in done.stderr:
        pytest.skip("no privilege to mount")
    assert done.stdout.strip() == reached, done.stderr
