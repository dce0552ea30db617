"""More ranks than the machine can start are refused before any starts, by what is missing."""

from __future__ import annotations

import resource
import sys

import pytest

import launch
from launch import capacity
from launch.capacity import check_room, own_threads

FAR_TOO_MANY = 10_000_000  # more than Linux has process numbers


def test_far_too_many_ranks_are_refused_with_what_is_missing(launcher, program):
    done = launcher("run", "-n", str(FAR_TOO_MANY), program("print('started')"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "10,000,000 ranks cannot be started here: " in done.stderr
    assert "10,000,001 processes needed, " in done.stderr
    assert "at least 30,000.0 GB of memory needed (3 MB a rank), " in done.stderr
    with pytest.raises(ValueError, match=r"at least 160,000\.0 GB of memory needed \(16 MB a rank"):
        launch.spawn(lambda comm: None, FAR_TOO_MANY)


def test_open_files_run_out_before_anything_starts(launcher, program):
    script = program("print('started')")
    code = (
        "import resource, sys; from launch.command_line import main; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32)); sys.exit(main(sys.argv[1:]))"
    )
    python = (sys.executable, "-c", code)
    process = launcher.start("run", "-n", "20", script, command=python)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert "60 open files needed by the launcher, " in err
    assert " of 32 left (RLIMIT_NOFILE, ulimit -n)" in err
    process = launcher.start("run", "-n", "2", script, command=python)
    out, err = process.communicate(timeout=30)
    assert sorted(out.splitlines()) == ["[0] started", "[1] started"], err


def test_a_users_limit_of_processes(monkeypatch):
    monkeypatch.setattr(capacity, "_is_exempt", lambda: False)
    kinds = {resource.RLIMIT_NPROC: own_threads() + 5}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (kinds.get(kind, -1), -1))
    check_room(1, descriptors=3, memory=0)
    with pytest.raises(ValueError, match=r"1,001 processes needed, .* left \(RLIMIT_NPROC"):
        check_room(1000, descriptors=3, memory=0)


def test_a_thousand_small_ranks_are_not_refused_for_want_of_cores(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (-1, -1))
    monkeypatch.setattr(capacity, "available_memory", lambda: (4 << 30, "here"))
    monkeypatch.setattr(capacity, "group_folders", lambda controller: [])
    check_room(1000, descriptors=capacity.DESCRIPTORS_PER_RANK, memory=capacity.INTERPRETER_BYTES)


def test_a_control_group_of_few_processes(monkeypatch, tmp_path):
    (tmp_path / "pids.max").write_text("12\n")
    (tmp_path / "pids.current").write_text("4\n")
    monkeypatch.setattr(capacity, "group_folders", lambda controller: [tmp_path])
    check_room(7, descriptors=3, memory=0)
    with pytest.raises(ValueError, match=r"9 processes needed, 8 left \(.*pids\.max\)"):
        check_room(8, descriptors=3, memory=0)
