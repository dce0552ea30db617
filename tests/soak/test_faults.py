"""Ranks that fail in random programs, a few; `make soak-faults` runs thousands."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from soak import faults
from soak.bad_bytes import areas, places
from soak.drawing import GEOMETRIES
from soak.fault_kinds import KINDS, draw_fault
from soak.fault_report import page
from soak.faulty import Clock, Told
from soak.forked_ranks import Ending
from soak.test_soak import command
from soak.verdicts import ANOMALIES, judge


def test_every_kind_of_fault(full):
    code, said = command("soak.faults", "--seed", "1", "--jobs", "3000" if full else "40",
                         limit=850 if full else 100)  # fmt: skip
    assert code == 0 and "nothing wrong" in said, said


def test_seeds_make_every_kind():
    found = [draw_fault(seed) for seed in range(300)]
    assert {fault.kind for fault in found} == {*KINDS}
    assert {fault.moment for fault in found} == {"before", "in the middle", "after"}
    assert all(fault.number < len(fault.program.operations) - 1 for fault in found)


def told(error="", text="", left=""):
    return Ending(0, Told(error=error, text=text, number=3, left=left))


@pytest.mark.parametrize(
    "kind, other, anomaly",
    [
        ("raises", told("AbortedError"), None),
        ("raises", told("PeerLostError"), "wrong error class"),
        ("raises", told(), "missed"),
        ("raises", told("WrongResult"), "wrong answer"),
        ("raises", told("AbortedError", left="threads"), "leak"),
        ("raises", Ending(-11), "crash"),
        ("raises", Ending(-9, is_late=True), "hang"),
        ("freezes for a moment", told(), None),
        ("freezes for a moment", told("CollectiveTimeout"), "wrong error class"),
        ("bad bytes", told("CollectiveTimeout"), None),
        ("bad bytes", told(), None),
        ("bad bytes", told("UnpicklingError"), "wrong error class"),
        ("SIGKILL", told("PeerLostError", "rank 0 (pid 1) ended"), None),
        ("SIGKILL", told("PeerLostError", "rank 1 (pid 1) ended"), "not named"),
        ("other root", told("MismatchError"), None),
        ("other root", told("CollectiveTimeout"), "wrong error class"),
    ],
)
def test_what_is_wrong_is_seen(kind, other, anomaly):
    drawn = draw_fault(3, kind)
    operations = [each for each in drawn.program.operations if not each.comm][-1:]
    fault = replace(drawn, rank=0, program=replace(drawn.program, size=2, operations=operations))
    own = {"raises": told("Stumble"), "SIGKILL": Ending(-9), "other root": told("MismatchError")}
    endings = [own.get(kind, told()), other]
    assert [name for name, _ in judge(fault, endings, Clock(2))] == ([anomaly] if anomaly else [])


def test_a_wrong_result_reaches_the_exit_code(monkeypatch, capsys, tmp_path):
    record = {
        "seed": 5, "size": 2, "kind": "SIGKILL", "moment": "after", "number": 1, "operation": "x",
        "detections": [0.001, 0.003], "anomalies": [["hang", "rank 1"]],
    }  # fmt: skip
    monkeypatch.setattr(faults, "records_of", lambda *_: iter([record]))
    monkeypatch.setattr(faults.gc, "freeze", lambda: None)
    monkeypatch.setattr("sys.argv", ["faults", "--report", str(tmp_path / "page.md")])
    assert faults.main() == 1
    assert "seed 5, 2 ranks, SIGKILL after x: hang: rank 1" in capsys.readouterr().out
    assert "| SIGKILL | 1 | 1 | 2 | 2.0 | 3.0 | 3.0 |" in (tmp_path / "page.md").read_text()


def test_the_page_counts_each_anomaly():
    records = [
        {"seed": 1, "size": 2, "kind": "raises", "moment": "before", "number": 0,
         "detections": [], "anomalies": [(name, "text")]}
        for name in ANOMALIES
    ]  # fmt: skip
    text = page(records, "make", "2001-02-03", 2, 60.0)
    assert "| 1 | 1 | 1 | 1 | 1 | 1 | 1 |" in text and "**hang**: text" in text


@pytest.mark.parametrize("number", range(len(GEOMETRIES)))
def test_bad_bytes_are_no_payload(number, monkeypatch):
    import numpy as np

    from collectives import settings

    geometry = settings.geometry({**os.environ, **GEOMETRIES[number]})
    dice = np.random.default_rng(number)
    for area in areas(geometry, 3):  # which raises if the layout has changed
        for place in [*places(area, dice, 50), *places(area, dice, None)]:
            assert area.begin <= place < area.begin + area.length
            assert (place - area.begin) % area.record < area.fields
