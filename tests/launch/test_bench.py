"""`collectives bench` as a user runs it: real ranks, real contenders, real trouble."""

from __future__ import annotations

import json
import signal
import sys

import psutil
import pytest

from launch.bench.results import read_results

QUICK = ("--min", "8", "--max", "4K", "--factor", "16", "--rounds", "2", "--round-ms", "2")
SIZES = ["8", "128", "2048", "4096"]


def rows_of(text, collective="float32"):
    """The rows of the table, as words."""
    return [line.split() for line in text.splitlines() if f" {collective} " in line]


def test_gloo_and_mpi_take_turns_with_ours(launcher):
    done = launcher("bench", "allreduce", "-n", "2", *QUICK, "--algorithm", "auto,ring",
                    "--against", "tree,gloo,mpi", "--json", "run.jsonl")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done.stdout)
    assert [row[0] for row in rows] == [size for size in SIZES for _ in range(2)]
    assert [row[4] for row in rows[:2]] == ["auto:", "ring"]
    for row in rows:
        assert [cell[-1] for cell in row[-3:]] == ["x"] * 3  # the ratios to the three
    for line in ("gloo of torch", "mpi4py", "limit of this machine", "above 1 ours is the quicker"):
        assert line in done.stdout
    header, results = read_results(launcher.folder / "run.jsonl")
    assert header["ranks"] == 2 and header["rounds"] == 2 and header["absent"] == []
    about = header["contenders"]
    assert list(about) == ["ours", "gloo", "MPICH", "limit"]
    assert all(each["cores"] == about["ours"]["cores"] for each in about.values())
    assert about["gloo"]["environment"] == {"GLOO_SOCKET_IFNAME": "lo"}
    assert len(results) == len(SIZES) * (2 + 3 + 3)
    assert all(result.wrong == 0 for result in results)
    for result in results:
        assert len(result.rounds) == 2 and min(result.rounds) > 0, result
    limits = [result for result in results if result.role == "limit"]
    assert {result.variant for result in limits} == {"copy", "stream", "kernel"}
    line = json.loads((launcher.folder / "run.jsonl").read_text().splitlines()[1])
    assert line["best"] == min(line["rounds"]) and line["busbw"] == pytest.approx(line["algbw"])

    report = launcher("bench", "--report", "run.jsonl", "--plot", "run.png")
    assert report.returncode == 0, report.stderr
    assert "**allreduce**, out of place, hot" in report.stdout
    assert "| size | ours | busbw GB/s | of limit | predicted | ours ring |" in report.stdout
    assert report.stdout.count("\n| ") == 2 + len(SIZES)
    assert (launcher.folder / "run.png").read_bytes().startswith(b"\x89PNG")


def test_every_collective_is_right_and_has_a_row(launcher, full):
    caches = ["hot", "cold"] if full else ["cold"]
    done = launcher("bench", "all", "-n", "2", "--min", "600", "--max", "600", "--rounds", "1",
                    "--round-ms", "1", *(("--against", "mpi") if full else ()),
                    "--places", "out,in", "--no-limit", "--caches", ",".join(caches),
                    "--json", "run.jsonl")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    _, results = read_results(launcher.folder / "run.jsonl")
    mine = [result for result in results if result.role == "ours"]
    # Nine, and three more in place; a barrier has no arrays to be both hot and cold.
    assert len(mine) == len(caches) * (9 + 3) - (len(caches) - 1)
    assert all(result.rounds and not result.wrong for result in mine), done.stdout
    theirs = [result for result in results if result.role == "against"]
    assert all(result.rounds and not result.wrong for result in theirs), done.stdout


def test_a_planted_error_is_counted_and_fails_the_run(launcher):
    done = launcher("bench", "allreduce", "-n", "2", *QUICK, "--no-limit", "--plant", "2")
    assert done.returncode == 1, done.stdout + done.stderr
    assert [row[row.index("–") - 1] for row in rows_of(done.stdout)] == ["4"] * len(SIZES)


