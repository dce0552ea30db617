"""Calls that run one-sided on arrays that lie anywhere, which the kernel copies from and to.

With COLLECTIVES_LEND=always every call that may does, of any length.
"""

from __future__ import annotations

import ctypes
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

import collectives
import launch
from collectives.bench import cases as bench
from collectives.bench import tasks as bench_tasks
from collectives.bench.libraries.ours import Ours
from collectives.catalogue import REACHING
from collectives.choosing import Request

ALWAYS = {"COLLECTIVES_LEND": "always"}
REDUCING = ("allreduce", "reduce_scatter", "reduce")
ROOTED = ("reduce", "broadcast", "scatter", "gather")
COLLECTIVES = ("allreduce", "reduce_scatter", *ROOTED, "allgather", "alltoall")
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
                    root = (number + count) % comm.size if collective in ROOTED else 0
                    case = Case(collective, "", kind, dtype, count, op, root)
                    before = comm._engine.reached
                    if problem := run_case(comm, case):
                        failures.append(f"{case}: {problem}")
                    may = count > 0 and (comm.size == 2 or collective not in REDUCING)
                    if comm._engine.reached - before != may:
                        missed.append(case)
    return failures[:20], missed[:20]


@pytest.mark.parametrize("size", [2, *(pytest.param(n, marks=pytest.mark.full) for n in (3, 4))])
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


def _around_roots(comm, count):
    """Calls with a root, root after root, while each is tried and after."""
    mine, rank, size = np.empty(count), comm.rank, comm.size
    before = comm._engine.reached
    for turn in range(40):
        for root in range(size):
            if turn % size == rank:
                time.sleep(0.0002)  # each is late once
            x = np.full(count, turn + 0.0 if rank == root else -1.0)
            comm.broadcast(x, root=root, out=x)
            assert (x == turn).all()
            parts = np.arange(size * count + 0.0).reshape(size, count) if rank == root else None
            comm.scatter(parts, out=mine, root=root)
            assert (mine == np.arange(count) + rank * count).all()
            whole = np.empty((size, count)) if rank == root else None
            comm.gather(np.full(count, rank + turn + 0.0), out=whole, root=root)
            if rank == root:
                assert (whole == np.arange(size)[:, None] + turn).all()
            total = comm.reduce(np.full(count, rank + turn + 0.0), root=root)
            if rank == root:
                assert (total == size * turn + size * (size - 1) / 2).all()
    return comm._engine.reached - before


