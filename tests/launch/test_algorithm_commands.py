"""`collectives algorithms` and `collectives explain`: what they show and what they refuse."""

from __future__ import annotations

import pytest

from collectives.catalogue import CATALOGUE
from collectives.conformance import RESULTS, Cell, Results, read_results, write_results
from launch.command_line import main
from launch.commands.explain import parse_bytes


@pytest.fixture
def said(capsys):
    """What a command line prints; asserts that it succeeds."""

    def run(*words):
        assert main(words) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def refusal(capsys):
    """What a command line is refused with."""

    def run(*words):
        assert main(words) == 2
        streams = capsys.readouterr()
        assert streams.out == ""
        return streams.err

    return run


def test_the_list_has_every_algorithm_once(said):
    lines = [line.split() for line in said("algorithms").splitlines()]
    assert lines[0][:4] == ["collective", "algorithm", "sizes", "chunks"]
    listed = [(words[0], words[1]) for words in lines[1:]]
    assert sorted(listed) == sorted({(a.collective, a.name) for a in CATALOGUE.values()})


def test_the_list_shows_the_forms_whole(said):
    (ring,) = (line for line in said("algorithms", "allreduce").splitlines() if " ring " in line)
    algo = CATALOGUE["allreduce", "ring"]
    for text in (algo.cost, algo.messages, algo.volume, algo.source):
        assert text in ring
    assert "alltoall" not in said("algorithms", "allreduce")
    assert "chain (= ring)" in said("algorithms", "reduce")


def test_the_matrix_says_what_was_not_run(said, tmp_path, monkeypatch):
    monkeypatch.setattr("collectives.conformance.RESULTS", tmp_path / "none.json")
    text = said("algorithms", "--matrix")
    assert text.count("not run") == 9 * 2
    assert "no conformance run is on record here" in text


def test_the_matrix_has_no_column_without_results_and_says_what_it_shows(said):
    text = said("algorithms", "--matrix")
    assert "cuda_ipc: not yet run on a GPU" in text
    tested = sorted(read_results(RESULTS).transports())
    assert text.splitlines()[0].split() == ["collective", "algorithm", *tested]
    assert "a column for each transport that was tested; in it how many cases" in text


def test_the_matrix_shows_results(said, tmp_path):
    run = Results()
    for size in (1, 2, 3, 9):
        run.record(Cell("shm", "allreduce", "ring"), size, passed=10)
    run.record(Cell("shm", "alltoall", "bruck"), 4, passed=1, failed=2)
    write_results(run, tmp_path / "results.json")
    text = said("algorithms", "--matrix", "--results", str(tmp_path / "results.json"))
    assert "40 passed n = 1-3, 9" in text
    assert "tree (bruck)" in text and "2 of 3 FAILED n = 4" in text
    assert "last conformance run: 2" in text


def test_wrong_requests_for_a_list_are_refused(refusal, tmp_path):
    assert "unknown collective 'gathr'" in refusal("algorithms", "gathr")
    assert "--results belongs to --matrix" in refusal("algorithms", "--results", "x.json")
    absent = str(tmp_path / "absent.json")
    assert "no file" in refusal("algorithms", "--matrix", "--results", absent)
    (tmp_path / "bad.json").write_text("[]")
    bad = str(tmp_path / "bad.json")
    assert "no conformance results" in refusal("algorithms", "--matrix", "--results", bad)


def test_an_explanation_is_whole(said):
    text = said("explain", "allreduce", "ring", "-n", "4", "--bytes", "1M")
    assert "allreduce by ring, 4 ranks\nafter Patarasuk & Yuan 2009" in text
    assert "rank 0   →1 c3" in text
    assert "Reduce-scatter round the ring, then allgather round the ring." in text
    assert "with 1 MiB in all, in 4 chunks:" in text
    assert "1,572,864       1,572,864        786,432" in text
    assert "2(n-1) messages = 6" in text
    assert "2(n-1)/n s bytes = 1,572,864" in text
    assert "alpha 1e-06 s, beta 1e-10 s, gamma 5e-11 s (nominal)" in text
    assert "proved for n=4: no dead-lock" in text and "the same bits everywhere" in text


