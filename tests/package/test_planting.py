"""What the tools change in a copy of the sources stands there: once, or they would find nothing."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.mark.parametrize("tool, name", [
    ("fuzz", "PLANTS"), ("sanitize", "PLANTS"), ("unchecked", "CHECKS"),
])  # fmt: skip
def test_every_plant_has_its_place(tool, name, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    plants = getattr(importlib.import_module(tool), name)
    native = importlib.import_module("native_programs").NATIVE
    for module in (tool, "native_programs"):
        monkeypatch.delitem(sys.modules, module)
    assert plants
    for plant in plants:
        assert plant.wrong != plant.sound
        assert (native / plant.file).read_text().count(plant.sound) == 1, plant


def test_a_plant_without_its_place_ends_the_tool(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    programs = importlib.import_module("native_programs")
    monkeypatch.delitem(sys.modules, "native_programs")
    monkeypatch.setattr(programs, "BUILD", tmp_path)
    plant = programs.Plant("none", "engine.cpp", "no such words", "")
    with pytest.raises(SystemExit, match=r"engine.cpp: expected `no such words` once, found it 0"):
        programs.planted("none", plant)
