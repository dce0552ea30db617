"""What `collectives bench` may be asked for, and what it says of the rest."""

from __future__ import annotations

import pytest

from launch.bench import session
from launch.bench.agenda import parse_agenda
from launch.command_line import main


def agenda(**changes):
    usual = {
        "what": "allreduce", "ranks": 2, "least": 8, "most": 64, "factor": 2.0, "dtype": "float32",
        "op": "sum", "places": "out", "caches": "hot", "algorithms": "auto", "root": 0,
    }  # fmt: skip
    return parse_agenda(**{**usual, **changes})


def sizes_of(section):
    return [case.nbytes for case in section[1]]


def test_sizes_go_from_the_least_to_the_most():
    assert sizes_of(*agenda().sections()) == [8, 16, 32, 64]
    assert sizes_of(*agenda(factor=4.0, most=100).sections()) == [8, 32, 100]
    assert sizes_of(*agenda(least=8, most=8).sections()) == [8]
    assert sizes_of(*agenda(least=1, most=9, factor=1.01).sections()) == [4, 8]
    assert sizes_of(*agenda(most=10).sections()) == [8]
    assert sizes_of(*agenda(least=6, most=7).sections()) == [8]  # rounded up, there is no other


def test_sizes_are_shared_by_ranks_where_there_are_parts():
    assert sizes_of(*agenda(what="allgather", ranks=3, least=8, most=32).sections()) == [12, 24]
    assert sizes_of(*agenda(what="gather", ranks=3, least=10, most=11).sections()) == [12]
    assert sizes_of(*agenda(what="gather", ranks=3, least=8, most=59).sections()) == [
        12,
        24,
        36,
        48,
    ]
    assert sizes_of(*agenda(what="barrier").sections()) == [0]


def test_sections_are_what_belongs_together():
    headings = [heading for heading, _ in agenda(places="out,in", caches="hot,cold").sections()]
    assert headings == [
        "allreduce, out of place, hot",
        "allreduce, out of place, cold",
        "allreduce, in place, hot",
        "allreduce, in place, cold",
    ]
    assert [heading for heading, _ in agenda(what="p2p").sections()] == [
        "pingpong, hot",
        "stream, hot",
    ]
    assert [heading for heading, _ in agenda(what="broadcast").sections()] == [
        "broadcast, in place, hot"
    ]
    assert len(list(agenda(what="all", places="out,in").sections())) == 9 + 3
    cold = [heading for heading, _ in agenda(what="barrier", caches="hot,cold").sections()]
    assert cold == ["barrier, hot"]


def test_only_reductions_have_an_op():
    ops = {cases[0].collective: cases[0].op for _, cases in agenda(what="all", op="max").sections()}
    reducing = {"allreduce", "reduce", "reduce_scatter"}
    assert {name for name, op in ops.items() if op == "max"} == reducing
    assert set(ops.values()) == {"max", ""}


WRONG = {
    "what to measure must be one of allreduce": {"what": "alreduce"},
    "did you mean allreduce?": {"what": "alreduce"},
    "--dtype must be one of float16": {"dtype": "float23"},
    "--op must be one of sum": {"op": "plus"},
    "--op band with --dtype float32: band takes integers": {"op": "band"},
    "--min must be at least 1 byte, found 0": {"least": 0},
    "--min must not be above --max, found 128 and 64": {"least": 128},
    "--factor must be above 1, found 1": {"factor": 1.0},
    "--root must be in 0..1, found 2": {"root": 2},
    "p2p needs at least 2 ranks, found 1": {"what": "p2p", "ranks": 1},
    "--places must be one of out, in, found 'inn'": {"places": "out,inn"},
    "--places must name at least one of out, in": {"places": ","},
    "--caches must be one of hot, cold, found 'warm'": {"caches": "warm"},
    "in place there are only allreduce, reduce, broadcast": {"what": "gather", "places": "in"},
    "--algorithm must name at least one, or auto": {"algorithms": " , "},
    "allreduce has no algorithm 'rign'": {"algorithms": "auto,rign"},
    "did you mean ring?": {"algorithms": "symmetric:rign"},
}


@pytest.mark.parametrize("text", WRONG)
def test_what_makes_no_sense_is_refused(text):
    with pytest.raises(ValueError) as error:
        agenda(**WRONG[text])
    assert text in str(error.value)


REFUSED = {
    "expected what to measure, such as allreduce; found nothing": [],
    "--min: expected a number of bytes such as 4096, 64K or 1M, found '8Q'": [
        *("allreduce", "--min", "8Q"),
    ],
    "--max: expected a number of bytes": ["allreduce", "--max", "much"],
    "--min must not be above --max": ["allreduce", "--min", "1M", "--max", "1K"],
    "the number of ranks must be at least 1": ["allreduce", "-n", "0"],
    "--rounds must be positive, found 0": ["allreduce", "--rounds", "0"],
    "--round-ms must be positive, found -1": ["allreduce", "--round-ms=-1"],
    "--plant must not be negative, found -2": ["allreduce", "--plant=-2"],
    "one of gloo, nccl, mpi, deepspeed, ours, torch:BACKEND, symmetric, double_binary_tree": [
        *("allreduce", "--against", "glooo"),
    ],
    "--plot: expected a .png or .svg file, found x.jpg": ["allreduce", "--plot", "x.jpg"],
    "--plot: no folder": ["allreduce", "--plot", "/nowhere/x.png"],
    "cannot read /nowhere/run.jsonl": ["--report", "/nowhere/run.jsonl"],
    "cannot write /nowhere/run.jsonl": ["allreduce", "--json", "/nowhere/run.jsonl"],
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_command_line_that_is_wrong_says_so_and_starts_nothing(text, capsys):
    assert main(["bench", *REFUSED[text]]) == 2
    streams = capsys.readouterr()
    assert text in streams.err and streams.out == ""


def test_memory_that_cannot_be_had_is_refused_before_anything_starts(capsys, monkeypatch):
    monkeypatch.setattr(session, "available_memory", lambda **_: (1 << 30, "here"))
    assert main(["bench", "allreduce", "--max", "1G"]) == 2
    assert (
        "the arrays of 2 ranks and 4 contenders would take 20.0 GiB, found 1.0 GiB of memory "
        "available; expected a smaller --max, or fewer contenders" in capsys.readouterr().err
    )


def test_a_plot_without_matplotlib_is_refused_with_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["bench", "allreduce", "--plot", "x.png"]) == 2
    assert "pip install 'collectives-runtime[train]'" in capsys.readouterr().err
