"""The language model as a task: what a run reads, learns, leaves and refuses."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import launch
from trainers.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from trainers.configuration import config_from
from trainers.errors import CheckpointError, ConfigurationError, DataError
from trainers.language_model.generation import read_decoder
from trainers.run import carry_out, check_run
from trainers.training import Trainer, load_start


def built(settings, **changes):
    return config_from(with_data(settings, **changes), "settings").build()


def with_data(settings, **changes):
    return {**settings, "data": {**settings["data"], **changes}}


def test_a_batch_is_the_same_however_it_is_shared_out(text_settings):
    task = built(text_settings)
    for step in (0, 5, 1000):
        whole = task.samples(step, range(7))
        assert (whole.shape, whole.dtype) == ((7, 17), torch.int64)
        parts = [built(text_settings).samples(step, part) for part in (range(3), range(3, 7))]
        assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(task.samples(1, range(7)), task.samples(0, range(7)))


def test_a_rank_reads_a_part_of_its_own(text_settings):
    """Samples at successive positions come from successive parts of the tokens."""
    task = built(text_settings)
    tokens = np.asarray(task._shards.train)
    windows = np.lib.stride_tricks.sliding_window_view(tokens, 17)
    for position, sample in enumerate(task.samples(3, range(7))):
        places = np.flatnonzero((windows == sample.numpy()).all(1)) / len(tokens)
        assert ((position / 7 <= places) & (places <= (position + 1) / 7)).any()


def test_learning_beats_counting(text_settings, alone, capsys):
    text_settings["train"] |= {"epochs": 5, "steps_per_epoch": 60}
    text_settings["optimizer"] = {"kind": "muon", "rate": 1e-2, "matrix_rate": 3e-2}
    config = config_from(text_settings, "settings")
    carry_out(config, alone, resume=False)
    records = list(map(json.loads, (config.run / "metrics.jsonl").read_text().splitlines()))
    (last,) = [record for record in records if record["step"] == 300 and "perplexity" in record]
    assert last["perplexity"] == pytest.approx(math.exp(last["validation_loss"]))
    assert last["bits_per_byte"] == pytest.approx(
        last["validation_loss"] / math.log(2) / built(text_settings)._shards.bytes_per_token
    )
    speeds = [record for record in records if "tokens_per_second" in record]
    assert len(speeds) == 300
    said = capsys.readouterr().out
    assert f"val {last['validation_loss']:.3f}, {last['bits_per_byte']:.2f} bits/byte" in said
    assert "tokens/s" in said
    rows = {
        name: float(line.split("│")[2])
        for name in ("unigrams", "bigrams", "decoder")
        for line in said.splitlines()
        if f" {name} " in line
    }
    assert rows["decoder"] == pytest.approx(last["validation_loss"], abs=5e-4)
    assert rows["decoder"] < rows["bigrams"] < rows["unigrams"]
    sample = (config.run / "sample.txt").read_text()
    assert sample.startswith("def ")
    assert sample in said


def test_byte_pairs_train_and_the_checkpoint_keeps_them(text_settings, alone):
    settings = with_data(text_settings, tokenizer="bpe", vocabulary=290)
    settings["train"] |= {"epochs": 1}
    config = config_from(settings, "settings")
    carry_out(config, alone, resume=False)
    decoder, tokenizer = read_decoder(config.run)
    assert (tokenizer.kind, tokenizer.vocabulary) == ("bpe", 290)
    assert decoder.embedding.num_embeddings == 290
    assert tokenizer.form() == built(settings).attachments()["tokenizer"]


def test_a_run_starts_from_another_runs_weights(text_settings, whole_text_run, alone, tmp_path):
    start = {**text_settings, "start": str(whole_text_run[0])}
    check_run(config_from(start, "settings"), 1, resume=False)
    trainer = Trainer(config_from(start, "settings"), built(start), alone)
    best = read_checkpoint(whole_text_run[0]).best_weights
    assert trainer.step == 0
    assert not trainer.optimization.state()
    for name, weight in trainer.model.module.state_dict().items():
        assert torch.equal(weight, best[name])


def test_ranks_other_than_0_need_no_start(text_settings, whole_text_run):
    def begun(comm, settings):
        config = config_from(settings, "settings")
        task = config.build()
        if comm.rank:  # has a file of this name, too, but it is not looked into
            object.__setattr__(config, "start", "/nowhere")
        trainer = Trainer(config, task, comm)
        assert trainer.average.model is not trainer.network
        both = (trainer.network, trainer.average.model)
        return [{name: w.clone() for name, w in each.state_dict().items()} for each in both]

    start = {**text_settings, "start": str(whole_text_run[0])}
    best = read_checkpoint(whole_text_run[0]).best_weights
    for network, average in launch.spawn(begun, 2, start):
        for weights in (network, average):
            assert all(torch.equal(weight, best[name]) for name, weight in weights.items())


def test_a_start_is_refused_before_any_rank(text_settings, whole_text_run, whole_run, tmp_path):
    def refusal(**settings):
        wrong = {**text_settings, "start": str(whole_text_run[0]), **settings}
        with pytest.raises((CheckpointError, ConfigurationError)) as caught:
            check_run(config_from(wrong, "settings"), 1, resume=False)
        return str(caught.value)

    other = with_data(text_settings, tokenizer="bpe", vocabulary=290)["data"]
    assert (
        "of another vocabulary: expected 290 tokens (bpe), as data.tokenizer and data.vocabulary "
        "say, found 256 tokens (bytes)"
    ) in refusal(data=other)
    assert "of another model: " in refusal(model={"layers": 1, "width": 32, "context": 16})
    assert "expected 'language_model', found 'super_resolution'" in refusal(start=str(whole_run[0]))
    assert "does not exist" not in refusal(start=str(tmp_path))
    assert "cannot read the checkpoint" in refusal(start=str(tmp_path / "none"))
    assert "outside the run's own folder" in refusal(run=str(whole_text_run[0]))


def test_weights_for_other_tokens_are_refused(text_settings, whole_text_run):
    task = built(text_settings, tokenizer="bpe", vocabulary=290)
    with pytest.raises(CheckpointError, match=r"of another vocabulary: expected 290 .* found 256"):
        load_start(task.new_model(), task, whole_text_run[0])


def test_the_photographs_task_starts_from_weights_too(settings, whole_run, whole_text_run, alone):
    start = {**settings, "start": str(whole_run[0])}
    check_run(config_from(start, "settings"), 1, resume=False)
    trainer = Trainer(config_from(start, "settings"), config_from(start, "").build(), alone)
    best = read_checkpoint(whole_run[0]).best_weights
    for name, weight in trainer.model.module.state_dict().items():
        assert torch.equal(weight, best[name])
    wrong = config_from({**settings, "start": str(whole_text_run[0])}, "settings")
    with pytest.raises(CheckpointError, match="expected 'super_resolution', found 'language_mod"):
        check_run(wrong, 1, resume=False)


def test_resuming_on_text_with_another_vocabulary(text_settings, texts, alone, tmp_path):
    settings = with_data(text_settings, tokenizer="bpe", vocabulary=290)
    settings["train"] |= {"epochs": 1}
    carry_out(config_from(settings, "settings"), alone, resume=False)
    check_run(config_from(settings, "settings"), 1, resume=True)
    other = tmp_path / "other"
    other.mkdir()
    for path in texts.iterdir():
        (other / path.name).write_text(path.read_text().replace("tree", "bush"))
    changed = config_from(with_data(settings, path=str(other)), "settings")
    message = r"of another vocabulary: expected 290 tokens \(bpe \w+\).*found 290 tokens \(bpe \w+"
    with pytest.raises(CheckpointError, match=message):
        check_run(changed, 1, resume=True)
    with pytest.raises(CheckpointError, match=message):
        carry_out(changed, alone, resume=True)


def test_a_checkpoint_without_a_tokenizer(text_settings, whole_text_run, tmp_path):
    read = read_checkpoint(whole_text_run[0])
    bare = Checkpoint(task=read.task, step=6, config=read.config, tensors=read.tensors)
    path = write_checkpoint(tmp_path, bare, keep=1)
    start = config_from({**text_settings, "start": str(path)}, "settings")
    with pytest.raises(CheckpointError, match="expected a tokenizer attached to it, found nothing"):
        start.build()


def test_ranks_with_different_tokenizers_are_refused(text_settings, texts):
    def differing(comm, settings):
        config = config_from(settings, "settings")
        task = config.build()
        task.attachments = lambda: {"tokenizer": str(comm.rank)}
        object.__setattr__(config, "build", lambda: task)
        carry_out(config, comm, resume=False)

    with pytest.raises(ConfigurationError, match="different things of their data: tokenizer"):
        launch.spawn(differing, 2, text_settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": []}, "data.path: expected at least one path, found none"),
        ({"path": 5}, "data.path: expected a path or a list, each a path, or null, found 5"),
        ({"tokenizer": "words"}, "data.tokenizer: expected 'bpe' or 'bytes', found 'words'"),
        ({"vocabulary": 300}, r"vocabulary: expected 256 \(or 0\) with .* bytes, found 300"),
        (
            {"tokenizer": "bpe", "vocabulary": 257},
            "vocabulary: expected more than 257 .* with data.tokenizer bpe, or 0, found 257",
        ),
        ({"held_out_share": 0.0}, "data.held_out_share: expected a number between 0 and 1, .* 0.0"),
        ({"validation_windows": 0}, "data.validation_windows: expected 1 or more, found 0"),
        ({"vocabularies": 0}, r"unknown key 'data.vocabularies' \(did you mean 'data.vocabulary'"),
    ],
)
def test_a_wrong_setting_is_named(text_settings, change, message):
    with pytest.raises(ConfigurationError, match=message):
        config_from(with_data(text_settings, **change), "settings")


def test_settings_of_the_data(text_settings, texts):
    files = sorted(map(str, texts.iterdir()))
    several = config_from(with_data(text_settings, path=files), "settings")
    assert list(map(str, several.data.paths)) == list(map(str, files))
    assert config_from(with_data(text_settings, path=None), "settings").data.paths is None
    assert several.build().attachments() == built(text_settings).attachments()
    sizes = [
        config_from(with_data(text_settings, **data), "").data.tokens
        for data in ({}, {"tokenizer": "bpe"}, {"tokenizer": "bpe", "vocabulary": 500})
    ]
    assert sizes == [256, 2048, 500]


def test_text_that_is_too_short(text_settings, tmp_path):
    (tmp_path / "a.txt").write_text("word " * 10)
    (tmp_path / "b.txt").write_text("word " * 1000)
    with pytest.raises(DataError, match=r"expected at least \S+ (tokens to train on|held-out tok)"):
        built(text_settings, path=[str(tmp_path / "a.txt")])
    with pytest.raises(DataError, match="expected at least 17 held-out tokens"):
        built(text_settings, path=str(tmp_path / "b.txt"), held_out_share=0.002)