@pytest.mark.parametrize(
    ("count", "size"),
    [(9000, 2), (9000, 3), (LONG // 8, 2)]
    + [
        pytest.param(*each, marks=pytest.mark.full)
        for each in ((9000, 4), (LONG // 8, 3), (LONG // 8, 4))
    ],
)
def test_around_a_root_all_find_the_same(size, count):
    counts = launch.spawn(_around_roots, size, count)
    assert len(set(counts)) == 1 and counts[0] >= 9 * size, counts
    never = launch.spawn(_around_roots, size, count, environment={"COLLECTIVES_LEND": "never"})
    assert never == [0] * size


def _ever_other(collective):
    """Calls of ever other lengths, in which one rank hears of nobody and runs ahead."""
    comm = collectives.init()
    comm.barrier()
    before = comm._engine.reached
    for count in range(66_000, 66_600):
        x = np.ones(count)
        for _ in range(24):
            getattr(comm, collective)(x, root=0)
    found = comm._engine.reached - before
    say("done")
    told()
    return found


@pytest.mark.parametrize("collective, stopped", [("reduce", 0), ("gather", 0), ("broadcast", 1)])
def test_who_runs_ahead_finds_the_same(collective, stopped):
    """A rank that is stopped now and then has not yet written what the other looks for."""
    with Ranks(_ever_other, 2, collective) as ranks:
        over = threading.Event()

        def disturb():
            while not over.wait(0.002):
                ranks.kill(stopped, signal.SIGSTOP)
                time.sleep(0.001)
                ranks.kill(stopped, signal.SIGCONT)

        disturber = threading.Thread(target=disturb)
        disturber.start()
        said = ranks.said(stopped)
        over.set()
        disturber.join()
        assert (said, ranks.said(1 - stopped)) == ("done", "done"), ranks.outcomes()
        for rank in range(2):
            ranks.tell(rank)
        first, second = (outcome.value for outcome in ranks.outcomes())
    assert first == second >= 3 * 600


def _benched(comm):
    found = []
    for collective in COLLECTIVES:
        op = "sum" if collective in REDUCING else ""
        case = bench.Case(collective=collective, nbytes=256 * 1024, op=op)
        task = bench_tasks.Task(Ours(comm), case, "auto", 1 << 20)
        found.append(task.check())
    return found


def test_the_benchmark_says_what_has_run():
    want = [{"wrong": 0, "ran": REACHING[collective].name} for collective in COLLECTIVES]
    assert launch.spawn(_benched, 2, environment=ALWAYS) == [want] * 2
    never = launch.spawn(_benched, 2, environment={"COLLECTIVES_LEND": "never"})
    assert never == [[{"wrong": 0}] * len(COLLECTIVES)] * 2


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


def _uncopied_root(comm):
    """As before, of a root whose word is what the others go on by."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    begin = next(line for line in lines if "[vvar" in line).split("-")[0]
    found = np.frombuffer((ctypes.c_char * 4096).from_address(int(begin, 16)), np.uint8)
    reached = []
    for x in (found[:3999].reshape(3, -1), np.arange(3999, dtype=np.uint16).reshape(3, -1)):
        before = comm._engine.reached
        mine = comm.scatter(x if comm.rank == 1 else None, root=1)
        assert mine.dtype == np.uint8 or (mine == np.arange(1333) + 1333 * comm.rank).all()
        reached.append(comm._engine.reached - before)
    return reached


def test_where_only_the_root_has_what_the_kernel_would_not_copy_messages_go():
    assert launch.spawn(_uncopied_root, 3, environment=ALWAYS) == [[0, 1]] * 3


def _two_roots(comm, collective):
    x = np.ones(LONG)
    getattr(comm, collective)(x, root=comm.rank)


@pytest.mark.parametrize("collective", ["broadcast", "gather", "reduce"])
@pytest.mark.parametrize("lend", ["auto", "always"])
def test_two_roots_are_told(collective, lend):
    with pytest.raises(collectives.MismatchError, match=r"root (0 by .* root 1|1 by .* root 0) by"):
        launch.spawn(_two_roots, 2, collective, environment={"COLLECTIVES_LEND": lend})


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


def _untraceable_around_a_root():
    comm = collectives.init(timeout=20)
    x = np.ones(9000)
    if comm.rank == 1:
        assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0
    comm.broadcast(x, root=0)
    if comm.rank == 1:
        told()
    for _ in range(3):
        comm.broadcast(x, root=0)
    say("done")
    return comm._engine.reached


def test_once_it_is_known_that_none_can_be_reached_none_meet_for_it():
    with Ranks(_untraceable_around_a_root, 2) as ranks:
        assert ranks.said(0) == "done", "the root waits for a rank that has not come"
        ranks.tell(1)
        assert [outcome.value for outcome in ranks.outcomes()] == [0, 0]


def _other_algorithm(comm):
    x = np.ones(LONG)
    comm.allreduce(x, algorithm="ring" if comm.rank else None)


def test_a_rank_that_names_its_algorithm_fits_no_rank_that_does_not():
    with pytest.raises(collectives.MismatchError, match=r"sum by \w+ or one_sided #1") as caught:
        launch.spawn(_other_algorithm, 2, environment=ALWAYS)
    assert "sum by ring #1" in str(caught.value)


def _short_slots(comm):
    """Pieces are longer than slots, whichever way went first."""
    for count in (3000, 50_000):
        x = np.full(count, comm.rank + 1.0)
        for turn in range(60):
            name = "ring" if turn < 30 else None
            assert (comm.allreduce(x, algorithm=name) == 3).all()
    return comm._engine.reached > 0, comm._engine.lent > 0


@pytest.mark.parametrize("lend", ["auto", "always"])
def test_slots_may_be_shorter_than_what_is_copied_at_a_time(lend):
    environment = {"COLLECTIVES_LEND": lend, "COLLECTIVES_SLOT_BYTES": "32768"}
    assert launch.spawn(_short_slots, 2, environment=environment) == [(True, True)] * 2


def _set_of(text):
    """Which places a call may have when it is tried: see transports/native/lending.cpp."""
    number = 0xCBF29CE484222325
    for each in text.encode():
        number = ((number ^ each) * 0x100000001B3) % 2**64
    return (number * 0x9E3779B97F4A7C15 % 2**64 >> 40) % 16


def _ever_other_shapes(comm):
    """Calls that push each other out of their places, where they are tried again and again."""
    sets = {}
    for count in range(3000, 3400):
        call = comm._calls.get(Request("allgather", "float64", 8, count))
        sets.setdefault(_set_of(call.text), []).append(
            (np.ones(count), np.empty((comm.size, count)))
        )

    def times(number, arrays, slow=range(0)):
        x, out = arrays
        for turn in range(number):
            if turn in slow and comm.rank == 0:
                time.sleep(0.001)
            part.allgather(x, out=out)

    reached = []
    for _ in range(ROUNDS):
        with comm.split(0) as part:
            for again, *others in (each[:5] for each in sets.values() if len(each) >= 5):
                # What was found of it is still there when it has another place, and says otherwise.
                times(16, again, range(8))
                for other in others[:3]:
                    times(1, other)
                times(15, others[3])
                times(18, again, range(8, 16))
                x, out = again
                times(1, others[3])
                part.allgather(x, out=out)  # at once: another rank may not have written yet
                assert (out == 1).all()
            reached.append(part._engine.reached > 0)
    return all(reached)


ROUNDS = 8


def test_all_ranks_find_the_same_quicker():
    assert launch.spawn(_ever_other_shapes, 4) == [True] * 4


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
