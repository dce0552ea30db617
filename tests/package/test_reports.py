"""The tools that run tests over and over and condense what they found."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"

JUNIT = """<testsuites><testsuite time="75.4" timestamp="2026-01-02T03:04:05.6">
<testcase classname="tests.launch.test_a" name="test_quick[1-x]" time="0.1" />
<testcase classname="tests.launch.test_a" name="test_slow" time="70.0" />
<testcase classname="tests.launch.test_a" name="test_wrong" time="1">
  <failure message="assert 1 == 2&#10;more">where</failure></testcase>
<testcase classname="tests.trainers.test_b" name="test_untidy" time="2" />
<testcase classname="tests.trainers.test_b" name="test_untidy" time="2">
  <error message="left behind">what</error></testcase>
<testcase classname="tests.trainers.test_b" name="test_absent" time="0">
  <skipped message="no GPU">where</skipped></testcase>
</testsuite></testsuites>"""


def run_tool(name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / name), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_a_report_is_condensed(tmp_path):
    (tmp_path / "junit.xml").write_text(JUNIT)
    done = run_tool("test_report.py", tmp_path / "junit.xml")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "2 passed, 1 failed, 1 error, 1 skipped in 1:15 minutes." in lines
    assert "- begun: 2026-01-02 03:04" in lines
    assert "| tests/launch | 3 | 71 |" in lines
    slowest = lines.index("| seconds | test |")
    assert lines[slowest + 2] == "| 70.0 | `tests/launch/test_a.py::test_slow` |"
    assert "- `tests/launch/test_a.py::test_wrong`: assert 1 == 2" in lines
    assert "- `tests/trainers/test_b.py::test_untidy`: left behind" in lines
    assert "- `tests/trainers/test_b.py::test_absent`: no GPU" in lines


def test_reports_of_parts_are_one(tmp_path):
    suite = (
        '<testsuite time="{0}" timestamp="2026-01-02T03:0{0}">'
        '<testcase name="{1}" {2}/></testsuite>'
    )
    place = 'classname="tests.launch.test_a" time="1"'
    for number, name in ((5, "test_late"), (4, "test_early")):
        (tmp_path / f"{number}.xml").write_text(suite.format(number, name, place))
    done = run_tool("test_report.py", tmp_path / "5.xml", tmp_path / "4.xml", "--command", "parts")
    assert done.stdout.startswith("# `parts`\n\n2 passed, 0 failed, 0 error, 0 skipped in 0:09")
    assert "- begun: 2026-01-02 03:04\n" in done.stdout


def test_a_report_needs_no_git(tmp_path, monkeypatch):
    (tmp_path / "junit.xml").write_text(JUNIT)
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run_tool("test_report.py", tmp_path / "junit.xml")
    assert "- source: unknown\n" in done.stdout, done.stderr


def test_no_report_is_said(tmp_path):
    done = run_tool("test_report.py", tmp_path / "none.xml")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no file" in done.stderr


@pytest.fixture
def tests(tmp_path):
    """A test that passes, and one that fails when it is repeated."""
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_good.py").write_text("def test_it(): pass\n")
    (folder / "test_rare.py").write_text(
        "from pathlib import Path\n"
        "def test_it(): Path(__file__).with_suffix('.once').touch(exist_ok=False)\n"
    )
    return folder


@pytest.mark.full
def test_repeats_are_counted_and_failures_kept(tests, tmp_path):
    record = tmp_path / "record.jsonl"
    done = run_tool(
        *("repeat_tests.py", tests, "--times", "2", "--together", "2"),
        *("--record", record, "--lock", tmp_path / "lock"),
    )
    assert done.returncode == 1, done.stderr
    assert f"| {tests}/test_good.py | 2 | 1 | 0 |" in done.stdout
    assert f"| {tests}/test_rare.py | 2 | 1 | 1 |" in done.stdout
    assert "4 runs, 1 failed" in done.stdout
    runs = [json.loads(line) for line in record.read_text().splitlines()]
    assert [run["busy"] for run in runs] == [False, False, True, True]
    (kept,) = (tmp_path / "record.failures").iterdir()
    assert kept.name.endswith("test_rare.py-1-busy.txt")
    assert "FileExistsError" in kept.read_text()
    again = run_tool("repeat_tests.py", "--table", "--record", record)
    assert again.returncode == 0
    assert again.stdout.strip() in done.stdout


def test_repeating_nothing_is_refused(tmp_path):
    done = run_tool("repeat_tests.py", tmp_path / "none")
    assert done.returncode == 1
    assert "repeat_tests: no tests in" in done.stderr


def test_what_is_repeated_by_default_exists():
    spec = importlib.util.spec_from_file_location("repeat_tests", TOOLS / "repeat_tests.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for test in tool.MANY_PROCESSES:
        file, _, name = test.partition("::")
        text = (ROOT / file).read_text()
        assert not name or f"def {name.partition('[')[0]}(" in text, test