def test_an_explanation_of_one_sided_steps_says_what_is_read_and_written(said):
    text = said("explain", "allreduce", "one_sided", "-n", "4", "--bytes", "1M")
    assert "rank 0   !all                !all\n         ?all      +⇐all c0  ?all\n" in text
    assert "notifies sent  bytes written  bytes read  bytes reduced" in text
    assert (
        "rank 3      6           5              6        786,432     786,432        786,432" in text
    )
    assert "2(n-1) notifies = 6" in text
    assert "reads and writes 2(n-1)/n s bytes of peers = 1,572,864" in text
    assert "proved for n=4: all access to memory in order, no dead-lock with one notify" in text


@pytest.mark.parametrize("collective", sorted({collective for collective, _ in CATALOGUE}))
def test_without_an_algorithm_they_are_listed(said, collective):
    lines = said("explain", collective).splitlines()
    listed = [line.split()[0] for line in lines[1:] if line and not line.startswith("collectives ")]
    assert listed == [name for of, name in CATALOGUE if of == collective]
    assert (
        lines[-1]
        == f"collectives explain {collective} {listed[0]} -n 4 shows one of them from near."
    )


def test_the_list_for_an_explanation_says_what_each_is_for(said):
    text = said("explain", "allreduce")
    assert "Reduce-scatter round the ring, then allgather round the ring." in text
    assert "ring another name of chain" in " ".join(said("explain", "reduce").split())


def test_own_parameters_are_not_nominal(said):
    text = said(
        "explain", "barrier", "tree", "-n", "8", "--alpha", "0.5", "--beta", "0", "--gamma", "0"
    )
    assert "= 3 s at alpha 0.5 s, beta 0 s, gamma 0 s\n" in text


def test_roots_and_many_ranks(said):
    text = said("explain", "scatter", "-n", "12", "tree", "--root", "3")
    assert "scatter by tree, 12 ranks, root 3" in text
    assert "⋮ 4 more ranks" in text and "⋮ 3 more ranks" in text
    assert "proved for n=12, root 3:" in text


@pytest.mark.parametrize("key", CATALOGUE, ids=" ".join)
def test_every_algorithm_is_explained(said, key):
    for ranks in ("1", "5"):
        assert f"proved for n={ranks}" in said("explain", *key, "-n", ranks, "--bytes", "17")


WRONG = {
    "unknown collective 'alreduce'": ["alreduce", "ring"],
    "unknown collective 'gathr'": ["gathr"],
    "expected one of ring, tree, linear, one_sided; did you mean linear?": ["gather", "liner"],
    "-n must be at least 1, found 0": ["gather", "ring", "-n", "0"],
    "--root must be in 0..3, found 4": ["gather", "ring", "--root", "4"],
    "allreduce has no root, found --root 2": ["allreduce", "ring", "--root", "2"],
    "expected a number of bytes such as 4096, 64K or 1M, found '1Q'": [
        *("gather", "ring", "--bytes", "1Q"),
    ],
    "--alpha must be seconds a message, >= 0, found -1.0": ["gather", "ring", "--alpha=-1"],
    "--beta must be seconds a byte moved, >= 0, found nan": ["gather", "ring", "--beta", "nan"],
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_requests_for_an_explanation_are_refused(refusal, text):
    assert text in refusal("explain", *WRONG[text])


def test_an_algorithm_that_is_not_for_this_size_is_refused(refusal, monkeypatch):
    from dataclasses import replace

    from collectives import catalogue

    picky = replace(CATALOGUE["allreduce", "ring"], sizes=(2, 4))
    monkeypatch.setattr(catalogue, "CATALOGUE", {("allreduce", "ring"): picky})
    text = refusal("explain", "allreduce", "ring", "-n", "3")
    assert "allreduce ring is not written for 3 ranks" in text


@pytest.mark.parametrize(
    "text, number",
    [("0", 0), ("17", 17), ("4K", 4096), ("1M", 1 << 20), ("1.5k", 1536), ("2 GiB", 2 << 30)],
)
def test_bytes_are_read(text, number):
    assert parse_bytes(text) == number


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5", "0.3K", "1KK", "1T"])
def test_what_is_no_number_of_bytes_is_refused(text):
    with pytest.raises(ValueError, match="expected a number of bytes such as"):
        parse_bytes(text)
