"""Cores are shared out without splitting a physical core, and the ranks really sit on them."""

from __future__ import annotations

import os
import re
import sys

import pytest

from launch import binding
from launch.binding import (
    binding_line,
    core_place,
    core_quota,
    rank_threads,
    share_cores,
)

CORES = len(os.sched_getaffinity(0))
SHOW = "import os; print(sorted(os.sched_getaffinity(0)))"


def places(cores: int, threads: int = 1) -> list[tuple[int, int]]:
    """Where cores are when each physical one shows as `threads` neighbours."""
    return [(0, core // threads) for core in range(cores)]


@pytest.mark.parametrize(
    ("cores", "ranks", "expected"),
    [
        (4, 1, [[0, 1, 2, 3]]),
        (4, 2, [[0, 1], [2, 3]]),
        (5, 2, [[0, 1, 2], [3, 4]]),
        (3, 3, [[0], [1], [2]]),
        (2, 3, [[], [], []]),
    ],
)
def test_cores_are_cut_into_runs(cores, ranks, expected):
    assert share_cores(range(cores), places(cores), ranks) == expected


def test_hardware_threads_of_a_core_stay_together():
    # Six hardware threads of three cores: the third thread of rank 0 would be rank 1's neighbour.
    assert share_cores(range(6), places(6, threads=2), 2) == [[0, 1, 2, 3], [4, 5]]


def test_siblings_that_are_numbered_apart_are_found():
    # As most systems number them: core c has the threads c and c + 2.
    where = [(0, 0), (0, 1), (0, 0), (0, 1)]
    assert share_cores([0, 1, 2, 3], where, 2) == [[0, 2], [1, 3]]


def test_more_ranks_than_physical_cores_share_by_hardware_threads():
    assert share_cores(range(4), places(4, threads=2), 3) == [[0, 1], [2], [3]]


def test_sockets_come_before_cores():
    where = [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert share_cores([0, 1, 2, 3], where, 2) == [[0, 2], [1, 3]]


def test_a_core_whose_place_is_unknown_stands_alone(tmp_path):
    assert core_place(3, tmp_path) == (0, 3)
    folder = tmp_path / "cpu3" / "topology"
    folder.mkdir(parents=True)
    (folder / "physical_package_id").write_text("1\n")
    (folder / "core_id").write_text("9\n")
    assert core_place(3, tmp_path) == (1, 9)


def test_a_containers_quota_is_read(tmp_path):
    assert core_quota(tmp_path) is None
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    for quota, cores in (("-1\n", None), ("250000\n", 2), ("10000\n", 1)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
        assert core_quota(tmp_path) == cores
    for quota, cores in (("max 100000\n", None), ("400000 100000\n", 4)):
        (tmp_path / "cpu.max").write_text(quota)
        assert core_quota(tmp_path) == cores


def test_threads_stay_within_the_quota(monkeypatch):
    monkeypatch.setattr(binding, "core_quota", lambda: 1)
    assert rank_threads(1, {}) == 1
    assert rank_threads(2, {}) == 1
    assert rank_threads(1, {"OMP_NUM_THREADS": "9"}) is None


def test_the_line_says_what_was_done(monkeypatch):
    monkeypatch.setattr(binding.os, "sched_getaffinity", lambda pid: set(range(10)))
    line = binding_line([[0, 1, 2, 3, 8], [4, 5]], "5", bind=True)
    assert line.startswith("2 ranks on 10 cores, OMP_NUM_THREADS=5; ")
    assert "rank 0: 0-3,8, 1: 4-5" in line
    assert "(more ranks than cores)" in binding_line([[], []], "1", bind=True)
    assert "(--no-bind)" in binding_line([[], []], "1", bind=False)
    assert binding_line([[0]] * 9, "1", bind=True).count(": 0") == 8


def bound(done) -> list[list[int]]:
    assert done.returncode == 0, done.stderr
    lines = [re.fullmatch(r"\[\d+\] \[(.*)\]", line) for line in sorted(done.stdout.splitlines())]
    return [[int(core) for core in line[1].split(",")] for line in lines]


def test_ranks_sit_on_cores_of_their_own(launcher, program):
    ranks = min(2, CORES)
    done = launcher("run", "-n", ranks, program(SHOW))
    shares = bound(done)
    assert all(shares)
    # Each core once, and every core.
    assert sorted(core for share in shares for core in share) == sorted(os.sched_getaffinity(0))
    assert done.stderr.startswith(f"collectives: {ranks} rank")


def test_binding_can_be_turned_off(launcher, program):
    done = launcher("run", "-n", 2, "--no-bind", program(SHOW))
    assert bound(done) == [sorted(os.sched_getaffinity(0))] * 2
    assert "not bound (--no-bind)" in done.stderr


def test_more_ranks_than_cores_are_not_bound(launcher, program):
    done = launcher("run", "-n", CORES + 1, program(SHOW))
    assert bound(done) == [sorted(os.sched_getaffinity(0))] * (CORES + 1)
    assert "not bound (more ranks than cores)" in done.stderr


def test_only_the_launchers_own_cores_are_given_out(launcher, program):
    one = min(os.sched_getaffinity(0))
    script = program(SHOW)
    narrow = program(
        f"""
        import os, sys
        os.sched_setaffinity(0, {{{one}}})
        os.execv(sys.executable, [sys.executable, "-m", "launch", "run", "-n", "1", "{script}"])
    """,
        "narrow.py",
    )
    process = launcher.start(narrow, command=(sys.executable,))
    out, _ = process.communicate(timeout=60)
    assert out == f"[0] [{one}]\n"
