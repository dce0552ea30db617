"""The GPU check itself, on emulated devices: a report comes of it, whatever its stages do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def check(folder, *options, **environment):
    import os

    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "gpu_check.py"), "--emulated", "--out", str(folder),
         *options],
        capture_output=True, text=True, timeout=100, env=os.environ | environment,
    )  # fmt: skip


def test_a_dry_run(tmp_path):
    done = check(tmp_path, "--only", "environment", "--only", "probe", "--only", "sweep")
    assert done.returncode == 0, done.stdout + done.stderr
    report = (tmp_path / "report.md").read_text()
    for text in ("A dry run on emulated devices", "| probe | passed |", "handoff", "bound us"):
        assert text in report
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["stages"]["probe"]["copy_bytes_per_second"] > 0
    assert (tmp_path / "sweep-to-256K.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) <= 8


@pytest.mark.full
def test_a_dry_run_between_hosts(tmp_path):
    done = check(tmp_path, "--only", "hosts")
    assert done.returncode == 0, done.stdout + done.stderr
    stage = json.loads((tmp_path / "results.json").read_text())["stages"]["hosts"]
    assert ", 0 failed, over" in stage["found"] and stage["table"][0]["allreduce ms"] > 0


@pytest.mark.full  # the quick tests train on devices elsewhere
def test_a_dry_run_of_training(tmp_path):
    done = check(tmp_path, "--only", "training")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["stages"]["training"]["table"]
    assert [row["model"] for row in rows] == ["espcn", "llm_small"]
    assert all(row["last loss"] < row["first loss"] for row in rows)


def test_a_stage_that_fails_is_named_and_the_rest_goes_on(tmp_path):
    machine = {"COLLECTIVES_EMULATED_DEVICES": "devices=1,unshared=1"}
    done = check(tmp_path, "--only", "environment", "--only", "probe", **machine)
    assert done.returncode == 1
    report = (tmp_path / "report.md").read_text()
    assert "| environment | passed |" in report and "| probe | failed |" in report
    assert "does not let memory be shared between processes" in report


def test_without_a_first_call_no_other_stage_takes_its_time(tmp_path):
    machine = {"COLLECTIVES_EMULATED_DEVICES": "devices=1,unshared=1"}
    done = check(tmp_path, "--only", "first call", "--only", "stress", **machine)
    assert done.returncode == 1
    report = (tmp_path / "report.md").read_text()
    assert "| first call | failed |" in report and "| stress | not run | 0 |" in report


def test_a_program_that_takes_too_long_has_said_what_it_has(tmp_path):
    program = (
        "import subprocess, sys; print('so far', flush=True);"
        "subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    )
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tools")!r})
from gpu_check_parts import shown
print(shown([sys.executable, "-c", {program!r}], 1.0), shown([sys.executable, "-c", "3"], 9.0))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert "so far\nnot done after 1 s" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "(True, ['so far']) (False, [])"


def test_all_stages_together_end_within_eight_minutes():
    import runpy

    assert sum(runpy.run_path(str(ROOT / "tools" / "gpu_check.py"))["STAGES"].values()) <= 480
