"""`collectives tune`: measures ranks, and writes what init and explain take."""

from __future__ import annotations

import pytest

import launch
from collectives import tuned
from collectives.cost.measuring import FIT_SIZES, HELD_OUT_SIZES, measure_all
from collectives.cost.records import read_measurements
from collectives.specs import SPECS
from launch.command_line import main
from launch.commands.tune import MEASUREMENTS, _listed


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that a short run has written."""
    folder = tmp_path_factory.mktemp("tuning") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("collectives.cost.fitting._ROUNDS", 2)
        words = ["-n", "2", "--sweeps", "1", "--largest", "4K", "--output", str(folder)]
        assert main(["tune", *words]) == 0
    return folder


def test_every_algorithm_is_measured(place):
    found = read_measurements(place / MEASUREMENTS)
    assert {each.collective for each in found} == set(SPECS)
    assert all(each.seconds > 0 and each.ranks == 2 for each in found)
    sizes = {each.nbytes for each in found if each.collective == "allreduce"}
    assert sizes == {size for size in FIT_SIZES + HELD_OUT_SIZES if size <= 4096}


def test_each_sweep_is_told():
    def program(comm):
        told = []
        measure_all(comm, (64,), ("barrier",), sweeps=3, rounds=1, tell=told.append)
        return told

    assert launch.spawn(program, 2) == [[1, 2, 3]] * 2


def test_what_it_wrote_is_taken_by_ranks(place, monkeypatch):
    monkeypatch.setenv("COLLECTIVES_TUNING", str(place))
    table, model = tuned.machine_table(), tuned.machine_model()
    assert any(row.most == 2 for row in table.rows) and model.values.sum() > 0
    assert model.machine == tuned.machine_name()
    rows = launch.spawn(lambda comm: comm._table.as_settings(), 2)
    assert rows == [table.as_settings()] * 2


def test_it_can_work_on_what_it_has(place, capsys, monkeypatch):
    monkeypatch.setattr("collectives.cost.fitting._ROUNDS", 1)
    monkeypatch.setattr("launch.commands.tune._BEYOND", (3,))
    monkeypatch.setenv("COLLECTIVES_TUNING", str(place))
    before = (place / MEASUREMENTS).read_text()
    assert main(["tune", "--no-measure", "--default"]) == 0
    text = capsys.readouterr().out
    assert "median error of the model's predictions" in text and "below 64 KiB" in text
    assert f"written to {place}" in text
    assert (place / MEASUREMENTS).read_text() == before
    assert "for more ranks by prediction" in (place / tuned.TABLE).read_text()


def test_measurements_add_up(place, capsys, monkeypatch):
    monkeypatch.setattr("collectives.cost.fitting._ROUNDS", 1)
    monkeypatch.setattr("launch.commands.tune._measure", lambda size, sizes, sweeps: [])
    before = read_measurements(place / MEASUREMENTS)
    assert main(["tune", "--add", "-n", "2", "--output", str(place)]) == 0
    assert read_measurements(place / MEASUREMENTS) == before
    assert "for more ranks the package's table" in (place / tuned.TABLE).read_text()


@pytest.mark.full
def test_more_ranks_than_cores_are_left_out_of_the_model(capsys):
    from collectives.cost.measuring import Measurement
    from collectives.cost.work import Room
    from launch.commands.tune import _model

    room = Room(slots=8, slot_bytes=1 << 18, depth=16, cores=2)
    few, many = (
        [Measurement(collective="barrier", algorithm="tree", ranks=n, nbytes=0, seconds=1e-6)]
        for n in (2, 4)
    )
    model, _ = _model(few + many, room)
    assert model.ranks == 2
    assert "more ranks than the 2 cores: left out of the model" in capsys.readouterr().out
    model, _ = _model(many, room)
    assert model.ranks == 4 and "all there is, and predicted coarsely" in capsys.readouterr().out


WRONG = {
    "-n must be numbers of ranks >= 2, such as 2 or 2,4, found '1'": ["-n", "1"],
    "found 'two'": ["-n", "two"],
    "--sweeps must be at least 1, found 0": ["--sweeps", "0"],
    "--largest must be at least 64 bytes, found 8": ["--largest", "8"],
    "expected a number of bytes": ["--largest", "much"],
    "measure first, without --no-measure": ["--no-measure"],
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_requests_are_refused(capsys, tmp_path, text):
    place = tmp_path / "new"
    assert main(["tune", *WRONG[text], "--output", str(place)]) == 2
    assert text in capsys.readouterr().err
    assert not place.exists()


def test_without_a_folder_there_is_nothing_to_write_to(capsys, monkeypatch):
    monkeypatch.setenv("COLLECTIVES_TUNING", "off")
    assert main(["tune"]) == 2
    assert "COLLECTIVES_TUNING is off: expected --output FOLDER" in capsys.readouterr().err


def test_numbers_are_listed():
    assert _listed([2]) == "2" and _listed([2, 4, 8]) == "2, 4 and 8"
