"""`collectives run --launcher mpi` under a real mpiexec, one machine playing two hosts."""

from __future__ import annotations

import json
import re
import signal
import time

import pytest

from launch.hosts import Host
from launch.jobs import run_job
from launch.mpi_start import MpiStart, find_mpiexec
from launch.sweeping import job_members

# What mpiexec would call to reach another host: stays here, and lets ranks think that it is one.
REMOTE_SHELL = """\
#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
export COLLECTIVES_HOST_ID="$1"
shift
exec sh -c "$*"
"""

SHOW = """
    import json, os, sys
    import collectives
    with collectives.init() as comm:
        total = int(comm.allreduce(__import__("numpy").arange(3))[2])
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GIVEN",
                 "MASTER_ADDR", "MASTER_PORT", "COLLECTIVES_HOST_ID", "OMP_NUM_THREADS")
        found = {name: os.environ.get(name) for name in names}
        print(json.dumps({**found, "hosts": comm.hosts, "total": total, "argv": sys.argv[1:]}))
"""


@pytest.fixture
def two_hosts(tmp_path):
    """The options that make ranks 0 and 1 of host a, and rank 2 of host b."""
    shell = tmp_path / "remote_shell"
    shell.write_text(REMOTE_SHELL)
    shell.chmod(0o755)
    return ("--launcher", "mpi", "--hosts", "a:2,b:1", "--remote-shell", str(shell))


QUIET = {"UCX_LOG_LEVEL": "error"}


def shown(output: str) -> list[dict[str, object]]:
    lines = [re.fullmatch(r"\[(\d+)\] (.*)", line) for line in output.splitlines()]
    return [json.loads(line[2]) for line in sorted(lines, key=lambda line: int(line[1]))]


