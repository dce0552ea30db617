"""`collectives train`, `generate` and `finetune` with language models, as users start them."""

from __future__ import annotations

import json
import re

import pytest
import torch
import yaml

from launch.command_line import main
from launch.commands import train
from trainers.checkpoints import read_checkpoint
from trainers.configuration import read_config
from trainers.finetuning import finetuning_config

FAIL = 2


@pytest.fixture
def file(text_settings, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(text_settings))
    return path


@pytest.fixture
def other_texts(texts, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    for path in sorted(texts.iterdir())[:4]:
        (folder / path.name).write_text(path.read_text().upper())
    return folder


def said_by(capfd, *words):
    assert main(list(map(str, words))) == 0, capfd.readouterr().err
    return capfd.readouterr().out


def refused(capfd, *words):
    assert main(list(map(str, words))) == FAIL
    output = capfd.readouterr()
    assert output.out == ""
    return output.err


@pytest.mark.timeout(300)
def test_train_generate_finetune(file, text_settings, other_texts, texts, tmp_path, capfd):
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    said = said_by(capfd, "train", file, "-n", 2, "--threads", 1)
    assert "tokens/s" in said
    assert "bits/byte" in said

    def text(*words):
        return said_by(capfd, "generate", *words)

    fixed = text(run, "def ", "--tokens", 20, "--temperature", 0)
    assert fixed.startswith("def ")
    assert 5 <= len(fixed.encode()) <= 4 * 20
    assert fixed == text(run, "def ", "--tokens", 20, "--top-k", 1, "--seed", 5)
    drawn = [text(read_path(run), "def ", "--seed", seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]

    words = ["finetune", run, "--data", other_texts, texts / "7.txt", "-n", 2, "--threads", 1]
    said = said_by(capfd, *words, "--run", tuned, "--set", "train.epochs=1")
    assert f"2 steps; everything is in {tuned}" in said
    tokens = int(re.search(r"passes over the text, ([\d,]+) tokens to", said)[1].replace(",", ""))
    assert f"{2 * 7 * 16 / tokens:.3g} passes over the text" in said
    records = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    first, last = records[0], records[-1]
    assert (first["step"], last["step"]) == (0, 2)
    shown = {key: re.search(rf"│ {key} +│ ([\d.]+)", said)[1] for key in ROWS}
    assert shown == {
        "before the first step": f"{first['validation_loss']:.3f}",
        "decoder": f"{last['validation_loss']:.3f}",
    }
    assert first["validation_loss"] == pytest.approx(judged_on(tuned, run), rel=1e-4)
    before, after = read_checkpoint(run), read_checkpoint(tuned)
    assert after.attachments == before.attachments
    assert after.config["start"] == str(read_path(run))
    assert after.config["data"]["path"] == [str(other_texts), str(texts / "7.txt")]
    assert after.config["optimizer"]["rate"] == pytest.approx(
        before.config["optimizer"]["rate"] / 10
    )
    name = "embedding.weight"
    moved = (after.best_weights[name] - before.best_weights[name]).abs().max()
    assert 0 < moved < 1e-3  # two steps of a tenth of 1e-3 at most, from there and not from anew


ROWS = ("before the first step", "decoder")


def judged_on(tuned, run):
    """What the weights of `run` lose on the text held out in `tuned`."""
    task = read_config(tuned / "config.yaml").build()
    model = task.new_model()
    model.load_state_dict(read_checkpoint(run).best_weights)
    return task._held_out.loss(model)


def read_path(run):
    return max(run.glob("checkpoint-*.safetensors"))


@pytest.mark.full
def test_a_finetuned_run_goes_on(whole_text_run, other_texts, tmp_path, capfd):
    run, out = whole_text_run[0], tmp_path / "tuned"
    words = ["finetune", run, "--data", other_texts, "--run", out, "--threads", 1]
    said_by(capfd, *words, "--set", "train.epochs=2")
    whole = read_checkpoint(out)
    read_path(out).unlink()
    assert read_checkpoint(out).step == 2
    said = said_by(capfd, "train", out / "config.yaml", "--resume", "--threads", 1)
    assert "resuming from" in said
    found = read_checkpoint(out)
    assert found.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in whole.tensors.items())


@pytest.mark.full
def test_the_default_folder_and_the_latest_file(whole_text_run, texts, tmp_path):
    run = whole_text_run[0]
    config = finetuning_config(run, [texts])
    assert str(config.run) == f"{run}-finetuned"
    assert config.start == read_path(run)
    assert config.data.path == texts
    assert finetuning_config(read_path(run), [texts], tmp_path).run == tmp_path


@pytest.mark.full
def test_finetuning_on_photographs(whole_run, photographs, tmp_path, capfd):
    run, out = whole_run[0], tmp_path / "tuned"
    words = ["finetune", run, "--data", photographs, "--run", out, "--threads", 1]
    said = said_by(capfd, *words, "--set", "train.epochs=1")
    assert "gain" in said
    assert read_checkpoint(out).config["data"]["held_out"] is None
    message = refused(capfd, "finetune", run, "--data", photographs, photographs, "--run", out)
    assert "data.path: expected a path, or null, found [" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "model.width=33"], "model.width: expected a multiple of model.heads (4)"),
        (["--set", "model.layer=3"], "unknown key 'model.layer' (did you mean 'model.layers'?)"),
        (["--set", "data.path=/nowhere"], "files or folders of text, found nothing at /nowhere"),
        (["--set", "train.batch=4000"], "tokens to train on (a window of 17 for each of a batch"),
        (
            ["--set", "data.held_out_share=0.00001", "--set", "model.context=5000"],
            "tokens to train",
        ),
        (["--set", "start=/nowhere"], "cannot read the checkpoint /nowhere"),
        (["--set", "data.cache=/proc/x"], "cannot make a folder for tokens in /proc/x"),
    ],
)
def test_what_is_wrong_is_said_before_a_rank_starts(file, capfd, words, message):
    error = refused(capfd, "train", file, *words)
    assert error.startswith("collectives train: error: ")
    assert message in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokens", 0], "tokens: expected 1 or more, found 0"),
        (["--temperature", -1], "temperature: expected 0 or more, found -1.0"),
        (["--top-k", -1], "top_k: expected 0 or more, found -1"),
    ],
)
def test_what_cannot_be_generated(whole_text_run, whole_run, tmp_path, capfd, words, message):
    assert message in refused(capfd, "generate", whole_text_run[0], "def ", *words)
    error = refused(capfd, "generate", whole_run[0], "def ")
    assert "expected 'language_model', found 'super_resolution'" in error
    assert "the folder has none" in refused(capfd, "generate", tmp_path, "def ")


