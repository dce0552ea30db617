"""Ctrl-C, SIGTERM and even SIGKILL of the launcher leave no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import launch
from launch import sweeping
from launch.sweeping import GUARD_LOOKS_EVERY, JOB_VARIABLE, PATIENCE, job_members, sweep_job
from launch.watching import ASKED, STOPPING

# Each rank starts a child that has left its session, and one that stays and ignores what can be.
FAMILY = """
    import os, subprocess, sys, time
    sleeper = [sys.executable, "-c", "import time; print('asleep', flush=True); time.sleep(600)"]
    stubborn = ["sh", "-c", "trap '' INT TERM HUP; echo asleep; exec sleep 600"]
    for command, away in ((sleeper, True), (stubborn, False)):
        child = subprocess.Popen(command, start_new_session=away, stdout=subprocess.PIPE)
        child.stdout.readline()
    print("job", os.environ["COLLECTIVES_JOB"])
    print("ready")
    time.sleep(600)
"""


def ready_job(launcher, script, read_lines, ranks: int = 2) -> tuple[subprocess.Popen[str], str]:
    """A launcher whose ranks are all ready, and the name of its job."""
    process = launcher.start("run", "-n", ranks, script)
    lines = read_lines(process, "ready", ranks)
    (job,) = {line.partition("job ")[2] for line in lines if "job " in line}
    return process, job


def assert_gone(job: str) -> None:
    """Passes as soon as the job has no member; the test's own time limit is generous."""
    deadline = time.monotonic() + 10.0
    while members := job_members(job):
        assert time.monotonic() < deadline, members
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_stop_ends_the_whole_family(launcher, program, read_lines, number, code):
    process, job = ready_job(launcher, program(FAMILY), read_lines)
    assert len(job_members(job)) == 6
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert job_members(job) == []  # already, not only soon
    assert f"{number.name}: ending rank 0, 1" in err


def test_the_signal_reaches_the_ranks_so_that_they_can_finish(launcher, program, read_lines):
    script = program("""
        import os, time
        try:
            print("job", os.environ["COLLECTIVES_JOB"])
            print("ready")
            time.sleep(600)
        except KeyboardInterrupt:
            print("saved")
    """)
    process, _ = ready_job(launcher, script, read_lines)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert sorted(out.splitlines()) == ["[0] saved", "[1] saved"]
    assert "failed first" not in err


STUBBORN = """
    import os, signal, time
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    print("job", os.environ["COLLECTIVES_JOB"])
    print("ready")
    while True:
        time.sleep(600)
"""


def test_a_second_ctrl_c_kills_at_once(launcher, program, read_lines):
    process, job = ready_job(launcher, program(STUBBORN), read_lines)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    while "once more kills" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - began < STOPPING + ASKED  # when one would have killed them
    assert job_members(job) == []


@pytest.mark.full
def test_ranks_that_ignore_ctrl_c_are_killed_in_the_end(launcher, program, read_lines):
    process, job = ready_job(launcher, program(STUBBORN), read_lines)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert job_members(job) == []


@pytest.mark.full
def test_ctrl_c_works_in_a_background_job_whose_shell_ignores_it(launcher, program, read_lines):
    inner = f"{sys.executable} -m launch run -n 1 {program(STUBBORN)}"
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    process = launcher.start(ignoring, *inner.split(), command=(sys.executable, "-c"))
    read_lines(process, "ready")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_a_program_finds_signals_as_a_terminal_would_give_them(launcher, program):
    script = program("""
        import os, signal
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        print(open("/proc/self/status").read().partition("SigIgn:")[2].split()[0])
    """)
    code = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    plain = subprocess.run(
        [sys.executable, script], cwd=launcher.folder, capture_output=True, text=True, check=True
    )
    words = (code, sys.executable, "-m", "launch", "run", "-n", "1", script)
    process = launcher.start(*words, command=(sys.executable, "-c"))
    out, err = process.communicate(timeout=30)
    assert out == f"[0] {plain.stdout}", err


def test_a_hang_up_that_nohup_ignores_stays_ignored(launcher, program, read_lines):
    script = program("""
        import os, sys
        print("job", os.environ["COLLECTIVES_JOB"])
        print("ready")
        sys.stdin.read()
        print("to the end")
    """)
    process = launcher.start(
        sys.executable, "-m", "launch", "run", "-n", 1, script,
        command=("nohup",), stdin=subprocess.PIPE,
    )  # fmt: skip
    read_lines(process, "ready")
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate("", timeout=30)
    assert process.returncode == 0
    assert out == "[0] to the end\n"


def test_a_process_that_is_starting_a_program_is_not_missed(monkeypatch):
    """The kernel shows it without an environment for a moment."""
    child = subprocess.Popen(["sleep", "60"], env={JOB_VARIABLE: "a-job"})
    try:
        seen, environment = [], sweeping._environment

        def at_first_empty(pid):
            if pid != child.pid:
                return environment(pid)
            seen.append(pid)
            return b"" if len(seen) < 3 else environment(pid)

        monkeypatch.setattr(sweeping, "_environment", at_first_empty)
        assert job_members("a-job") == [child.pid]
        assert len(seen) == 3
        monkeypatch.setattr(sweeping, "_environment", lambda pid: b"")
        assert job_members("a-job") == []  # some never have any
    finally:
        child.kill()
        child.wait()


