"""The tests' own rules hold: a leak fails, an unexplained skip fails, a hang ends."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path):
    def run_tests(program: str, *options: str) -> subprocess.CompletedProcess[str]:
        shutil.copy(TESTS / "conftest.py", tmp_path)
        (tmp_path / "pytest.ini").write_text(f"[pytest]\nmarkers = full\npythonpath = {TESTS}\n")
        (tmp_path / "test_it.py").write_text(program)
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run_tests


LEAKS = """
import os, subprocess, sys
from pathlib import Path
import conftest
conftest.GRACE = 0.2
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
kept = []

def test_child():
    kept.append(subprocess.Popen(SLEEP))

def test_orphan():
    code = f"import subprocess; subprocess.Popen({SLEEP!r}, start_new_session=True)"
    subprocess.run([sys.executable, "-c", code], check=True)

def test_forked_orphan():
    if not (child := os.fork()):
        if not os.fork():
            import time
            time.sleep(60)
        os._exit(0)
    os.waitpid(child, 0)

def test_shared_file():
    Path(f"/dev/shm/left-{os.getpid()}").touch()

def test_cleans_up_for_the_one_before():
    Path(f"/dev/shm/left-{os.getpid()}").unlink()

def test_memfd():
    os.memfd_create("collectives-slots")

def test_tidy():
    child = subprocess.Popen(SLEEP)
    child.kill()
    child.wait()
    os.close(os.memfd_create("collectives-slots"))

def test_ends_by_itself():
    kept.append(subprocess.Popen(["true"]))
"""


def test_what_is_left_behind_fails_the_test_that_left_it(run):
    output = run(LEAKS).stdout
    for name in ("child", "orphan", "forked_orphan", "shared_file", "memfd"):
        assert f"ERROR test_it.py::test_{name} - " in output, output
    assert "time.sleep(60)" in output and "/dev/shm/left-" in output
    assert "3 mappings" not in output and "1 mappings or descriptors" in output
    assert "8 passed, 5 errors" in output, output


def test_an_agreed_skip_is_green(run):
    done = run("import pytest\ndef test_a(): pytest.skip('no GPU: needs two')\ndef test_b(): pass")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "program",
    [
        "def test_a(): pytest.skip('too slow today')",
        "pytest.importorskip('nothing_of_this_name')",
        "@pytest.mark.skip\ndef test_a(): pass",
    ],
)
def test_any_other_skip_is_red(run, program):
    done = run(f"import pytest\ndef test_b(): pass\n{program}\n")
    assert done.returncode != 0
    assert "skips that are failures" in done.stdout


def test_the_long_sweep_runs_when_asked_for(run):
    program = "import pytest\n@pytest.mark.full\ndef test_a(): pass\ndef test_b(): pass"
    assert "1 passed, 1 deselected" in run(program).stdout
    assert "2 passed" in run(program, "--full").stdout


def test_a_hang_is_an_error_with_its_stack(run):
    done = run("import threading\ndef test_a(): threading.Event().wait()", "--timeout=1")
    assert done.returncode == 1
    assert "Timeout" in done.stdout and "Event().wait()" in done.stdout
