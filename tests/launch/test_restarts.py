"""`--max-restarts K` starts all ranks anew after a failure, and after nothing else."""

from __future__ import annotations

import json
import re
import signal
import sys
import time

import pytest

from launch.jobs import RESTART_PAUSE
from launch.watching import StopRequest

# Says what this start of it sees, and fails as often as the first word says.
FAILS_AT_FIRST = """
    import json, os, sys
    names = {"restart": "TORCHELASTIC_RESTART_COUNT", "most": "TORCHELASTIC_MAX_RESTARTS",
             "run": "TORCHELASTIC_RUN_ID", "job": "COLLECTIVES_JOB",
             "secret": "COLLECTIVES_SECRET", "rank": "RANK"}
    seen = {word: os.environ[name] for word, name in names.items()}
    print(json.dumps(seen | {"stdin": sys.stdin.read()}))
    if int(seen["restart"]) < int(sys.argv[1]) and seen["rank"] == "1":
        sys.stdout.write("not a whole line")
        raise ValueError(f"at start {seen['restart']}")
"""


def test_all_ranks_are_started_anew_until_none_fails(launcher, program, tmp_path):
    words = ("run", "-n", 2, "--max-restarts", 3, "--log-dir", "logs", program(FAILS_AT_FIRST), 2)
    done = launcher(*words, text="data")
    assert done.returncode == 0, done.stderr
    starts = [json.loads(line[4:]) for line in done.stdout.splitlines() if line[4] == "{"]
    assert sorted((each["restart"], each["rank"]) for each in starts) == [
        (restart, rank) for restart in "012" for rank in "01"
    ]
    assert {each["most"] for each in starts} == {"3"}
    read = {(each["restart"], each["rank"]): each["stdin"] for each in starts}
    assert {who: text for who, text in read.items() if text} == {("0", "0"): "data"}
    for name, kinds in (("run", 1), ("job", 3), ("secret", 3)):
        assert len({each[name] for each in starts}) == kinds, name

    said = done.stderr.splitlines()
    told = [line for line in said if line.startswith(("rank 1", "ValueError", "collectives: r"))]
    assert [re.sub(r"\d+\)", "N)", line) for line in told] == [
        "rank 1 (pid N) failed first, exit code 1:",
        "ValueError: at start 0",
        "collectives: restart 1 of 3",
        "rank 1 (pid N) failed first, exit code 1:",
        "ValueError: at start 1",
        "collectives: restart 2 of 3",
    ]
    for rank in "01":
        log = (tmp_path / "logs" / f"rank-{rank}.log").read_text().splitlines()
        marks = [line for line in log if line.startswith("collectives:")]
        assert marks == ["collectives: restart 1 of 3", "collectives: restart 2 of 3"]
        assert sum(line.startswith("{") for line in log) == 3
    launcher(*words[:-1], 0)  # another run begins its logs anew
    assert "restart 1" not in (tmp_path / "logs" / "rank-0.log").read_text()


def test_it_gives_up_after_so_many_with_the_last_exit_code(launcher, program):
    script = program("""
        import os, sys
        print("start", os.environ["TORCHELASTIC_RESTART_COUNT"])
        sys.exit(10 + int(os.environ["TORCHELASTIC_RESTART_COUNT"]))
    """)
    done = launcher("run", "-n", 1, "--max-restarts", 2, script)
    assert done.returncode == 12
    assert done.stdout == "[0] start 0\n[0] start 1\n[0] start 2\n"
    assert done.stderr.splitlines()[-1].endswith("failed first, exit code 12")


def test_what_did_not_fail_or_cannot_start_is_not_restarted(launcher, program, tmp_path):
    done = launcher("run", "-n", 1, "--max-restarts", 5, program("print('ran')"))
    assert (done.returncode, done.stdout) == (0, "[0] ran\n")
    assert "restart" not in done.stderr
    (tmp_path / program("no program\n", "broken")).chmod(0o755)
    done = launcher("run", "-n", 1, "--max-restarts", 5, "./broken")
    assert done.returncode == 126
    assert "collectives: restart" not in done.stderr
    done = launcher("run", "-n", 1, "--max-restarts", -1, program("print('ran')"))
    assert done.returncode == 2
    assert "the number of restarts must be at least 0, not -1" in done.stderr


# Fails so often; then waits to be stopped.
WAITS = """
    import os, sys, time
    restart = os.environ["TORCHELASTIC_RESTART_COUNT"]
    if int(restart) < int(sys.argv[1]):
        sys.exit(5)
    print("ready", restart)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("number", "code", "restarts"),
    [(signal.SIGINT, 130, 0), (signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 0)],
)
def test_what_the_user_stops_is_not_restarted(
    launcher, program, read_lines, number, code, restarts
):
    process = launcher.start("run", "-n", 1, "--max-restarts", 3, program(WAITS), restarts)
    read_lines(process, f"ready {restarts}")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == ""
    assert err.count("collectives: restart") == restarts


def test_ctrl_c_between_two_starts_ends_it_all(launcher, program):
    code = "import sys, launch.jobs as jobs, launch.command_line as line; "
    code += "jobs.RESTART_PAUSE = 600; sys.exit(line.main())"
    words = ("run", "-n", "1", "--max-restarts", "3", program(WAITS), "9")
    process = launcher.start(code, *words, command=(sys.executable, "-c"))
    while "failed first" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "SIGINT: not restarted\n"


def test_the_pause_is_short_and_not_cut_by_other_signals():
    assert 0 < RESTART_PAUSE <= 1
    stop = StopRequest()
    with stop.listening(kill=lambda: None):
        before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
        try:
            signal.raise_signal(signal.SIGUSR1)  # rings before the wait
            began = time.monotonic()
            assert not stop.comes_within(0.05)
            assert time.monotonic() - began >= 0.05
        finally:
            signal.signal(signal.SIGUSR1, before)
        signal.raise_signal(signal.SIGINT)
        assert stop.comes_within(600)
