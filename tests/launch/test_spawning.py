"""`launch.spawn` returns results by rank or raises what failed first, and leaves nothing behind."""

from __future__ import annotations

import functools
import os
import signal
import sys
import textwrap
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest

import collectives
import launch
from launch.sweeping import job_members


class OwnError(Exception):
    """An error of a module that the ranks cannot import by name."""


class HardToRebuildError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@dataclass
class Point:
    x: int


def rank_and_size(comm):
    return comm.rank, comm.size


def sleep_long(comm):
    time.sleep(600)


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_results_come_by_rank(ranks):
    assert launch.spawn(rank_and_size, ranks) == [(rank, ranks) for rank in range(ranks)]


def test_arguments_closures_and_lambdas_travel():
    offset = 100
    assert launch.spawn(lambda comm, x, y: x + y + offset + comm.rank, 2, 1, 10) == [111, 112]
    partial = functools.partial(lambda comm, x, y: (x, y), y=2)
    assert launch.spawn(partial, 2, 1) == [(1, 2)] * 2


def test_the_ranks_can_talk():
    def total(comm):
        return comm.allreduce(np.full(3, comm.rank + 1.0))

    for result in launch.spawn(total, 3):
        np.testing.assert_array_equal(result, np.full(3, 6.0))


def test_objects_of_our_own_classes_come_back_as_such():
    results = launch.spawn(lambda comm: Point(comm.rank), 2)
    assert results == [Point(0), Point(1)]


def test_ranks_have_torchruns_environment_and_what_the_caller_adds():
    def show(comm):
        return [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "EXTRA")]

    results = launch.spawn(show, 2, environment={"EXTRA": "more"})
    assert results == [["0", "2", "more"], ["1", "2", "more"]]


def test_ranks_are_bound_unless_told_otherwise():
    def cores(comm):
        return os.sched_getaffinity(0)

    ours = os.sched_getaffinity(0)
    ranks = min(2, len(ours))
    shares = launch.spawn(cores, ranks)
    assert set.union(*shares) == ours
    assert sum(map(len, shares)) == len(ours)
    assert launch.spawn(cores, ranks, bind=False) == [ours] * ranks


def test_large_arguments_and_results():
    data = np.arange(12_500_000, dtype=np.float64)  # 100 MB

    def echo(comm, x):
        return x if comm.rank == 1 else x.nbytes

    size, array = launch.spawn(echo, 2, data)
    assert size == data.nbytes
    np.testing.assert_array_equal(array, data)


def test_what_ranks_print_is_marked(capsys):
    def say(comm):
        print("to out")
        print("to err", file=sys.stderr)

    launch.spawn(say, 2)
    captured = capsys.readouterr()
    assert sorted(captured.out.splitlines()) == ["[0] to out", "[1] to out"]
    assert sorted(captured.err.splitlines()) == ["[0] to err", "[1] to err"]


def test_the_first_failing_ranks_exception_is_raised(capsys):
    def fail(comm):
        if comm.rank == 1:
            raise OwnError("boom")
        time.sleep(600)

    with pytest.raises(OwnError, match="boom") as caught:
        launch.spawn(fail, 3)
    (note,) = caught.value.__notes__
    assert "rank 1 (pid " in note
    assert "in fail" in note
    assert capsys.readouterr().err == ""  # once, in the exception, is enough


def test_an_exception_that_cannot_travel_is_told_in_words():
    def fail(comm):
        raise HardToRebuildError(1, 2)

    with pytest.raises(launch.RankFailedError, match=r"rank 0 .*HardToRebuildError: 1 and 2") as e:
        launch.spawn(fail, 1)
    assert e.value.rank == 0
    assert "in fail" in e.value.__notes__[0]


def test_an_exception_that_cannot_be_rebuilt_here_is_told_in_words():
    def fail(comm):
        class Evil(Exception):
            def __reduce__(self):
                # Rebuilt well in the rank that sends it, not where it arrives.
                return eval, ("Exception('x') if 'RANK' in __import__('os').environ else 1 / 0",)

        raise Evil("tricky")

    with pytest.raises(launch.RankFailedError, match="tricky"):
        launch.spawn(fail, 1)


@pytest.mark.parametrize("name", ["PeerLostError", "AbortedError"])
def test_consequences_are_not_first(name, tmp_path):
    def fail(comm):
        marker = tmp_path / "raised"
        if comm.rank == 0:
            try:
                raise getattr(collectives, name)("rank 1 has gone")
            finally:
                marker.touch()
        while not marker.exists():
            time.sleep(0.01)
        time.sleep(0.3)
        raise ValueError("the cause")

    with pytest.raises(ValueError, match="the cause"):
        launch.spawn(fail, 2)


def test_an_error_that_stems_from_a_consequence_is_one():
    from launch.spawned_rank import stems_from_peer

    try:
        try:
            raise collectives.PeerLostError("rank 1 has gone")
        except collectives.PeerLostError as error:
            raise RuntimeError("training stopped") from error
    except RuntimeError as error:
        assert stems_from_peer(error)
    assert not stems_from_peer(ValueError())


def test_of_consequences_alone_the_first_is_raised():
    def fail(comm):
        if comm.rank == 1:
            raise collectives.PeerLostError("rank 0 has gone")

    with pytest.raises(collectives.PeerLostError, match="rank 0 has gone"):
        launch.spawn(fail, 2)


