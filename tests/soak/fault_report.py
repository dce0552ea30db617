"""The page of a run of faults: how many of each kind, what was wrong, how soon it was noticed."""

from __future__ import annotations

import platform
from collections import Counter
from typing import Any

import numpy as np

from soak.verdicts import ANOMALIES

_INTRODUCTION = """\
`{command}`: {jobs} random programs of 2 to 4 ranks in each of which one rank failed, two at a time
on {cores} cores ({machine}), in {minutes:.1f} minutes."""

_EXPLANATION = """\
A *hang* is a rank that had not ended 10 s after the last deadline; a *leak* a mapping, descriptor,
thread, process or file that was left; *missed* a rank that should have raised and did not; *not
named* an error whose text does not name the rank that failed.

Detection: from just before the fault to the error in each other rank, in milliseconds. A rank hears
of a fault in the first call that needs the others, so its own work until then counts, too; with
more ranks than cores it also waits for a core. Frozen ranks are noticed by the deadline of 0.5 s,
bad bytes by that of 1 s at the latest."""


def page(records: list[dict[str, Any]], command: str, date: str, cores: int, wall: float) -> str:
    """As Markdown."""
    totals = Counter(kind for record in records for kind, _ in record["anomalies"])
    lines = [
        f"# Ranks that fail, {date}",
        "",
        _INTRODUCTION.format(
            command=command,
            jobs=len(records),
            cores=cores,
            machine=platform.machine(),
            minutes=wall / 60,
        ),
        "",
        "| " + " | ".join(ANOMALIES) + " |",
        "|" + "---:|" * len(ANOMALIES),
        "| " + " | ".join(str(totals[name]) for name in ANOMALIES) + " |",
        "",
        _EXPLANATION,
        "",
        "| fault | jobs | anomalies | raised | median | p99 | worst |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    kinds = sorted({record["kind"] for record in records})
    lines += [_row(kind, [each for each in records if each["kind"] == kind]) for kind in kinds]
    prompt = [
        each for each in records if not each["kind"].startswith("freezes")
        and each["kind"] != "bad bytes"
    ]  # fmt: skip
    lines += [_row("all without a deadline", prompt), _row("all", records), ""]
    wrong = [record for record in records if record["anomalies"]]
    if wrong:
        lines += ["## What was wrong", ""]
        for record in wrong:
            name, text = record["anomalies"][0]
            words = " ".join(text.split())[:300]
            lines.append(
                f"- seed {record['seed']}, {record['size']} ranks, {record['kind']} "
                f"{record['moment']} operation {record['number']}: **{name}**: {words}"
            )
    return "\n".join(lines) + "\n"


def _row(name: str, records: list[dict[str, Any]]) -> str:
    times = np.array([each for record in records for each in record["detections"]]) * 1e3
    wrong = sum(bool(record["anomalies"]) for record in records)
    figures = ["–"] * 3
    if times.size:
        figures = [
            f"{each:.1f}" for each in (np.median(times), np.quantile(times, 0.99), times.max())
        ]
    return f"| {name} | {len(records)} | {wrong} | {times.size} | {' | '.join(figures)} |"
