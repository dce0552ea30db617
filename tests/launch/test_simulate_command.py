"""`collectives simulate`: what it shows and what it refuses."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from collectives.catalogue import CATALOGUE
from launch.command_line import main


def said(capsys, *words):
    assert main(["simulate", *words]) == 0
    return capsys.readouterr().out


def test_one_algorithm_with_its_critical_path(capsys):
    text = said(capsys, "allreduce", "tree", "-n", "5", "--links", "alpha=1us,beta=0,gamma=0")
    assert "allreduce by tree, 5 ranks, 1 MiB in all" in text
    assert "alpha 1e-06 s, beta 0 s, gamma 0 s" in text
    assert "6 µs until rank 1 has ended (event by event)" in text
    assert "6 µs by the closed form lg(n)(2 alpha" in text
    assert "critical path: 6 messages, 6 chunks moved, 3 chunks reduced" in text
    assert "rank 3 → rank 2: 1 chunk, added there" in text


def test_a_long_path_is_cut_in_its_middle(capsys):
    text = said(capsys, "allreduce", "ring", "-n", "64", "--bytes", "64K")
    assert "all ranks do the same at the same time" in text
    assert "102 more" in text and text.count("every rank sends 1 chunk") == 24


def test_memory_and_paths_that_are_not_traced(capsys, monkeypatch):
    text = said(capsys, "allreduce", "one_sided", "-n", "2")
    assert "works on 1 chunk of memory" in text and "rank 1 → rank 0: no chunk" in text
    monkeypatch.setattr("collectives.cost.simulation._FOREST_FROM", 1)
    text = said(capsys, "reduce", "chain", "-n", "6", "--root", "2")
    assert "reduce by chain, 6 ranks, root 2" in text and "path is not traced" in text


def test_all_algorithms_side_by_side(capsys):
    links = "alpha=1us,beta=0.1ns; between: alpha=10us,beta=1ns"
    text = said(capsys, "allreduce", "all", "-n", "8", "--hosts", "2", "--links", links)
    assert "inside a host: alpha 1e-06 s" in text and "between hosts: alpha 1e-05 s" in text
    for collective, name in CATALOGUE:
        if collective == "allreduce":
            assert name in text
    assert "(symmetric memory)" in text and "quickest by size" in text
    assert "quickest by size" not in said(capsys, "barrier", "all")


def test_progress_is_shown_on_a_terminal_and_nowhere_else(launcher):
    words = ("simulate", "allreduce", "all", "-n", "12", "--hosts", "3")
    done = launcher(*words)
    assert (done.returncode, done.stderr) == (0, "")
    mine, its = pty.openpty()
    try:
        command = [sys.executable, "-m", "launch", *words]
        shown = subprocess.run(command, stdout=subprocess.PIPE, stderr=its, text=True,
                               env=launcher.environment({"TERM": "xterm"}), check=True)  # fmt: skip
        assert shown.stdout == done.stdout
        assert "simulating " in os.read(mine, 1 << 16).decode()
    finally:
        os.close(mine)
        os.close(its)


def test_hosts_are_shown_where_they_matter(capsys):
    links = "alpha=1us; between: alpha=1ms"
    text = said(capsys, "barrier", "tree", "-n", "4", "--hosts", "2", "--links", links)
    assert "by the closed form" not in text and "rank 2 → rank 0: 1 chunk" in text


WRONG = {
    "unknown collective 'alreduce'": ["alreduce", "ring"],
    "unknown algorithm 'rng' for allreduce": ["allreduce", "rng"],
    "-n must be at least 1, found 0": ["gather", "ring", "-n", "0"],
    "--root must be in 0..3, found 4": ["gather", "ring", "--root", "4"],
    "allreduce has no root, found --root 2": ["allreduce", "ring", "--root", "2"],
    "expected between 1 and 4 hosts for 4 ranks, found 5": ["gather", "ring", "--hosts", "5"],
    "expected a number of bytes such as": ["gather", "ring", "--bytes", "1Q"],
    "did you mean alpha?": ["gather", "ring", "--links", "alfa=1"],
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_requests_are_refused(capsys, text):
    assert main(["simulate", *WRONG[text]]) == 2
    assert text in capsys.readouterr().err


def test_an_algorithm_for_other_sizes_is_refused(capsys, monkeypatch):
    from dataclasses import replace

    from collectives import catalogue

    picky = replace(CATALOGUE["allreduce", "ring"], sizes=(2, 4))
    monkeypatch.setattr(catalogue, "CATALOGUE", {("allreduce", "ring"): picky})
    assert main(["simulate", "allreduce", "ring", "-n", "3"]) == 2
    assert "allreduce ring is not written for 3 ranks" in capsys.readouterr().err