def test_a_rank_that_others_wait_for_is_the_cause():
    def fail(comm):
        if comm.rank == 1:
            raise OwnError("the cause")
        comm.barrier()

    with pytest.raises(OwnError, match="the cause"):
        launch.spawn(fail, 3)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_killed_rank_is_named_with_its_signal(ranks):
    def die(comm):
        if comm.rank == comm.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)

    with pytest.raises(launch.RankFailedError, match=r"rank \d \(pid \d+\) .*SIGKILL") as caught:
        launch.spawn(die, ranks)
    assert (caught.value.rank, caught.value.code) == (ranks - 1, -signal.SIGKILL)


@pytest.mark.parametrize(
    ("leave", "said"),
    [
        (lambda comm: sys.exit(4), "exit code 4"),
        (lambda comm: os._exit(0), "exit code 0 before its function returned"),
    ],
)
def test_a_rank_that_leaves_without_an_answer_is_an_error(leave, said):
    with pytest.raises(launch.RankFailedError, match=said):
        launch.spawn(leave, 2)


def test_a_late_job_is_ended_and_its_ranks_named():
    def wait(comm):
        if comm.rank != 1:
            time.sleep(600)

    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"spawn: ranks? 0, 2 had not ended after 3.0 seconds"):
        launch.spawn(wait, 3, timeout=3.0)
    assert time.monotonic() - began < 12


def test_what_cannot_be_sent_is_refused():
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"spawn cannot send .*<lambda> and its arguments"):
        launch.spawn(lambda comm: lock, 2)
    with pytest.raises(TypeError, match=r"spawn cannot send .*rank_and_size"):
        launch.spawn(rank_and_size, 2, lock)
    with pytest.raises(TypeError, match="the result of rank 0, of type lock, cannot be pickled"):
        launch.spawn(lambda comm: threading.Lock(), 1)


def test_a_result_that_cannot_be_rebuilt_here_is_refused():
    class Evil:
        def __reduce__(self):
            return eval, ("1 / 0",)

    with pytest.raises(TypeError, match="the result of rank 0 cannot be unpickled here: division"):
        launch.spawn(lambda comm: Evil(), 1)


@pytest.mark.parametrize(
    ("function", "ranks", "error", "said"),
    [
        ("text", 2, TypeError, "expected a function to spawn, found str"),
        (rank_and_size, 2.0, TypeError, "nprocs must be an integer, found 2.0"),
        (rank_and_size, True, TypeError, "nprocs must be an integer, found True"),
        (rank_and_size, 0, ValueError, "the number of ranks must be at least 1, not 0"),
    ],
)
def test_wrong_arguments_are_refused(function, ranks, error, said):
    with pytest.raises(error, match=said):
        launch.spawn(function, ranks)


def test_spawn_works_in_a_thread_and_in_several_at_once():
    results: dict[int, list[tuple[int, int]]] = {}

    def call(ranks):
        results[ranks] = launch.spawn(rank_and_size, ranks)

    threads = [threading.Thread(target=call, args=(ranks,)) for ranks in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {1: [(0, 1)], 2: [(0, 2), (1, 2)]}


SCRIPT = """
    import os, sys, time
    import launch

    def work(comm):  # no `if __name__ == "__main__"` around what follows
        return Answer(comm.rank, sys.argv[1:])

    class Answer:
        def __init__(self, rank, words):
            self.rank, self.words = rank, words

    answers = launch.spawn(work, 2)
    assert all(type(answer) is Answer for answer in answers)
    print([(answer.rank, answer.words) for answer in answers])
"""


def test_a_main_script_needs_no_guard(launcher, program):
    process = launcher.start(program(SCRIPT), "word", command=(sys.executable,))
    out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("[(0, ['word']), (1, ['word'])]\n", 0), err


def test_code_that_comes_from_nowhere_works_as_in_a_notebook(launcher):
    # No file, no importable module, as a notebook's cells.
    process = launcher.start(textwrap.dedent(SCRIPT), "word", command=(sys.executable, "-c"))
    out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("[(0, ['word']), (1, ['word'])]\n", 0), err


WAITING = """
    import os, time
    import launch

    def work(comm):
        print("job", os.environ["COLLECTIVES_JOB"], flush=True)
        time.sleep(600)

    launch.spawn(work, 2)
"""


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name
)
def test_stopping_the_caller_ends_the_ranks(launcher, program, read_lines, number):
    process = launcher.start(program(WAITING), command=(sys.executable,))
    (job,) = {line.split()[-1] for line in read_lines(process, "job", 2)}
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    if number == signal.SIGINT:
        assert err.rstrip().endswith("KeyboardInterrupt")
        assert job_members(job) == []
    deadline = time.monotonic() + 10.0
    while members := job_members(job):
        assert time.monotonic() < deadline, members
        time.sleep(0.01)


def test_spawn_leaves_no_descriptor_open():
    launch.spawn(rank_and_size, 2)  # whatever is opened once and for all
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    launch.spawn(rank_and_size, 2)
    with pytest.raises(OwnError):
        launch.spawn(lambda comm: (_ for _ in ()).throw(OwnError()), 2)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