def test_what_cannot_be_finetuned(whole_text_run, texts, tmp_path, capfd):
    run = whole_text_run[0]
    error = refused(capfd, "finetune", tmp_path, "--data", texts)
    assert error.startswith("collectives finetune: error: ")
    assert "the folder has none" in error
    error = refused(capfd, "finetune", run, "--data", tmp_path / "none", "--run", tmp_path / "out")
    assert "found nothing at" in error
    error = refused(capfd, "finetune", run, "--data", texts, "--run", run)
    assert "outside the run's own folder" in error
    more = ["--run", tmp_path / "out", "--set", "data.tokenizer=bpe"]
    error = refused(capfd, "finetune", run, "--data", texts, *more)
    assert "of another vocabulary: expected 2048 tokens (bpe)" in error
    assert "has its tokenizer: leave both settings as they are there" in error
    more = ["--run", tmp_path / "out", "--set", "lora.layers=[query,foo]"]
    error = refused(capfd, "finetune", run, "--data", texts, *more)
    assert f"error: {run} on other data --set lora.layers=[query,foo]: lora.layers: exp" in error


def test_resuming_on_other_data_is_not_finetuning(whole_text_run, file, other_texts, capfd):
    run = whole_text_run[0]
    words = ["train", file, "--resume", "--set", f"run={run}", "--set", "data.tokenizer=bpe"]
    error = refused(capfd, *words, "--set", "data.vocabulary=260")
    assert "of another vocabulary: expected 260 tokens" in error
    assert "with its weights on other data is `collectives finetune`" in error


@pytest.mark.parametrize("words", [["generate", "x", "y"], ["finetune", "x", "--data", "y"]])
def test_missing_packages_are_named(words, monkeypatch, capfd):
    monkeypatch.setattr(train, "NEEDED", ("torch", "no_such_package"))
    assert "(no_such_package): pip install" in refused(capfd, *words)
