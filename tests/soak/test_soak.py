"""Random programs, a few; `make soak` runs as many as there is time for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from collectives.catalogue import CATALOGUE
from soak.drawing import Taste, draw
from soak.operations import Allocate, Close, Collective, Messages, Objects, Split, Wait

TESTS = Path(__file__).parents[1]


def command(module, *options, limit=100):
    """Run a module of the soak; its exit code and what it printed."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-m", module, *options], capture_output=True, text=True, timeout=limit,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    return ended.returncode, ended.stdout + ended.stderr


def test_a_few_programs(full):
    code, said = command(
        "soak", "--seed", "1", "--programs", "400" if full else "8", "--operations", "120",
        "--minutes", "10", limit=800 if full else 100,
    )  # fmt: skip
    assert code == 0 and "nothing wrong" in said, said


def test_a_few_programs_over_hosts(full):
    code, said = command(
        "soak", "--seed", "1", "--hosts", "aab", "--hosts", "abcb", "--programs",
        "60" if full else "2", "--operations", "120", "--minutes", "10",
        limit=800 if full else 100,
    )  # fmt: skip
    assert code == 0 and "nothing wrong" in said, said


@pytest.mark.full
def test_over_hosts_a_result_that_is_wrong_is_found():
    code, said = command(
        "soak", "--seed", "1", "--hosts", "ab", "--programs", "1", "--operations", "60",
        "--spoil", "20",
    )  # fmt: skip
    assert code == 1 and "--hosts ab --seed 1 --programs 1" in said and "expected" in said


def test_a_planted_wrong_result_is_found_and_can_be_repeated(size=3):
    program = draw(5, size, Taste(length=60, torch=False))
    number = next(
        number for number, each in enumerate(program.operations)
        if isinstance(each, Collective) and each.collective == "allreduce" and each.comm == 0
        and each.handle is None and 0 not in each.shape
    )  # fmt: skip
    same = ("--seed", "5", "--programs", "1", "--ranks", str(size), "--operations", "60")
    code, said = command("soak", *same, "--without-torch", "--spoil", str(number))
    assert code == 1, said
    words = f"seed 5, {size} ranks, operation {number} Collective(collective='allreduce'"
    for expected in (words, f"rank {size - 1}: 1 of", "expected", "found", f"SEED=5 RANKS={size}"):
        assert expected in said, (expected, said)
    code, said = command("soak", *same, "--without-torch")
    assert code == 0, said


def test_programs_hold_everything_there_is():
    """Each collective by each algorithm, each kind of memory, result and message."""
    operations = [
        each for seed in range(25) for each in draw(seed, 4, Taste(length=400)).operations
    ]
    calls = [each for each in operations if isinstance(each, Collective)]
    assert {(each.collective, each.algorithm) for each in calls} >= {*CATALOGUE}
    assert {type(each) for each in operations} == {
        Allocate, Close, Collective, Messages, Objects, Split, Wait
    }  # fmt: skip
    assert {each.how for each in operations if isinstance(each, Messages)} == {
        "posted", "blocking", "any source", "any tag", "shift"
    }  # fmt: skip
    for layout in ("whole", "slice", "strided", "symmetric"):
        for result in ("new", "out", "in place"):
            for kind in ("numpy", "torch"):
                assert any(
                    (each.layouts[0], each.result, each.kind) == (layout, result, kind)
                    for each in calls
                )
    assert any(each.deterministic and each.handle is not None for each in calls)
    assert any(each.deterministic and each.algorithm == "one_sided" for each in calls)
    assert any(each.counts and each.comm and each.algorithm == "one_sided" for each in calls)


def test_a_seed_makes_one_program():
    assert draw(9, 3, Taste()) == draw(9, 3, Taste())
    assert draw(9, 3, Taste()) != draw(10, 3, Taste())
