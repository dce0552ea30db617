"""A machine's own table and model: where they lie, that they are used, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from collectives import settings, tuned
from collectives.cost.choosing import as_toml
from collectives.selection import SelectionTable, default_table


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLECTIVES_TUNING", str(tmp_path))
    return tmp_path


def test_the_folder_is_named_or_the_machines_own():
    assert settings.tuning_folder({"COLLECTIVES_TUNING": "off", "HOME": "/h"}) is None
    assert settings.tuning_folder({"COLLECTIVES_TUNING": "/t", "HOME": "/h"}) == (Path("/t"), True)
    assert settings.tuning_folder({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == (
        Path("/c/collectives"),
        False,
    )
    assert settings.tuning_folder({"HOME": "/h"}) == (Path("/h/.cache/collectives"), False)
    assert settings.tuning_folder({}) is None


def test_machines_are_told_apart(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: A Fast (R) One\nmodel name\t: another\n")
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert tuned.machine_name(cpuinfo) == "A Fast (R) One, 3 cores"
    cpuinfo.write_text("CPU part\t: 0xd40\n")
    assert tuned.machine_name(cpuinfo) == "0xd40, 3 cores"
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert tuned.machine_name(tmp_path / "absent") == "processor, 1 core"
    monkeypatch.delenv("COLLECTIVES_TUNING", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuned, "machine_name", lambda: "A Fast (R) One, 3 cores")
    assert tuned.folder() == tmp_path / "collectives" / "A-Fast-R-One-3-cores"


def test_without_tuning_the_packages_count(folder, monkeypatch):
    assert tuned.folder() == folder
    assert tuned.machine_table().rows == default_table().rows
    assert (tuned.machine_model().values >= 0).all() and tuned.machine_model().ranks >= 2
    (folder / "in_the_way").write_text("")
    monkeypatch.setenv("COLLECTIVES_TUNING", str(folder / "in_the_way"))
    assert tuned.machine_table().rows == default_table().rows
    monkeypatch.setenv("COLLECTIVES_TUNING", "off")
    assert tuned.folder() is None and tuned.machine_table().rows == default_table().rows


def test_the_machines_own_are_taken(folder):
    rows = [row for row in default_table().rows if row.collective != "barrier"]
    text = as_toml(SelectionTable(default_table().rows), "")
    ours = text.replace('algorithm = "dissemination"', 'algorithm = "tree"')
    assert ours != text and rows
    (folder / tuned.TABLE).write_text(ours)
    assert tuned.machine_table().choose("barrier", size=4, nbytes=0) == "tree"
    model = tuned.machine_model()
    (folder / tuned.MODEL).write_text(model.as_toml().replace("ranks = ", "ranks = 1"))
    assert tuned.machine_model().ranks == int(f"1{model.ranks}")


@pytest.mark.parametrize("name", [tuned.TABLE, tuned.MODEL])
def test_a_file_that_makes_no_sense_is_named(folder, name):
    (folder / name).write_text('[[row]]\ncollective = "gather"\nalgorithm = "rng"\n')
    read = tuned.machine_table if name == tuned.TABLE else tuned.machine_model
    with pytest.raises(ValueError) as caught:
        read()
    assert f"{folder}/{name}: " in str(caught.value)
    assert "run `collectives tune` again" in str(caught.value)
    (folder / name).write_text("this is = = no toml")
    with pytest.raises(ValueError, match="COLLECTIVES_TUNING=off"):
        read()