def test_contenders_that_cannot_take_part_are_named_and_the_rest_goes_on(launcher):
    (launcher.folder / "old").mkdir()
    bare = launcher.folder / "old" / "python"
    bare.write_text('#!/bin/sh\necho \'{"python": [3, 8, 1], "missing": []}\'\n')
    bare.chmod(0o755)
    specs = ["deepspeed", f"gloo={bare}", "ring"]
    done = launcher("bench", "allreduce", "-n", "2", *QUICK, "--no-limit",
                    "--against", ",".join(specs))  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for text in (
        "pip install deepspeed ninja, in an environment of its own",
        f"gloo={bare}: expected Python 3.11 or newer, found 3.8.1",
    ):
        head, _, foot = done.stdout.partition("out of place, hot")
        assert text in head.partition("does not take part: ")[2]
        assert text in foot.partition("did not take part: ")[2]
    assert len(rows_of(done.stdout)) == len(SIZES)


@pytest.mark.full
def test_a_contender_that_dies_is_reported_and_the_others_go_on(launcher, read_lines):
    process = launcher.start("bench", "allreduce", "-n", "2", "--max", "1M", "--factor", "2",
                             "--rounds", "3", "--no-limit", "--against", "mpi")  # fmt: skip
    read_lines(process, " float32 ")
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            words = child.cmdline()
        except psutil.NoSuchProcess:  # a helper of the library's that has done its work
            continue
        # One that has ended, or is only just being started, has no words.
        if words and '"library": "mpi"' in words[-1] and "mpiexec" not in words[0]:
            child.kill()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, out + err
    assert "lost MPICH: " in out
    last = rows_of(out)[-1]
    assert last[0] == str(1 << 20) and last[-1] == "–"


@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_a_run_that_is_stopped_leaves_nothing(launcher, read_lines, number, code):
    process = launcher.start("bench", "allreduce", "-n", "2", "--against", "mpi", "--no-limit",
                             "--max", "8", "--rounds", "100000")  # fmt: skip
    read_lines(process, "out of place, hot")
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == code
    assert not [each for each in started if each.is_running() and each.status() != "zombie"]


def test_point_to_point(launcher):
    done = launcher("bench", "p2p", "-n", "3", *QUICK, "--against", "mpi")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.index("pingpong, hot") < done.stdout.index("stream, hot")
    assert [row[0] for row in rows_of(done.stdout)] == SIZES * 2


@pytest.mark.full
def test_overlap(launcher):
    done = launcher("bench", "overlap", "-n", "2", *QUICK, "--against", "mpi", "--json", "o.jsonl")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done.stdout)
    assert [row[4] for row in rows[:2]] == ["ours", "MPICH"]
    assert all(0 <= int(row[-2]) <= 100 for row in rows)
    report = launcher("bench", "--report", "o.jsonl")
    assert "| size |  | alone | compute | both | hidden |" in report.stdout


def test_symmetric_memory_is_measured_or_its_absence_said(launcher):
    """... and another environment's build beside each of ours: here the very same one."""
    done = launcher("bench", "allreduce", "-n", "2", *QUICK, "--no-limit", "--algorithm",
                    "auto,symmetric", "--against", f"ours={sys.executable}",
                    "--json", "run.jsonl")  # fmt: skip
    said = "no symmetric memory (comm.empty)" in done.stdout
    assert done.returncode == (1 if said else 0), done.stdout + done.stderr
    header, results = read_results(launcher.folder / "run.jsonl")
    other, ours = (header["contenders"][name] for name in ("other build", "ours"))
    assert {**other, "python": ours["python"]} == ours
    titles = {result.title for result in results}
    assert titles == {"ours", "ours symmetric", "other build", "other build symmetric"}
    assert all(result.wrong == 0 and len(result.rounds) == 2 for result in results)