def test_killing_the_launcher_leaves_nothing(launcher, program, read_lines):
    process, job = ready_job(launcher, program(FAMILY), read_lines)
    assert len(job_members(job)) == 6
    process.kill()
    process.wait(timeout=30)
    assert_gone(job)


def test_killing_the_launcher_and_its_guard_still_ends_the_ranks(launcher, program, read_lines):
    script = program(STUBBORN)
    process, job = ready_job(launcher, script, read_lines)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    guards = {int(pid) for pid in children} - set(job_members(job))
    (guard,) = guards
    os.kill(guard, signal.SIGKILL)
    process.kill()
    process.wait(timeout=30)
    assert_gone(job)


def test_a_launcher_killed_while_it_starts_leaves_nothing(launcher, program):
    script = program(STUBBORN)
    for delay in (0.05, 0.1, 0.15, 0.2, 0.25):  # somewhere among these it starts its ranks
        process = launcher.start("run", "-n", 4, script)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=delay)
        process.kill()
        process.wait(timeout=30)
    # The check after every test finds what is left.


def test_what_ranks_leave_behind_ends_with_the_job(launcher, program):
    script = program("""
        import os, subprocess, sys
        subprocess.Popen(["sleep", "600"])
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        print(os.environ["COLLECTIVES_JOB"])
    """)
    done = launcher("run", "-n", 2, "--no-prefix", script)
    assert done.returncode == 0
    assert job_members(done.stdout.split()[0]) == []


def test_helpers_may_finish_their_work(launcher, program, tmp_path):
    # As multiprocessing's resource tracker does: it cleans up once its parent has gone.
    helper = (
        "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print(flush=True); sys.stdin.read(); open('cleaned', 'x')"
    )
    script = program(f"""
        import subprocess, sys
        helper = subprocess.Popen([sys.executable, "-c", {helper!r}],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        helper.stdout.readline()
    """)
    assert launcher("run", "-n", 1, script).returncode == 0
    assert (tmp_path / "cleaned").exists()


def test_a_job_inside_a_rank_is_a_job_of_its_own(launcher, program):
    inner = program("import os; print(os.environ['COLLECTIVES_JOB'], os.environ['WORLD_SIZE'])")
    outer = program(
        f"""
        import os, subprocess, sys
        command = [sys.executable, "-m", "launch", "run", "-n", "2", "--no-prefix", "{inner}"]
        print(subprocess.run(command, capture_output=True, text=True).stdout.split())
        print(os.environ["COLLECTIVES_JOB"], os.environ["WORLD_SIZE"])
    """,
        "outer.py",
    )
    done = launcher("run", "-n", 1, "--no-prefix", outer)
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    name, size = second.split()
    assert size == "1"
    assert name not in first
    assert first.count("'2'") == 2


def test_sweeping_asks_before_it_kills():
    environment = {**os.environ, "COLLECTIVES_JOB": "test-of-sweeping"}
    polite = subprocess.Popen(["sleep", "600"], env=environment)
    stubborn = subprocess.Popen(
        ["sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done"],
        env=environment, stdout=subprocess.PIPE,
    )  # fmt: skip
    stubborn.stdout.readline()
    assert len(job_members("test-of-sweeping")) >= 2
    # Zombies are not members, so nothing but their end is awaited.
    assert sweep_job("test-of-sweeping", patience=PATIENCE) == []
    assert polite.wait(timeout=10) == -signal.SIGTERM
    assert stubborn.wait(timeout=10) == -signal.SIGKILL
    stubborn.stdout.close()


def test_a_number_that_is_used_anew_is_not_swept(monkeypatch):
    """A member had it when the members were looked for; it is somebody else's when it is ended."""
    somebody = subprocess.Popen(["sleep", "60"], env={JOB_VARIABLE: "another"})
    found = [[somebody.pid], [somebody.pid], []]
    monkeypatch.setattr(sweeping, "job_members", lambda job: found.pop(0))
    try:
        for patience in (PATIENCE, 0):
            assert sweep_job("a-job", patience=patience) == []
            assert somebody.poll() is None
            found += [[somebody.pid], []]
    finally:
        somebody.kill()
        somebody.wait()


def test_the_guard_notices_a_launcher_that_left_the_pipe_open():
    # Somebody forked the launcher: the pipe's other end is held on, and only the parent tells.
    assert GUARD_LOOKS_EVERY <= 2.0
    code = """
import subprocess, sys, os
from pathlib import Path
import launch.sweeping
environment = {**os.environ, "COLLECTIVES_JOB": "test-of-guard"}
subprocess.Popen(["sleep", "600"], env=environment)
read, write = os.pipe()
guard = subprocess.Popen(
    [sys.executable, "-I", "-S", launch.sweeping.__file__, "test-of-guard", str(os.getpid())],
    stdin=read,
)
if os.fork() == 0:
    os.read(0, 1)  # holds the write end until our own stdin ends
    os._exit(0)
os.kill(os.getpid(), 9)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(launch.__file__).parents[1])}
    launcher = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, env=environment
    )
    assert launcher.wait(timeout=30) == -signal.SIGKILL
    assert_gone("test-of-guard")
    launcher.stdin.close()
