"""`collectives doctor`: every branch of its checks, and that none can crash or hold it up.

What is asked of other processes is made up here, but for one whole look at this very machine.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from launch.command_line import main
from launch.doctor import asking, capacity, examination, gpus, installation, ray_cluster, system
from launch.doctor.asking import NoAnswer
from launch.doctor.findings import size_text
from transports import allowances


def brief(finding: dict) -> tuple[str, str]:
    return finding["verdict"], finding["found"]


def error(text: str) -> dict[str, str]:
    return {"error": text}


def test_this_machine_is_looked_at_and_nothing_heavy_imported(launcher):
    code = """
import sys
from launch.command_line import main
code = main(["doctor", "-n", "2"])
heavy = {"torch", "numpy", "cupy", "mpi4py", "ray", "transports._native"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else code)
"""
    process = launcher.start(code, command=(sys.executable, "-c"))
    out, err = process.communicate(timeout=60)
    assert err == ""
    *lines, last = out.splitlines()
    words = {line.split("  ")[0].strip() for line in lines if not line.startswith(" ")}
    assert words <= {"ok", "warning", "problem"}
    assert process.returncode == int("problem" in words), out
    assert "ok       self-test        two ranks: allreduce and broadcast right" in out
    assert "ok       shared memory    memfd, sealed" in out
    assert " kernels; Python" in out and "channels of 2 ranks take" in out
    assert "lo (loopback): 127.0.0.1" in out
    assert last.endswith(("no problem", "1 problem", " problems"))
    for number, line in enumerate(lines):
        if line.startswith(("warning", "problem")):
            assert any(each.lstrip().startswith("→ ") for each in lines[number + 1 :]), line


def test_all_may_be_well(doctor):
    found = doctor()
    assert brief(found["MPI"]) == (
        "ok",
        "not installed (needed only for --against mpi and the mpi transport)",
    )
    assert found["package"]["found"].startswith("collectives ")
    assert brief(found["self-test"])[1].endswith("an allreduce of 8 bytes takes 0.5 µs")
    assert brief(found["tuning"]) == ("ok", "tuned: /tuned")


def test_wrong_numbers_of_ranks_are_refused(capsys):
    assert main(["doctor", "-n", "0"]) == 2
    assert "the number of ranks must be at least 1, not 0" in capsys.readouterr().err


# --- the package, cores, memory


def test_a_native_module_that_does_not_load_is_a_problem(doctor):
    found = doctor(runtime={"kernels": error("ImportError: no _native")})["package"]
    assert found["verdict"] == "problem"
    assert "the native module does not load: ImportError: no _native" in found["found"]
    found = doctor(runtime=NoAnswer("killed by SIGILL (nothing was said)"))
    for subject in ("package", "memory", "shared memory", "kernel calls", "tuning"):
        assert found[subject]["verdict"] == "problem"
        assert "SIGILL" in found[subject]["found"]


def test_another_machine_is_a_problem(doctor, monkeypatch):
    monkeypatch.setattr(installation, "MACHINES", ("vax",))
    assert doctor()["package"]["verdict"] == "problem"


def test_tuning_may_be_off_or_missing_or_broken(doctor):
    for folder, text in ((None, "off (COLLECTIVES_TUNING)"), ("/x", "not tuned, ")):
        found = doctor(runtime={"tuning": {"value": {"folder": folder, "there": False}}})["tuning"]
        assert found["verdict"] == "ok" and found["found"].startswith(text)
    found = doctor(runtime={"tuning": error("ValueError: no such table")})["tuning"]
    assert brief(found) == ("problem", "ValueError: no such table")


@pytest.mark.parametrize(
    ("quota", "verdict", "text"),
    [(None, "ok", "no quota"), (0.5, "warning", "a quota of 0.5"), (4096, "ok", "of 4096")],
)
def test_a_quota_below_the_cores_is_a_warning(doctor, monkeypatch, quota, verdict, text):
    monkeypatch.setattr(capacity, "core_time", lambda: quota)
    found = doctor()["cores"]
    assert found["verdict"] == verdict and found["found"].endswith(text)
    assert quota != 0.5 or "at most 1 ranks" in found["advice"]


def test_channels_that_do_not_fit_are_a_warning(doctor, monkeypatch):
    limit = (1 << 20, Path("here"))
    monkeypatch.setattr(allowances, "memory_left", lambda *_: limit)
    monkeypatch.setattr(capacity, "memory_left", lambda: limit)
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=2 << 30, free=1 << 30))
    found = doctor("-n", "7")["memory"]
    assert found["verdict"] == "warning"
    assert found["found"] == (
        "1 MiB available (a limit leaves 1 MiB), swap 1 GiB free; channels of 7 ranks take 3 MiB"
    )
    found = doctor(runtime={"channels": error("ValueError: COLLECTIVES_SLOTS")})["memory"]
    assert found["verdict"] == "problem" and "COLLECTIVES_SLOTS" in found["found"]


def test_sizes_are_said_as_people_say_them():
    assert [size_text(size) for size in (12, 2048, 3 << 20, 3 << 29, 1 << 40)] == [
        "12 bytes", "2 KiB", "3 MiB", "1.5 GiB", "1 TiB",
    ]  # fmt: skip


# --- what the kernel gives


@pytest.mark.parametrize(
    ("memory", "verdict", "text"),
    [
        ({"value": {"memfd": True, "sealed": False}}, "warning", "memfd, but it cannot be sealed"),
        ({"value": {"memfd": False, "sealed": False}}, "warning", "no memfd; files in /dev/shm, "),
        (error("MemoryError: none"), "problem", "none can be had: MemoryError: none"),
    ],
)
def test_shared_memory_may_be_worse_or_missing(doctor, memory, verdict, text):
    found = doctor(runtime={"memory": memory})["shared memory"]
    assert found["verdict"] == verdict and found["found"].startswith(text)


def test_what_is_slower_or_unnoticed_without_a_call_is_said(doctor):
    missing = {"membarrier": False, "futex": True, "pidfd_open": False}
    found = doctor(runtime={"kernel_calls": {"value": missing}})["kernel calls"]
    assert brief(found) == (
        "warning",
        "no membarrier, pidfd_open: some 20 ns more a message; " + system._WITHOUT["pidfd_open"],
    )


def test_too_few_open_files_are_a_warning(doctor, monkeypatch):
    limits = {resource.RLIMIT_NOFILE: (256, 1024), resource.RLIMIT_MEMLOCK: (-1, -1)}
    monkeypatch.setattr(system.resource, "getrlimit", limits.__getitem__)
    found = doctor("-n", "100")
    assert brief(found["open files"]) == (
        "warning", "256, and a launcher of 100 ranks has about 464 open",
    )  # fmt: skip
    assert found["open files"]["advice"] == "Run `ulimit -n 464` first."
    assert found["memlock"]["found"].startswith("no limit")
    found = doctor("-n", "1000")["open files"]
    assert found["advice"] == "Run `ulimit -n 4064`, which root must allow."
    assert doctor("-n", "4")["open files"]["verdict"] == "ok"


def test_a_proc_of_another_namespace_is_a_problem(doctor, monkeypatch, tmp_path):
    (tmp_path / "self").symlink_to("1234567")
    for path, text in ((tmp_path / "self", "shows 1234567"), (tmp_path / "absent", "nothing")):
        monkeypatch.setattr(system, "PROC_SELF", path)
        found = doctor()["process numbers"]
        assert found["verdict"] == "problem" and text in found["found"]


# --- checks that fail


def test_a_check_that_hangs_or_fails_is_a_line_of_the_report(doctor, monkeypatch):
    def fail():
        raise ZeroDivisionError("by nothing")

    def late():
        raise TimeoutError("its own")

    monkeypatch.setattr(capacity, "check_cores", fail)
    monkeypatch.setattr(gpus, "check_gpus", lambda: time.sleep(0.5))
    monkeypatch.setattr(gpus, "SECONDS", -examination.SPARE_SECONDS + 0.1)
    monkeypatch.setattr(ray_cluster, "check_ray", late)
    found = doctor()
    assert found["cores"]["found"] == "the check itself failed: ZeroDivisionError: by nothing"
    assert found["GPUs"]["found"] == "looking at it: no answer within 0.1 s"
    assert found["Ray"]["found"] == "the check itself failed: TimeoutError: its own"
    assert {found[name]["verdict"] for name in ("cores", "GPUs", "Ray")} == {"problem"}


def test_a_self_test_that_fails_is_a_problem(doctor, monkeypatch):
    text = "exit code 1 (ValueError: rank 1 has a wrong result of broadcast)"
    found = doctor(self_test=NoAnswer(text))["self-test"]
    assert brief(found) == ("problem", f"two ranks: {text}")
    monkeypatch.setenv("COLLECTIVES_SLOTS", "3")
    with pytest.raises(NoAnswer, match="COLLECTIVES_SLOTS must be a power of two, found 3"):
        asking.ask("launch.doctor.self_test_probe", "20", seconds=30)


@pytest.mark.parametrize("wrong", ["allreduce", "broadcast"])
def test_the_self_test_looks_at_results(wrong):
    from launch.doctor.self_test_probe import call_seconds

    class Comm:
        rank, size = 1, 2

        def allreduce(self, x):
            return x * 0 if wrong == "allreduce" else x * 1.5

        def broadcast(self, x, root):
            return x * 2

    with pytest.raises(ValueError, match=f"rank 1 has a wrong result of {wrong}"):
        call_seconds(Comm())


def test_a_program_that_cannot_be_ended_is_left(monkeypatch):
    """As one is that a driver holds in the kernel."""
    monkeypatch.setattr(asking, "_REAP_SECONDS", 0.05)
    killed = []
    monkeypatch.setattr(asking.os, "killpg", lambda group, number: killed.append(group))
    with pytest.raises(NoAnswer, match=r"no answer within 0.1 s"):
        asking.output_of([sys.executable, "-c", "import time; time.sleep(600)"], 0.1)
    monkeypatch.undo()
    os.kill(*[*killed, 9])


def test_what_is_no_answer_is_said():
    for out in ("", "[1]", "hello\n"):
        with pytest.raises(NoAnswer, match="expected an answer in JSON, found"):
            asking.last_object(out)
    assert asking.last_object('a library speaks\n{"a": 1}\n') == {"a": 1}
