"""Results kept and shown: records, tables, Markdown, plots, and what memory there is."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from collectives.bench.cases import Case
from launch.bench import hardware
from launch.bench.markdown import markdown_report, readable_size
from launch.bench.plot import draw_results, spread_apart
from launch.bench.results import Result, compared, overlaps, read_results
from launch.bench.table import Table, microseconds, times

HEADER = {
    "kind": "run",
    "date": "2026-11-23T10:00:00+00:00",
    "ranks": 2,
    "rounds": 3,
    "machine": {"processor": "Processor", "cores": 2, "last_level_cache_bytes": 32 << 20},
    "contenders": {"ours": {}, "gloo": {"library": "gloo of torch 2.13"}, "limit": {}},
}


def result_of(nbytes=1 << 20, **changes):
    usual = {
        "case": Case(collective="allreduce", nbytes=nbytes, op="sum"), "size": 2, "role": "ours",
        "who": "ours", "variant": "auto", "rounds": (3e-4, 2e-4, 4e-4), "calls": 100,
        "chosen": "ring", "predicted": 1.9e-4,
    }  # fmt: skip
    return Result(**{**usual, **changes})


def race(nbytes):
    scale = nbytes / (1 << 20)
    theirs = {"role": "against", "variant": "", "chosen": "", "predicted": None}
    limit = {**theirs, "role": "limit", "who": "limit"}
    return [
        result_of(nbytes, rounds=(2e-4 * scale, 3e-4 * scale), predicted=1.9e-4 * scale),
        result_of(nbytes, **theirs, who="gloo", rounds=(2e-3 * scale, 3e-3 * scale)),
        result_of(nbytes, **theirs, who="MPI", rounds=(), problem="MPI has no such thing"),
        result_of(nbytes, **{**limit, "variant": "copy"}, rounds=(1e-4 * scale,)),
        result_of(nbytes, **{**limit, "variant": "kernel"}, rounds=(5e-5 * scale,)),
        result_of(nbytes, **{**limit, "variant": "stream"}, rounds=(), problem="no"),
    ]


def overlap():
    case = Case(collective="overlap", nbytes=1024, op="sum")
    return [
        result_of(case=case, part=part, rounds=(seconds,), chosen="", predicted=None)
        for part, seconds in (("alone", 2e-6), ("compute", 2e-6), ("both", 3e-6))
    ]


def test_a_result_says_what_follows_from_its_rounds():
    result = result_of()
    assert result.best == 2e-4 and result.timing.median == 3e-4
    assert result.algbw == result.busbw == pytest.approx((1 << 20) / 2e-4)
    assert result.count == 1 << 18
    assert result.title == "ours" and result_of(variant="ring").title == "ours ring"


def test_records_are_read_as_they_were_written(tmp_path):
    results = [*race(1024), *overlap()]
    path = tmp_path / "run.jsonl"
    lines = [HEADER, *(result.as_json() for result in results)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_results(path) == (HEADER, results)


@pytest.mark.parametrize(
    "text, error",
    [
        ("", "does not begin as a file of `collectives bench --json` does"),
        ("[1]\n", "does not begin as"),
        ("no json\n", "is no file of JSON lines"),
        ('{"kind": "run"}\n{"kind": "result"}\n', "expected a result of `collectives bench`"),
        ('{"kind": "run"}\n{"kind": "result", "case": {"x": 1}}\n', "expected a result of"),
    ],
)
def test_other_files_are_refused(tmp_path, text, error):
    path = tmp_path / "run.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=error):
        read_results(path)
    with pytest.raises(ValueError, match="cannot read"):
        read_results(tmp_path / "absent")


def test_a_comparison_holds_a_case_and_the_best_limit_counts():
    small, large = compared([*race(1024), *race(2048)])
    assert (small.case.nbytes, large.case.nbytes) == (1024, 2048)
    assert large.limit is not None and large.limit.variant == "kernel"
    assert [result.who for result in small.of_role("against")] == ["gloo", "MPI"]
    ((alone, compute, both),) = overlaps(compared(overlap())[0])
    assert (alone.best, compute.best, both.best) == (2e-6, 2e-6, 3e-6)


def shown(comparisons, against, overlap=False, terminal=False):
    file = io.StringIO()
    table = Table(Console(file=file, width=400, force_terminal=terminal), against)
    table.begin("heading", overlap=overlap)
    for comparison in comparisons:
        table.show_status("round 1 of 3")
        table.add(comparison)
    return file.getvalue()


def test_a_row_is_what_nccl_tests_prints_and_more():
    text = shown(compared(race(1 << 20)), ["gloo", "MPI"])
    (row,) = (line.split() for line in text.splitlines() if "float32" in line)
    assert row == [
        *("1048576", "262144", "float32", "sum", "auto:", "ring", "200.0", "250.0", "50"),
        *("5.24", "5.24", "0", "50.00", "25", "190.0", "10.0x", "–"),
    ]


def test_a_row_without_a_limit_and_one_that_was_refused():
    ours = result_of(rounds=(), problem="ValueError: not so", chosen="", predicted=None)
    text = shown(compared([ours]), [])
    assert "ours: ValueError: not so" in text
    assert [line.split()[5:] for line in text.splitlines() if "float32" in line] == [["–"] * 9]
    (row,) = (line for line in shown(compared([result_of()]), []).splitlines() if "float32" in line)
    assert row.split()[-3:] == ["–", "–", "190.0"]


def test_wrong_elements_of_a_contender_are_said_too():
    ours, gloo, *_ = race(1024)
    text = shown(compared([ours, replace(gloo, wrong=1234)]), ["gloo"])
    assert "gloo: 1,234 elements wrong" in text


def test_rows_of_overlap():
    text = shown(compared(overlap()), [], overlap=True)
    (row,) = (line.split() for line in text.splitlines() if "float32" in line)
    assert row[4:] == ["ours", "2.00", "2.00", "3.00", "50", "0"]
    refused = [replace(each, rounds=(), problem="no") for each in overlap()]
    assert shown(compared(refused), [], overlap=True).split()[-5:] == ["–"] * 5


def test_the_status_is_drawn_on_a_terminal_only(capsys):
    shown(compared(race(1024)), ["gloo", "MPI"])
    assert capsys.readouterr().out == ""
    shown(compared(race(1024)), ["gloo", "MPI"], terminal=True)
    assert capsys.readouterr().out == "\r\x1b[Kround 1 of 3\r\x1b[K"


def test_figures_have_three_digits():
    assert [microseconds(t) for t in (5e-7, 1.234e-5, 1.234e-4, 0.01234)] == [
        *("0.50", "12.34", "123.4", "12340"),
    ]
    assert microseconds(None) == "–"
    assert [times(ratio) for ratio in (0.5, 12.34, 123.4)] == ["0.50x", "12.3x", "123x"]
    assert [readable_size(n) for n in (8, 1000, 1024, 3 << 20)] == [
        *("8 B", "1000 B", "1 KiB", "3 MiB"),
    ]


def test_a_report_in_markdown():
    results = [*race(1024), *race(1 << 20), *overlap()]
    text = markdown_report([(HEADER, results)])
    assert "2 ranks on 2 cores of Processor, 32 MiB last-level cache, 2026-11-23." in text
    assert "Against gloo of torch 2.13." in text
    assert "**allreduce**, out of place, hot\n\n| size | ours | busbw GB/s | of limit |" in text
    row = "| 1 MiB | 200.0 ring | 5.24 | 25% | 190.0 | 2000 (10.0x) | – |"
    assert row in text
    assert "| 1 KiB | ours | 2.00 | 2.00 | 3.00 | 50% |" in text


def test_a_report_of_what_was_wrong_or_refused():
    ours, gloo, *_ = race(1024)
    refused = replace(ours, rounds=(), problem="no", predicted=None)
    text = markdown_report([(HEADER, [refused, gloo])])
    assert "| 1 KiB | – | – | 1.95 (–) |" in text
    text = markdown_report([(HEADER, [replace(ours, wrong=3), replace(gloo, wrong=4)])])
    assert "0.20 ring (3 wrong)" in text and "(10.0x, 4 wrong)" in text
    refused_overlap = [replace(each, rounds=()) for each in overlap()]
    assert "| – | – | – | – |" in markdown_report([(HEADER, refused_overlap)])


@pytest.mark.parametrize("name", ["plot.png", "plot.svg"])
def test_a_plot_has_every_line_and_its_name(tmp_path, name):
    results = [result for power in range(3, 24, 4) for result in race(1 << power)]
    results += [replace(each, case=replace(each.case, cold=True)) for each in results]
    draw_results([*results, *overlap()], tmp_path / name)
    content = (tmp_path / name).read_bytes()
    if name.endswith("png"):
        assert content.startswith(b"\x89PNG")
        return
    text = content.decode()
    words = ["ours", "gloo", "limit of this machine", "busbw, GB/s"]
    words += ["microseconds a call", "allreduce, 2 ranks, float32 sum, out of place, cold"]
    assert text.count(">dashed: predicted by the cost model</text>") == 1
    for word in words:
        assert f">{word}</text>" in text, word
    assert ">MPI<" not in text  # it has no points


def test_the_note_on_dashed_lines_is_below_all_panels(tmp_path):
    draw_results([*race(64), *race(1 << 20)], tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    places = {word: float(y) for y, word in re.findall(r' y="([\d.]+)"[^>]*>([^<]+)</text>', text)}
    others = [place for word, place in places.items() if not word.startswith("dashed")]
    assert places["dashed: predicted by the cost model"] > max(others)
    plain = [replace(result, predicted=None) for result in race(64)]
    draw_results(plain, tmp_path / "plain.svg")
    assert "dashed" not in (tmp_path / "plain.svg").read_text()


def test_a_plot_of_nothing_is_drawn_too(tmp_path):
    draw_results(overlap(), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


def test_names_are_moved_apart_as_little_as_may_be():
    assert spread_apart([0.1, 0.5], 0.1) == [0.1, 0.5]
    assert spread_apart([0.5, 0.5, 0.9], 0.1) == pytest.approx([0.45, 0.55, 0.9])
    assert spread_apart([0.5, 0.5, 0.58], 0.1) == pytest.approx([0.4266, 0.5266, 0.6266], abs=1e-3)
    assert spread_apart([0.95, 1.0, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0])
    assert spread_apart([-0.5, 0.05], 0.1) == pytest.approx([0.0, 0.1])
    assert spread_apart([], 0.1) == []


def test_the_processor_is_named(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nmodel name\t: Fast 9000\n")
    assert hardware.processor_name(cpuinfo) == "Fast 9000"
    assert hardware.processor_name(tmp_path / "absent")
    facts = hardware.run_facts()
    assert facts["machine"]["cores"] >= 1 and facts["versions"]["numpy"]
