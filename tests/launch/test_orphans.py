"""Processes whose launcher has gone are found and ended by `collectives doctor`, and no others."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from launch import orphans
from launch.command_line import main
from launch.doctor import examination, left_behind, self_test
from launch.doctor.examination import Check
from launch.orphans import LAUNCHER_VARIABLE, launcher_lives, launcher_mark
from launch.sweeping import JOB_VARIABLE, job_members

SLEEP = ["sleep", "600"]
STUBBORN = ["sh", "-c", "trap '' TERM; echo; while :; do sleep 600; done"]


@pytest.fixture
def job():
    return f"test-{secrets.token_hex(8)}"


@pytest.fixture
def start(job):
    """Starts a process of the job, whose launcher is as told; ended when the test is over."""
    started = []

    def begin(launcher: str | None, command=SLEEP) -> subprocess.Popen[bytes]:
        environment = {**os.environ, JOB_VARIABLE: job}
        environment |= {} if launcher is None else {LAUNCHER_VARIABLE: launcher}
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, start_new_session=True
        )
        started.append(process)
        if command is STUBBORN:
            process.stdout.readline()
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.fixture
def doctor(monkeypatch, capsys):
    """Looks for orphans alone, and returns the finding and the exit code."""

    def only(runtime, ranks, clean):
        return [Check(subject="orphans", look=partial(left_behind.check_orphans, clean))]

    def look(*words: str) -> tuple[dict, int]:
        code = main(["doctor", "--json", *words])
        (finding,) = json.loads(capsys.readouterr().out)["findings"]
        return finding, code

    monkeypatch.setattr(examination, "checks", only)
    monkeypatch.setattr(examination, "ask", lambda *words, seconds: {})
    monkeypatch.setattr(self_test, "check_ranks", list)
    return look


@pytest.fixture
def gone() -> str:
    """The mark of a launcher that has ended."""
    launcher = subprocess.Popen(SLEEP)
    mark = f"{launcher.pid}.{orphans._status(launcher.pid)[orphans._START]}"
    assert launcher_lives(mark)
    launcher.kill()
    os.waitid(os.P_PID, launcher.pid, os.WEXITED | os.WNOWAIT)
    assert not launcher_lives(mark)  # it has not been reaped, but it launches no more
    launcher.wait()
    return mark


def test_an_orphan_is_listed_and_left_alone(doctor, start, gone, job):
    process = start(gone)
    finding, code = doctor()
    (line,) = [line for line in finding["details"] if job in line]
    assert line == f"pid {process.pid}, job {job}, 0 seconds old: sleep 600"
    assert finding["verdict"] == "warning" and code == 0
    assert "whose launcher has gone" in finding["found"]
    assert finding["advice"] == "Run `collectives doctor --clean` to end them."
    assert process.poll() is None


def test_clean_ends_orphans_and_nothing_else(doctor, start, gone, job):
    orphan = start(gone)
    reused = start(f"{os.getpid()}.1")  # the launcher's number has become another process's
    others = [start(launcher_mark()), start(None), start("who knows")]
    finding, code = doctor("--clean", job)
    assert (finding["verdict"], finding["found"], code) == ("ok", "2 processes ended", 0)
    assert all(f"pid {each.pid}," in "".join(finding["details"]) for each in (orphan, reused))
    assert orphan.wait(timeout=10) == reused.wait(timeout=10) == -signal.SIGTERM
    assert [each.poll() for each in others] == [None] * 3
    finding, _ = doctor("--clean", job)
    assert finding["found"] == "no process of ours without its launcher"


def test_clean_without_a_job_ends_those_of_every_job(doctor, start, gone, monkeypatch):
    orphan = start(gone)
    monkeypatch.setattr(orphans, "environments", lambda: iter([(orphan.pid, b"")]))
    finding, _ = doctor("--clean")
    assert finding["found"] == "1 process ended"
    assert orphan.wait(timeout=10) == -signal.SIGTERM


def test_one_that_will_not_end_is_killed(doctor, start, gone, job, monkeypatch):
    monkeypatch.setattr(left_behind, "end_orphans", partial(orphans.end_orphans, grace=0.2))
    orphan = start(gone, STUBBORN)
    finding, _ = doctor("--clean", job)
    assert "ended" in finding["found"]
    assert orphan.wait(timeout=10) == -signal.SIGKILL


def test_one_that_outlives_the_kill_is_a_problem(doctor, start, gone, job, monkeypatch):
    monkeypatch.setattr(left_behind, "end_orphans", list)
    orphan = start(gone)
    finding, code = doctor("--clean", job)
    assert (finding["verdict"], code) == ("problem", 1)
    assert finding["found"] == "1 process cannot be ended"
    assert f"pid {orphan.pid}," in finding["details"][0]


def test_who_asks_is_spared_and_so_are_those_above(start, gone, job):
    code = "import subprocess, sys; print(subprocess.run(sys.argv[1:], capture_output=True))"
    words = [sys.executable, "-m", "launch", "doctor", "--clean", job, "--json"]
    asking = start(gone, [sys.executable, "-c", code, *words])
    out, _ = asking.communicate(timeout=30)
    assert asking.returncode == 0, out
    assert b"no process of ours without its launcher" in out, out.decode()


def test_a_child_that_has_yet_to_run_its_program_is_spared(doctor, gone, job, monkeypatch):
    """Until then it shows what its parent was started with: here that of an orphan."""
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        monkeypatch.setattr(orphans, "environments", lambda: iter([(child, b"")]))
        looked_at = []
        monkeypatch.setattr(orphans, "_looked_at", lambda process, job: looked_at.append(job))
        finding, code = doctor("--clean", job)
        assert (looked_at, code) == ([], 0) and "no process of ours" in str(finding)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_other_users_and_other_namespaces_are_not_looked_at(doctor, start, gone, job, monkeypatch):
    process = start(gone)
    own = os.getuid()
    with monkeypatch.context() as patch:
        patch.setattr(orphans.os, "getuid", lambda: own + 1)
        assert not orphans._comparable(process.pid)
    monkeypatch.setattr(orphans, "_NAMESPACES", ("pid", "time", "no such"))
    assert orphans._comparable(process.pid)  # of a kernel that lacks some, the others count
    found = orphans.Path.readlink
    monkeypatch.setattr(
        orphans.Path,
        "readlink",
        lambda path: path if str(process.pid) in path.parts else found(path),
    )
    finding, _ = doctor("--clean", job)
    assert finding["found"] == "no process of ours without its launcher"
    assert process.poll() is None


def test_without_pidfds_nothing_is_ended(doctor, start, gone, job, monkeypatch):
    process = start(gone)

    def refused(pid):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(orphans.os, "pidfd_open", refused)
    finding, _ = doctor("--clean", job)
    assert finding["verdict"] == "warning"
    assert finding["found"].startswith("cannot be told for certain without pidfds")
    assert launcher_lives(gone)  # what cannot be told is not dead
    assert process.poll() is None


def test_a_rank_that_outlives_launcher_and_guard_is_ended(launcher, program, read_lines, doctor):
    script = program("""
        import ctypes, os, time
        ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # no parent-death signal
        print("job", os.environ["COLLECTIVES_JOB"])
        time.sleep(600)
    """)
    process = launcher.start("run", "-n", 1, script)
    (line,) = read_lines(process, "job ")[-1:]
    job = line.partition("job ")[2]
    (rank,) = job_members(job)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (guard,) = {int(pid) for pid in children} - {rank}
    finding, _ = doctor("--clean", job)
    assert finding["found"] == "no process of ours without its launcher"
    assert job_members(job) == [rank]
    os.kill(guard, signal.SIGKILL)
    process.kill()
    process.wait(timeout=30)
    assert job_members(job) == [rank]
    done = launcher("doctor", "--clean", job)
    assert f"pid {rank}, job {job}, " in done.stdout and "1 process ended" in done.stdout
    assert done.returncode == 0, done.stdout
    assert job_members(job) == []
