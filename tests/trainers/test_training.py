"""A run is the same on any number of ranks and, resumed, the same as if never broken off."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from harness.tiny_runs import WAYS, begin_broken_off, run_all

import launch
from trainers import progress
from trainers.checkpoints import all_checkpoints, read_checkpoint
from trainers.configuration import config_from
from trainers.errors import CheckpointError, ConfigurationError, DivergedError, RecordError
from trainers.run import carry_out, check_run
from trainers.run_config import RunConfig, check_ranks
from trainers.run_folder import begin_folder, check_folder
from trainers.training import Trainer

SETTINGS = {
    "super_resolution": "settings",
    "language_model": "text_settings",
    "diffusion": "diffusion_settings",
}
every_task = pytest.mark.parametrize("task", SETTINGS)
CLOSE = {"rtol": 1e-3, "atol": 1e-5}
ROUGH = {"rtol": 2e-2, "atol": 2e-3}


def assert_same_weights(ranks, expected, tolerance=CLOSE):
    for weights in ranks:
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, expected[name], **tolerance)
            assert torch.equal(tensor, ranks[0][name]), "ranks differ in bits"


def assert_same_checkpoints(folder, other, tolerance=None):
    expected, found = read_checkpoint(folder).tensors, read_checkpoint(other).tensors
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if tolerance is None:
            assert torch.equal(found[name], tensor), name
        else:
            torch.testing.assert_close(found[name], tensor, **tolerance)


@pytest.mark.timeout(300)
@every_task
def test_ranks_are_one_rank(task, request, tmp_path, alone, trained_weights, runs_of_two, full):
    settings = request.getfixturevalue(SETTINGS[task])
    one = trained_weights(alone, {**settings, "run": str(tmp_path / "ranks1")})
    assert_same_weights(runs_of_two[task][1], one)
    for size in (3, 5) if full else ():
        changed = {**settings, "run": str(tmp_path / f"ranks{size}")}
        assert_same_weights(launch.spawn(trained_weights, size, changed), one)


@every_task
def test_resuming_leaves_no_trace(task, runs_of_two):
    whole, broken = runs_of_two[task][0], runs_of_two[f"{task} resumed"][0]
    assert [read_checkpoint(path).step for path in all_checkpoints(whole)] == [2, 4, 6]
    assert_same_checkpoints(whole, broken)
    assert losses(broken) == losses(whole)


SPEEDS = ("_per_second", "_ms")


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
    events = json.loads((config.run / "trace.json").read_text())["traceEvents"]
    assert len(events) > 30, "of the run that was, not of one of no step"
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


@every_task
@pytest.mark.parametrize("way", WAYS)
def test_other_ways_lead_to_the_same_weights(task, way, runs_of_two):
    tolerance = ROUGH if way == "wire" else CLOSE
    assert_same_weights(runs_of_two[f"{task} {way}"][1], runs_of_two[task][1][0], tolerance)


@every_task
def test_what_is_remembered_in_parts_is_saved_as_if_it_were_whole(task, runs_of_two):
    assert_same_checkpoints(runs_of_two[task][0], runs_of_two[f"{task} sharded"][0], CLOSE)


@every_task
@pytest.mark.parametrize("kind", ["", "adam "])
def test_a_sharded_run_goes_on_bit_for_bit_and_on_other_ranks(
    task, kind, runs_of_two, request, tmp_path, alone
):
    whole = runs_of_two[f"{task} {kind}sharded"][0]
    assert_same_checkpoints(whole, runs_of_two[f"{task} {kind}sharded resumed"][0])
    settings = request.getfixturevalue(SETTINGS[task])
    begin_broken_off(tmp_path / "broken", whole)
    changed = {**settings, "run": str(tmp_path / "broken")}
    if kind:
        changed["optimizer"] = {"kind": "adam"}
    carry_out(config_from(changed, "settings"), alone, resume=True)
    assert_same_checkpoints(whole, tmp_path / "broken", CLOSE)


@pytest.mark.full
@every_task
def test_a_compiled_model_leads_to_the_same_weights(task, request, tmp_path, runs_of_two):
    settings = request.getfixturevalue(SETTINGS[task])
    ways = {"whole": {"bucket_bytes": 20_000}, "sharded": {"shard": True}}
    plans = [
        (way, {**settings, "run": str(tmp_path / way), "parallel": parallel,
               "train": settings["train"] | {"compile": True}}, None)
        for way, parallel in ways.items()
    ]  # fmt: skip
    first, second = launch.spawn(run_all, 2, plans)
    for way in ways:
        assert_same_weights([first[way][1], second[way][1]], runs_of_two[task][1][0])


GOLDEN = json.loads((Path(__file__).parent / "golden_losses.json").read_text())


@every_task
def test_losses_are_those_that_were_kept(task, runs_of_two):
    """What a run computes has not changed: `losses` of a tiny run, two ranks, float32."""
    found = [record["loss"] for _, record in losses(runs_of_two[task][0]) if "loss" in record]
    assert found == pytest.approx(GOLDEN[task], rel=1e-4)


def test_evaluations_and_checkpoints_are_as_often_as_asked(settings, alone):
    settings["train"] |= {"epochs": 1, "steps_per_epoch": 7, "evaluate_every": 3, "save_every": 2}
    config = config_from(settings, "settings")
    carry_out(config, alone, resume=False)
    steps = [read_checkpoint(path).step for path in all_checkpoints(config.run)]
    assert steps == [2, 4, 6, 7]
    judged = [step for step, record in losses(config.run) if "loss" not in record]
    assert judged == [3, 6, 7]


def test_an_end_of_an_epoch_is_one_line(settings, alone, capsys, monkeypatch):
    monkeypatch.setattr(progress, "REDRAW_EVERY", 0.0)
    carry_out(config_from(settings, "settings"), alone, resume=False)
    said = re.findall(r"step (\d)/6 .*?([\r\n])", capsys.readouterr().out)
    assert said == [("1", "\r"), ("2", "\n"), ("3", "\r"), ("4", "\n"), ("5", "\r"), ("6", "\n")]


def test_what_a_run_leaves(whole_run, whole_text_run, whole_diffusion_run):
    assert (whole_diffusion_run[0] / "samples.png").stat().st_size > 4_000
    assert (whole_run[0] / "comparison.png").stat().st_size > 10_000
    assert (whole_text_run[0] / "sample.txt").stat().st_size > 20
    left = {path.name for path in whole_run[0].iterdir()}
    assert {"curve.png", "trace.json", "communication.txt", "comparison.png"} <= left
    text = (whole_run[0] / "communication.txt").read_text()
    assert "a step on 2 ranks" in text
    assert "efficiency against one rank" in text
    events = json.loads((whole_run[0] / "trace.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {0, 1}


def test_without_a_trace(settings, alone):
    settings["train"] |= {"epochs": 1, "trace": 0}
    carry_out(config_from(settings, "settings"), alone, resume=False)
    assert not (Path(settings["run"]) / "trace.json").exists()


def test_weights_that_are_no_numbers_are_not_saved(settings, alone):
    trainer = Trainer(*_parts(settings), alone)
    trainer.config.run.mkdir()
    trainer.step = 1
    kept = trainer.save()
    trainer.step = 2
    with torch.no_grad():
        trainer.network.conv2.bias[3] = torch.nan
    with pytest.raises(DivergedError) as caught:
        trainer.save()
    assert "rank 0: after step 2 model/conv2.bias holds what is" in str(caught.value)
    assert "a smaller optimizer.rate and optimizer.matrix_rate, or" in str(caught.value)
    assert str(caught.value).endswith(f"; --resume goes on from {kept}")
    assert all_checkpoints(trainer.config.run) == [kept]


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
    settings["optimizer"]["kind"] = "adam"
    left = "a smaller optimizer.rate, or optimizer.clip; no checkpoint has been written, so"
    with pytest.raises(DivergedError, match=rf"the loss of step \d+ is (nan|inf), .*{left}"):
        carry_out(config_from(settings, "settings"), alone, resume=False)


FULL = "No space left on device"


def test_a_disk_that_is_full(settings, alone):
    """What was written stays, and is named; `/dev/full` is such a disk."""
    run = Path(settings["run"])
    run.mkdir()
    (run / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RecordError, match=f"cannot write {run}/metrics.jsonl: {FULL}; no checkp"):
        carry_out(config_from(settings, "settings"), alone, resume=False)
    (run / "metrics.jsonl").unlink()
    (run / ".checkpoint-00000004.safetensors.part").symlink_to("/dev/full")
    with pytest.raises(CheckpointError) as caught:
        carry_out(config_from(settings, "settings"), alone, resume=False)
    assert f"{run}/checkpoint-00000004.safetensors (" in str(caught.value)
    assert str(caught.value).endswith(
        f"{FULL}; what was there before is intact; --resume goes on from "
        f"{run}/checkpoint-00000002.safetensors"
    )


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
    parts = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=3))
    with pytest.raises(
        ConfigurationError, match="each of the 3 ranks in each of its 3 parts, found 7"
    ):
        check_ranks(parts, 3)


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
