"""A run is the same on any number of ranks and, resumed, the same as if never broken off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import launch
from trainers.checkpoints import all_checkpoints, read_checkpoint
from trainers.configuration import config_from
from trainers.errors import CheckpointError, ConfigurationError, DivergedError
from trainers.run import carry_out, check_run
from trainers.training import RunConfig, Trainer, begin_folder, check_folder, check_ranks


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("fixtures", "left"),
    [
        (("settings", "whole_run"), "comparison.png"),
        (("text_settings", "whole_text_run"), "sample.txt"),
    ],
    ids=["super_resolution", "language_model"],
)
def test_ranks_are_one_rank_and_resuming_leaves_no_trace(
    fixtures, left, request, tmp_path, alone, trained_weights, full
):
    settings, whole_run = map(request.getfixturevalue, fixtures)
    one = trained_weights(alone, {**settings, "run": str(tmp_path / "ranks1")})
    for size in (2, 3, 5) if full else (2,):
        folder, ranks = whole_run
        if size != 2:
            folder = tmp_path / f"ranks{size}"
            ranks = launch.spawn(trained_weights, size, {**settings, "run": str(folder)})
        for weights in ranks:
            for name, tensor in weights.items():
                torch.testing.assert_close(tensor, one[name], rtol=1e-3, atol=1e-5)
                assert torch.equal(tensor, ranks[0][name]), "ranks differ in bits"
        steps = [read_checkpoint(path).step for path in all_checkpoints(folder)]
        assert steps == [2, 4, 6]
        assert (folder / left).stat().st_size > (10_000 if left.endswith("png") else 20)
    whole, broken = whole_run[0], tmp_path / "broken"
    broken.mkdir()
    shutil.copy(whole / "checkpoint-00000004.safetensors", broken)
    records = (whole / "metrics.jsonl").read_text().splitlines()
    (broken / "metrics.jsonl").write_text("\n".join([*records, '{"step": 99, "lo']))
    launch.spawn(resumed, 2, {**settings, "run": str(broken)})
    expected = read_checkpoint(whole).tensors
    found = read_checkpoint(broken).tensors
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert losses(broken) == losses(whole)


def resumed(comm, settings):
    torch.set_num_threads(1)
    carry_out(config_from(settings, "settings"), comm, resume=True)


SPEEDS = ("_per_second", "communication_share")


def losses(folder: Path):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        (record["step"], {k: v for k, v in record.items() if not k.endswith(SPEEDS)})
        for record in records
    ]


def test_resuming_a_finished_run_judges_it_again(settings, alone, capsys):
    config = config_from(settings, "settings")
    first = carry_out(config, alone, resume=False)
    again = carry_out(config, alone, resume=True)
    assert again.step == first.step == 6
    said = capsys.readouterr().out
    assert "6 steps; everything is in" in said
    assert "this run has ended already: all of its 6 steps are done" in said
    assert "train.epochs above 3 trains on" in said
    assert "0 of 6 steps; everything is in" in said


def test_a_run_where_another_was_says_so_first_and_last(settings, alone, capsys):
    config = config_from(settings, "settings")
    carry_out(config, alone, resume=False)
    assert "earlier" not in capsys.readouterr().out
    carry_out(config, alone, resume=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{config.run} held an earlier run, which is now in {config.run}.1;")
    assert "--resume" in lines[0]
    assert lines[-1].endswith(f"everything is in {config.run}, the earlier run in {config.run}.1")


def test_learning_lowers_the_loss(settings, alone):
    settings["train"]["epochs"] = 20
    config = config_from(settings, "settings")
    carry_out(config, alone, resume=False)
    history = [values["loss"] for _, values in losses(config.run) if "loss" in values]
    assert history[-1] < history[0] / 2


@pytest.mark.parametrize("change", [{"precision": "bfloat16"}, {"average": 0.0}])
def test_other_ways_to_train(settings, alone, change):
    settings["train"] |= {"epochs": 1} | change
    settings["optimizer"] = {"kind": "adam", "clip": 0.1}
    trainer = carry_out(config_from(settings, "settings"), alone, resume=False)
    assert trainer.step == 2
    assert (trainer.average.model is trainer.model.module) == (change == {"average": 0.0})


def test_settings_changed_before_resuming_are_named(settings, alone, capsys):
    carry_out(config_from(settings, "settings"), alone, resume=False)
    settings["train"]["epochs"] = 4
    trainer = carry_out(config_from(settings, "settings"), alone, resume=True)
    assert trainer.step == 8
    said = capsys.readouterr().out
    assert "settings changed since: train.epochs" in said
    assert "2 of 8 steps; everything" in said


def test_a_loss_that_is_no_number_ends_the_run(settings, alone):
    settings["optimizer"]["rate"] = 1e30
    with pytest.raises(DivergedError, match=r"steps \d+ to \d+ is (nan|inf); rank 0"):
        carry_out(config_from(settings, "settings"), alone, resume=False)


def test_an_earlier_run_is_moved_aside(tmp_path):
    folder = tmp_path / "run"
    assert begin_folder(folder) is None
    assert begin_folder(folder) is None  # nothing was trained there yet
    for number in (1, 2):
        (folder / "checkpoint-00000001.safetensors").touch()
        assert begin_folder(folder) == tmp_path / f"run.{number}"
        assert not list(folder.iterdir())


@pytest.mark.parametrize("make", [begin_folder, check_folder])
def test_a_folder_that_cannot_be_written(tmp_path, make):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file/run: Not a directory"):
        make(tmp_path / "file" / "run")


def test_a_folder_that_cannot_be_moved_aside(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-00000001.safetensors").touch()

    def refuse(path, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(CheckpointError, match="cannot make the run's folder"):
        begin_folder(tmp_path)


def test_a_batch_smaller_than_the_ranks(config, alone):
    check_ranks(config, 7)
    with pytest.raises(ConfigurationError, match="each of the 8 ranks, found 7"):
        check_run(config, 8, resume=False)


def test_nothing_to_resume(config):
    with pytest.raises(CheckpointError, match=r"checkpoint-\*.safetensors in .* does not exist"):
        check_run(config, 1, resume=True)
    config.run.mkdir()
    with pytest.raises(CheckpointError, match="but the folder has none"):
        check_run(config, 1, resume=True)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("model", {"upscale_factor": 3}, "upscale_factor: expected 3 as configured, found 2"),
        ("optimizer", {"kind": "adam"}, "kind: expected 'adam' as configured, found 'muon'"),
        ("train", {"average": 0.0}, "average: expected 0.0 as configured, found 0.9"),
        ("train", {"epochs": 1}, "expected at most 2 steps, found 6"),
    ],
)
def test_a_checkpoint_of_another_run(settings, alone, section, change, message):
    trainer = Trainer(*_parts(settings), alone)
    trainer.step = 6
    trainer.config.run.mkdir()
    trainer.save()
    settings[section] |= change
    with pytest.raises(CheckpointError, match=message):
        check_run(config_from(settings, "settings"), 1, resume=True)


def test_a_checkpoint_of_another_task(settings, alone):
    config, task = _parts(settings)
    task.name = "cooking"
    config.run.mkdir()
    Trainer(config, task, alone).save()
    with pytest.raises(CheckpointError, match="expected 'super_resolution', found 'cooking'"):
        check_run(config, 1, resume=True)


def test_ranks_with_different_settings_are_refused(settings):
    def differing(comm, settings):
        carry_out(config_from({**settings, "seed": comm.rank}, "settings"), comm, resume=False)

    with pytest.raises(ConfigurationError, match="different configurations"):
        launch.spawn(differing, 2, settings)


def test_a_task_must_be_buildable(tmp_path):
    with pytest.raises(NotImplementedError, match="RunConfig has no build"):
        RunConfig(task="none", run=tmp_path).build()


def _parts(settings):
    config = config_from(settings, "settings")
    return config, config.build()
