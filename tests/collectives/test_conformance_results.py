"""What the conformance suite found is written down, added to, and read again."""

from __future__ import annotations

import json

import pytest

from collectives.conformance import Cell, Outcome, Results, read_results, write_results

RING = Cell("shm", "allreduce", "ring")
TREE = Cell("shm", "allreduce", "tree")


def run_of(cell, **sizes_and_counts):
    run = Results()
    run.record(cell, **sizes_and_counts)
    return run


def test_no_file_is_no_results(tmp_path):
    results = read_results(tmp_path / "none.json")
    assert results == Results() and results.transports() == ()


def test_cases_add_up_within_a_run():
    run = run_of(RING, size=2, passed=3)
    run.record(RING, 4, passed=1, failed=1)
    assert run.outcomes == {RING: Outcome(4, 1, frozenset({2, 4}))}


def test_a_later_run_replaces_its_cells_and_leaves_the_others(tmp_path):
    file = tmp_path / "conformance.json"
    write_results(run_of(RING, size=2, failed=9), file)
    write_results(run_of(TREE, size=3, passed=1), file)
    write_results(run_of(RING, size=5, passed=2), file)
    results = read_results(file)
    assert results.outcomes[RING] == Outcome(2, 0, frozenset({5}))
    assert results.outcomes[TREE] == Outcome(1, 0, frozenset({3}))
    assert results.transports() == ("shm",)
    document = json.loads(file.read_text())
    assert document["date"] == results.date != ""
    assert document["shm"]["allreduce"]["ring"] == {"passed": 2, "failed": 0, "sizes": [5]}
    assert [path.name for path in tmp_path.iterdir()] == ["conformance.json"]


@pytest.mark.parametrize("text", ["{", '{"shm": 3}', '{"shm": {"allreduce": {"ring": {}}}}', "[]"])
def test_another_file_is_refused(tmp_path, text):
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json: .*conformance results"):
        read_results(file)
