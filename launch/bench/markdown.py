"""Tables for README and docs, made from kept runs: figures in prose go stale, these do not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from collectives.bench.overlap import OVERLAP, hidden_part
from launch.bench.devices import counted
from launch.bench.results import Comparison, Result, compared, overlaps
from launch.bench.table import NOTHING, algorithm_name, gigabytes, microseconds, times

Run = tuple[dict[str, Any], Sequence[Result]]


def markdown_report(runs: Iterable[Run]) -> str:
    """One table for each collective, place and cache of each run, under what it was run on."""
    blocks = []
    for header, results in runs:
        blocks.append(_caption(header))
        sections: dict[tuple[str, str, bool], list[Comparison]] = {}
        for comparison in compared(results):
            case = comparison.case
            section = (case.collective, case.place, case.cold)
            sections.setdefault(section, []).append(comparison)
        for (collective, place, cold), comparisons in sections.items():
            where = "in place" if place == "in" else "out of place"
            heading = f"**{collective}**, {where}, {'cold' if cold else 'hot'}"
            table = _overlap_table if collective == OVERLAP else _table
            blocks.append(f"{heading}\n\n{table(comparisons)}")
    return "\n\n".join(blocks)


def readable_size(nbytes: int) -> str:
    """A size as people write it."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if nbytes >= unit and nbytes % unit == 0:
            return f"{nbytes // unit} {name}"
    return f"{nbytes} B"


def _caption(header: dict[str, Any]) -> str:
    machine = header["machine"]
    cache = machine["last_level_cache_bytes"] >> 20
    against = ", ".join(
        about.get("library", name)
        for name, about in header["contenders"].items()
        if name not in ("ours", "limit")
    )
    where = f"{header['ranks']} ranks on {machine['cores']} cores of {machine['processor']}"
    devices = header.get("devices")  # which runs before there were any do not have
    on = f", arrays on {counted(devices)}" if devices else ""
    lines = [
        f"{where}, {cache} MiB last-level cache{on}, {header['date'][:10]}.",
        f"Best of {header['rounds']} rounds, seen from Python.",
        "Times in microseconds; in brackets how many times as long as ours the others take.",
    ]
    if against:
        lines.append(f"Against {against}.")
    return "\n".join(lines)


def _table(comparisons: Sequence[Comparison]) -> str:
    """Sizes down; ours, the limit, the prediction and the contenders across."""
    first = comparisons[0]
    ours = [result.title for result in first.of_role("ours")]
    against = [result.title for result in first.of_role("against")]
    has_limit = any(comparison.limit for comparison in comparisons)
    predicted = any(r.predicted is not None for c in comparisons for r in c.of_role("ours"))
    headings = ["size"]
    for title in ours:
        headings += [title, "busbw GB/s", *["of limit"] * has_limit]
        headings += ["predicted"] * predicted
    rows = []
    for comparison in comparisons:
        cells = [readable_size(comparison.case.nbytes)]
        for result in comparison.of_role("ours"):
            cells += _own_cells(result, comparison.limit, has_limit, predicted)
        reference = comparison.of_role("ours")[0]
        cells += [_rival_cell(result, reference) for result in comparison.of_role("against")]
        rows.append(cells)
    return _markdown([*headings, *against], rows)


def _own_cells(result: Result, limit: Result | None, has_limit: bool, predicted: bool) -> list[str]:
    if not result.rounds:
        return [NOTHING] * (2 + has_limit + predicted)
    wrong = f" ({result.wrong} wrong)" if result.wrong else ""
    name = algorithm_name(result).partition(": ")[2]
    cells = [f"{microseconds(result.best)}{f' {name}' if name else ''}{wrong}"]
    cells.append(gigabytes(result.busbw))
    if has_limit:
        cells.append(f"{limit.best / result.best:.0%}" if limit else NOTHING)
    if predicted:
        cells.append(microseconds(result.predicted))
    return cells


def _rival_cell(result: Result, ours: Result) -> str:
    if not result.rounds:
        return NOTHING
    wrong = f", {result.wrong} wrong" if result.wrong else ""
    ratio = f"{times(result.best / ours.best)}" if ours.rounds else NOTHING
    return f"{microseconds(result.best)} ({ratio}{wrong})"


def _overlap_table(comparisons: Sequence[Comparison]) -> str:
    rows = []
    for comparison in comparisons:
        for alone, compute, both in overlaps(comparison):
            cells = [readable_size(comparison.case.nbytes), alone.title]
            if alone.rounds:
                hidden = hidden_part(alone.best, compute.best, both.best)
                cells += [microseconds(part.best) for part in (alone, compute, both)]
                cells.append(f"{hidden:.0%}")
            else:
                cells += [NOTHING] * 4
            rows.append(cells)
    return _markdown(["size", "", "alone", "compute", "both", "hidden"], rows)


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---:"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
