"""A run is the same on any number of ranks and, resumed, the same as if never broken off."""

from __future__ import annotations

import dataclasses
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
from trainers.run_config import RunConfig, check_ranks
from trainers.run_folder import begin_folder, check_folder
from trainers.training import Trainer

TASKS = {
    "super_resolution": ("settings", "whole_run"),
    "language_model": ("text_settings", "whole_text_run"),
    "diffusion": ("diffusion_settings", "whole_diffusion_run"),
}
every_task = pytest.mark.parametrize("fixtures", TASKS.values(), ids=TASKS)
# Two of them for what the trainer does by itself, whatever its task.
every_task_if_full = pytest.mark.parametrize(
    "fixtures",
    [
        pytest.param(each, marks=pytest.mark.full if name == "diffusion" else (), id=name)
        for name, each in TASKS.items()
    ],
)


@pytest.mark.timeout(300)
@every_task
def test_ranks_are_one_rank_and_resuming_leaves_no_trace(
    fixtures, request, tmp_path, alone, trained_weights, full
):
    settings, whole_run = map(request.getfixturevalue, fixtures)
    left, least = {
        "settings": ("comparison.png", 10_000),
        "text_settings": ("sample.txt", 20),
        "diffusion_settings": ("samples.png", 4_000),
    }[fixtures[0]]
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
        assert (folder / left).stat().st_size > least
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


def with_changes(comm, settings, variants):
    """The weights after runs with other settings, by their names."""
    torch.set_num_threads(1)
    found = {}
    for name, (train, parallel) in variants.items():
        run = f"{settings['run']}-{name}"
        changed = {**settings, "run": run, "train": settings["train"] | train, "parallel": parallel}
        trainer = carry_out(config_from(changed, "settings"), comm, resume=False)
        state = trainer.network.state_dict()
        found[name] = {key: tensor.clone() for key, tensor in state.items()}
    return found


def assert_same_weights(ranks, expected, tolerances):
    assert ranks[0].keys() == tolerances.keys()
    for variant, tolerance in tolerances.items():
        for name, tensor in ranks[0][variant].items():
            torch.testing.assert_close(tensor, expected[name], **tolerance)
            assert torch.equal(tensor, ranks[1][variant][name]), f"{variant}: ranks differ in bits"


CLOSE = {"rtol": 1e-3, "atol": 1e-5}
ROUGH = {"rtol": 2e-2, "atol": 2e-3}


@pytest.mark.timeout(300)
@every_task_if_full
def test_other_ways_lead_to_the_same_weights(fixtures, request):
    settings, whole_run = map(request.getfixturevalue, fixtures)
    variants = {
        "accumulated": ({"accumulate": 3}, {}),
        "cut": ({}, {"unused": "zero", "bucket_bytes": 1}),
        "wire": ({}, {"wire": "bfloat16"}),
        "sharded": ({}, {"shard": True}),
    }
    ranks = launch.spawn(with_changes, 2, settings, variants)
    tolerances = {"accumulated": CLOSE, "cut": CLOSE, "wire": ROUGH, "sharded": CLOSE}
    assert_same_weights(ranks, whole_run[1][0], tolerances)
    # What is remembered on the ranks in parts is saved as if it were whole.
    expected = read_checkpoint(whole_run[0]).tensors
    found = read_checkpoint(Path(f"{settings['run']}-sharded")).tensors
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **CLOSE)


@pytest.mark.parametrize("kind", ["muon", "adam"])
def test_a_sharded_run_goes_on_bit_for_bit_and_on_other_ranks(settings, tmp_path, alone, kind):
    settings["optimizer"] = {"kind": kind}
    settings["parallel"] = {"shard": True}
    launch.spawn(with_changes, 2, settings, {"whole": ({}, {"shard": True})})
    whole = Path(f"{settings['run']}-whole")
    for ranks, parallel in ((2, {"shard": True}), (1, {})):
        broken = tmp_path / f"broken-{ranks}"
        broken.mkdir()
        shutil.copy(whole / "checkpoint-00000004.safetensors", broken)
        changed = {**settings, "run": str(broken), "parallel": parallel}
        if ranks == 1:
            carry_out(config_from(changed, "settings"), alone, resume=True)
        else:
            launch.spawn(resumed, ranks, changed)
        expected, found = (read_checkpoint(path).tensors for path in (whole, broken))
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            if ranks == 2:
                assert torch.equal(found[name], tensor), name
            else:
                torch.testing.assert_close(found[name], tensor, **CLOSE)


@pytest.mark.full
@every_task
def test_a_compiled_model_leads_to_the_same_weights(fixtures, request):
    settings = request.getfixturevalue(fixtures[0])
    settings["train"]["epochs"] = 1
    variants = {
        "eager": ({}, {}),
        "compiled": ({"compile": True}, {"bucket_bytes": 20_000}),
        "compiled-sharded": ({"compile": True}, {"shard": True}),
    }
    ranks = launch.spawn(with_changes, 2, settings, variants)
    assert_same_weights(ranks, ranks[0]["eager"], dict.fromkeys(variants, CLOSE))


GOLDEN = json.loads((Path(__file__).parent / "golden_losses.json").read_text())


@every_task
def test_losses_are_those_that_were_kept(fixtures, request):
    """What a run computes has not changed: `losses` of a tiny run, two ranks, float32."""
    _, whole_run = map(request.getfixturevalue, fixtures)
    found = [record["loss"] for _, record in losses(whole_run[0]) if "loss" in record]
    assert found == pytest.approx(GOLDEN[fixtures[0]], rel=1e-4)


def test_evaluations_and_checkpoints_are_as_often_as_asked(settings, alone):
    settings["train"] |= {"epochs": 1, "steps_per_epoch": 7, "evaluate_every": 3, "save_every": 2}
    config = config_from(settings, "settings")
    carry_out(config, alone, resume=False)
    steps = [read_checkpoint(path).step for path in all_checkpoints(config.run)]
    assert steps == [2, 4, 6, 7]
    judged = [step for step, record in losses(config.run) if "loss" not in record]
    assert judged == [3, 6, 7]


def test_what_a_run_leaves(whole_run):
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
    with pytest.raises(DivergedError, match=r"rank 0: after step 2 model/conv2.bias holds what is"):
        trainer.save()
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
    with pytest.raises(DivergedError, match=r"the loss of step \d+ is (nan|inf), on rank 0"):
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