def test_ranks_of_two_hosts_find_what_scripts_expect(launcher, program, two_hosts):
    given = {**QUIET, "GIVEN": "yes", "OMP_NUM_THREADS": "1"}
    done = launcher("run", *two_hosts, program(SHOW), "one", "$two 'x'", environment=given)
    assert done.returncode == 0, done.stderr
    assert "3 ranks on a:2, b:1, by" in done.stderr and "(MPICH)" in done.stderr
    ranks = shown(done.stdout)
    ports = {rank.pop("MASTER_PORT") for rank in ranks}
    assert len(ports) == 1 and ports.pop().isdigit()
    for number, found in enumerate(ranks):
        assert found == {
            "RANK": str(number), "WORLD_SIZE": "3", "LOCAL_RANK": str(number % 2),
            "LOCAL_WORLD_SIZE": "21"[number // 2], "GROUP_RANK": str(number // 2),
            "GIVEN": "yes", "MASTER_ADDR": "a", "COLLECTIVES_HOST_ID": "ab"[number // 2],
            "OMP_NUM_THREADS": "1", "hosts": [0, 0, 1], "total": 6, "argv": ["one", "$two 'x'"],
        }  # fmt: skip


def test_without_hosts_ranks_are_of_this_machine(launcher, program):
    done = launcher("run", "--launcher", "mpi", "-n", 2, program(SHOW), environment=QUIET)
    assert done.returncode == 0, done.stderr
    ranks = shown(done.stdout)
    assert [rank["hosts"] for rank in ranks] == [[0, 0], [0, 0]]
    assert [rank["LOCAL_RANK"] for rank in ranks] == ["0", "1"]
    assert {rank["MASTER_ADDR"] for rank in ranks} == {"127.0.0.1"}


def test_the_first_failure_is_named_last_with_its_code(launcher, program, two_hosts):
    script = program("""
        import collectives
        with collectives.init() as comm:
            if comm.rank == 1:
                raise RuntimeError("on purpose")
            comm.barrier()
    """)
    done = launcher("run", *two_hosts, script, environment=QUIET)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-1] == "RuntimeError: on purpose"
    assert any(re.match(r"rank 1 \(pid \d+\) failed first, exit code 1:", line) for line in lines)
    assert done.stderr.count("raise RuntimeError") == 1
    assert "mpiexec ended" not in done.stderr and "BAD TERMINATION" not in done.stdout


@pytest.mark.parametrize(
    ("code", "expected", "words"),
    [
        ("import os, sys; sys.exit(7 * (os.environ['RANK'] == '2'))", 7, "rank 2.*exit code 7"),
        ("import os; os.environ['RANK'] == '0' and os.kill(os.getpid(), 11)", 139, "SIGSEGV"),
    ],
)
def test_the_exit_code_is_that_of_the_rank(launcher, program, two_hosts, code, expected, words):
    done = launcher("run", *two_hosts, program(code), environment=QUIET)
    assert done.returncode == expected
    assert re.search(f"{words}", done.stderr)


def test_others_are_ended_when_one_fails(launcher, program, two_hosts):
    script = program("""
        import os, time
        if os.environ["RANK"] == "0":
            raise SystemExit(3)
        time.sleep(600)
    """)
    done = launcher("run", *two_hosts, script, environment=QUIET)
    assert done.returncode == 3, done.stderr


def test_restarts_are_whole_jobs_of_one_run(launcher, program, two_hosts):
    script = program("""
        import os
        print(os.environ["TORCHELASTIC_RUN_ID"], os.environ["TORCHELASTIC_RESTART_COUNT"])
        raise SystemExit(5 * (os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"))
    """)
    done = launcher("run", *two_hosts, "--max-restarts", 2, script, environment=QUIET)
    assert done.returncode == 0, done.stderr
    assert "restart 1 of 2" in done.stderr
    said = {tuple(line.split()[1:]) for line in done.stdout.splitlines()}
    assert len({run for run, _ in said}) == 1
    assert {restart for _, restart in said} == {"0", "1"}


def test_what_ranks_write_comes_whole_and_marked(launcher, program, two_hosts, tmp_path):
    script = program("""
        import os, sys
        rank = os.environ["RANK"]
        text = rank * 3000
        for at in range(200):
            sys.stdout.write(text[:1500]); sys.stdout.write(text[1500:] + chr(10))
            sys.stderr.write(f"{rank} {at}" + chr(10))
        print("read", repr(sys.stdin.read()))
        sys.stdout.write("no end")
    """)
    logs = tmp_path / "logs"
    done = launcher("run", *two_hosts, "--log-dir", logs, script, environment=QUIET, text="typed")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for rank in range(3):
        assert lines.count(f"[{rank}] {str(rank) * 3000}") == 200
        assert f"[{rank}] {rank} 199" in done.stderr.splitlines()
        assert lines.count(f"[{rank}] no end") == 1
        assert "no end" in (logs / f"rank-{rank}.log").read_text()
    assert "[0] read 'typed'" in lines and "[1] read ''" in lines


FAMILY = """
    import os, subprocess, sys, time
    sleeper = [sys.executable, "-c", "import time; print('asleep', flush=True); time.sleep(600)"]
    child = subprocess.Popen(sleeper, start_new_session=True, stdout=subprocess.PIPE)
    child.stdout.readline()
    try:
        print("job", os.environ["COLLECTIVES_JOB"])
        print("ready")
        time.sleep(600)
    finally:
        print("leaving")
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_stop_reaches_every_rank_and_ends_all(
    launcher, program, two_hosts, read_lines, number, code
):
    process = launcher.start("run", *two_hosts, program(FAMILY), environment=QUIET)
    jobs = jobs_in(read_lines(process, "ready", 3))
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert out.count("leaving") == 3  # ranks have had it, and time to end by themselves
    assert f"{number.name}: ending rank 0, 1, 2" in err
    for job in jobs:
        assert job_members(job) == []


def test_a_second_ctrl_c_ends_ranks_that_ignore_the_first(launcher, program, two_hosts, read_lines):
    script = program("""
        import signal, time
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        print("ready")
        time.sleep(600)
    """)
    process = launcher.start("run", *two_hosts, script, environment=QUIET)
    read_lines(process, "ready", 3)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    while "ending rank" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - began < 15


def test_killing_the_launcher_leaves_nothing(launcher, program, two_hosts, read_lines):
    process = launcher.start("run", *two_hosts, program(FAMILY), environment=QUIET)
    jobs = jobs_in(read_lines(process, "ready", 3))
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 15
    for job in jobs:
        while members := job_members(job):
            assert time.monotonic() < deadline, members
            time.sleep(0.02)


def jobs_in(lines: list[str]) -> set[str]:
    """The jobs that ranks have said they are of: one each, and that of the launcher."""
    found = {line.partition("job ")[2] for line in lines if "job " in line}
    assert len(found) == 3
    return found | {job.partition(".")[0] for job in found}


def test_a_rank_that_has_mpi_abort_ends_the_job(launcher, program):
    script = program("""
        import os
        from mpi4py import MPI
        if MPI.COMM_WORLD.rank == 1:
            MPI.COMM_WORLD.Abort(9)
        MPI.COMM_WORLD.Barrier()
    """)
    done = launcher("run", "--launcher", "mpi", "-n", 2, script, environment=QUIET)
    assert done.returncode == 9, done.stderr


def test_a_host_that_cannot_be_reached_is_told_of(launcher, program, tmp_path):
    shell = tmp_path / "rsh"
    shell.write_text("#!/bin/sh\necho 'rsh: no route to host' >&2\nexit 255\n")
    shell.chmod(0o755)
    done = launcher("run", "--launcher", "mpi", "--hosts", "a,b", "-n", 2, "--remote-shell", shell,
                    program("print(1)"), environment=QUIET)  # fmt: skip
    assert done.returncode not in (0, 2)
    assert "Launch proxy failed" in done.stderr  # hydra may end before it shows the shell's words
    last = done.stderr.splitlines()[-1]
    assert (
        f"before ranks 0-1 had begun; try whether hosts are reached without a password: {shell} b"
        in last
    )
    assert f"-launcher-exec {shell} -hosts a:1,b:1 -n 2" in last


def test_a_host_that_does_not_answer_is_not_waited_for_for_ever(tmp_path, capfd):
    shell = tmp_path / "rsh"
    shell.write_text("#!/bin/sh\nexec sleep 600\n")
    shell.chmod(0o755)
    mpiexec, family, version = find_mpiexec(None)
    start = MpiStart(
        mpiexec=mpiexec, family=family, version=version, hosts=[Host("a", 1), Host("b", 1)],
        remote_shell=[str(shell)], beginning=1.0,
    )  # fmt: skip
    assert run_job(["true"], 2, mpi=start) != 0
    assert "ranks 0-1 did not begin within 1 s; try whether " in capfd.readouterr().err


def test_a_program_that_no_host_can_run_is_a_rank_that_failed(launcher, two_hosts, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    done = launcher("run", *two_hosts, "--max-restarts", 1, broken, environment=QUIET)
    assert done.returncode == 126
    assert "cannot execute" in done.stderr and "restart 1" not in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hosts", "a"], "--hosts is for --launcher mpi, found --launcher local"),
        (["--remote-shell", "ssh"], "--remote-shell is for --launcher mpi"),
        (["--launcher", "mpi"], "expected -n N, how many ranks to start"),
        (["--launcher", "mpi", "-n", "0"], "the number of ranks must be at least 1, not 0"),
        (["--launcher", "mpi", "--hosts", "a:2,b:2", "-n", "3"], "-n is 3, but the hosts take"),
        (["--launcher", "mpi", "--hosts", "a", "--hostfile", "f"], "--hosts or --hostfile, found"),
        (["--launcher", "mpi", "--hostfile", "/no/file"], "--hostfile /no/file: cannot be read"),
        (["--launcher", "mpi", "-n", "2", "--mpiexec", "/no"], "--mpiexec /no: neither an execut"),
        (["--launcher", "mpi", "-n", "2", "--remote-shell", "/no x"], "as ssh, found '/no x', whi"),
        (["--launcher", "mpi", "-n", "2", "--remote-shell", ""], "a program as ssh, found ''"),
        (["--launcher", "mpi", "-n", "2", "--mpi-args", "'x"], "--mpi-args: expected words as a s"),
        (["--launcher", "ray", "-n", "2"], "invalid choice: 'ray'"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(launcher, program, options, words):
    done = launcher("run", *options, program("print(1)"))
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stdout == ""
