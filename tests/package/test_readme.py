"""What the README shows is what the examples are, and they do what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("name", ["first_steps", "my_allreduce", "symmetric"])
def test_the_readme_shows_an_example_as_it_is(name):
    example = (ROOT / f"examples/{name}.py").read_text(encoding="utf-8")
    assert example in BLOCKS


@pytest.mark.parametrize("name", ["first_steps", "my_allreduce", "symmetric"])
def test_an_example_prints_what_the_readme_shows(name):
    command = [sys.executable, "-m", "launch", "run", "-n", "3", f"examples/{name}.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    shown = README.split(f"examples/{name}.py` prints")[1].split("```")[1].strip().splitlines()
    assert sorted(done.stdout.strip().splitlines()) == sorted(shown)


def test_the_notebook_block_runs(tmp_path):
    (block,) = [block for block in BLOCKS if "launch.spawn" in block]
    script = tmp_path / "notebook.py"
    script.write_text(block, encoding="utf-8")
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([[0.0, 4.0, 8.0]] * 4)


@pytest.mark.full
def test_the_loop_of_the_training_page_is_the_example():
    example = (ROOT / "examples/data_parallel.py").read_text(encoding="utf-8")
    assert f"```python\n{example}```" in (ROOT / "docs/training.md").read_text(encoding="utf-8")
    command = [sys.executable, "-m", "launch", "run", "-n", "2", "examples/data_parallel.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    said = re.fullmatch(r"\[0\] loss (\d\.\d+) on 2 ranks; 1 bucket, .*\n", done.stdout)
    assert said and float(said[1]) < 0.5, done.stdout


def test_every_file_it_maps_exists():
    tree = README.split("## Files")[1].split("```")[1]
    folder = ""
    for line in tree.strip().splitlines():
        words = line.split("  ")[0].strip() if line.startswith(" ") else line.split()[0]
        if not line.startswith(" "):
            folder = words
        for name in words.split(", "):
            path = ROOT / name if not line.startswith(" ") else ROOT / folder / name.strip()
            assert path.exists(), line


def test_its_tables_and_those_of_the_docs_are_made_from_committed_results():
    command = [sys.executable, "tools/benchmark_tables.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
