"""Adapters: nothing at first, all that is learned afterwards, and nothing once they are merged."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml

import collectives
import launch
from launch.command_line import main
from trainers.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from trainers.configuration import config_from, read_config
from trainers.errors import CheckpointError, ConfigurationError
from trainers.finetuning import finetuning_config
from trainers.language_model.generation import read_decoder
from trainers.language_model.low_rank import (
    LowRankConfig,
    adapters_of,
    add_adapters,
    merged,
    merged_weights,
)
from trainers.language_model.network import Decoder, DecoderConfig
from trainers.run import carry_out, check_run
from trainers.training import Trainer

SMALL = DecoderConfig(layers=2, width=32, heads=4, key_value_heads=2, context=24)
EVERY = ["query", "key", "value", "output", "gate", "up", "down"]
CONFIGS = Path(__file__).parents[2] / "configs"


def adapted(config, shape=SMALL, vocabulary=61):
    torch.manual_seed(0)
    decoder = Decoder(shape, vocabulary)
    add_adapters(decoder, config)
    return decoder


def tokens(vocabulary=61):
    return torch.randint(vocabulary, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layers", [EVERY, ["query", "down"]])
def test_it_begins_as_it_was_and_merged_it_stays_the_same(layers):
    torch.manual_seed(0)
    plain = Decoder(SMALL, 61)
    base = {name: weight.clone() for name, weight in plain.state_dict().items()}
    config = LowRankConfig(rank=3, alpha=5, layers=layers)
    decoder = adapted(config)
    assert torch.equal(decoder(tokens()), plain(tokens()))
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.requires_grad:
                assert name.split(".")[-2] in layers
                parameter.add_(0.2 * torch.randn(parameter.shape))
    changed = decoder.state_dict()
    assert all(torch.equal(changed[name], weight) for name, weight in base.items())
    assert len(adapters_of(changed)) == 2 * 2 * len(layers)
    found = decoder(tokens())
    assert (found - plain(tokens())).abs().max() > 0.1
    plain.load_state_dict(merged(changed, config.scale))
    torch.testing.assert_close(plain(tokens()), found, rtol=1e-4, atol=1e-4)


def test_merging_by_definition():
    a, b, w = torch.randn(2, 5), torch.randn(3, 2), torch.randn(3, 5)
    weights = {"x.weight": w, "x.adapter_in": a, "x.adapter_out": b, "norm.weight": w}
    found = merged(weights, LowRankConfig(rank=2, alpha=3).scale)
    assert found.keys() == {"x.weight", "norm.weight"}
    torch.testing.assert_close(found["x.weight"], w + 3 / 2 * (b @ a))
    assert torch.equal(found["norm.weight"], w)
    assert LowRankConfig(rank=5).scale == 2


@pytest.mark.parametrize(
    ("rank", "layers"), [(2, EVERY), (4, None), (4, ["query", "value"])], ids=str
)
def test_fewer_than_two_in_a_hundred_are_trained(rank, layers):
    shape = read_config(CONFIGS / "llm_small.yaml")
    config = LowRankConfig(rank=rank, **({"layers": layers} if layers else {}))
    decoder = adapted(config, shape.model, shape.data.tokens)
    sides = {
        "query": 128 + 128,
        "key": 128 + 64,
        "value": 128 + 64,
        "output": 128 + 128,
        **dict.fromkeys(("gate", "up", "down"), 128 + 512),
    }
    trained = sum(p.numel() for p in decoder.parameters() if p.requires_grad)
    assert trained == 6 * rank * sum(sides[layer] for layer in config.layers)
    assert 0.004 < trained / sum(p.numel() for p in decoder.parameters()) < 0.02


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rank": -1}, "lora.rank: expected 0 or more, found -1"),
        ({"alpha": -1.0}, "lora.alpha: expected 0 or more, found -1.0"),
        ({"alpha": float("nan")}, "lora.alpha: expected 0 or more, found nan"),
        ({"layers": []}, "lora.layers: expected at least one layer, found none"),
    ],
)
def test_settings_that_do_not_fit(setting, message):
    with pytest.raises(ConfigurationError, match=message):
        LowRankConfig(**setting)


def test_settings_that_do_not_fit_the_rest(text_settings):
    message = "start: expected a checkpoint, whose weights stay .* lora.rank 2 .*, found none"
    with pytest.raises(ConfigurationError, match=message):
        config_from({**text_settings, "lora": {"rank": 2}}, "settings")
    with pytest.raises(ConfigurationError, match=r"lora\.layers: expected a list, each 'query' or"):
        config_from({**text_settings, "lora": {"layers": ["head"]}}, "settings")
    message = "lora.rank: expected at most 16, the smaller side of blocks.0.attention.key, found 17"
    with pytest.raises(ConfigurationError, match=message):
        adapted(LowRankConfig(rank=17))


@pytest.fixture(scope="module")
def other_texts(texts, tmp_path_factory):
    """The same words in another order: what follows what is to be learned anew."""
    folder = tmp_path_factory.mktemp("other-texts")
    for path in texts.iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        turned = [" ".join(reversed(line.split(" "))) for line in lines]
        (folder / path.name).write_text("\n".join(turned) + "\n", encoding="utf-8")
    return folder


def base_run(texts, cache, run, *, model, steps):
    """A decoder that has learned its texts."""
    return {
        "task": "language_model",
        "run": str(run),
        "seed": 3,
        "model": model,
        "data": {"path": str(texts), "tokenizer": "bytes", "cache": str(cache)},
        "train": {"epochs": 1, "steps_per_epoch": steps, "batch": 8, "precision": "float32"},
        "optimizer": {"kind": "muon", "rate": 1e-2, "matrix_rate": 3e-2},
    }


@pytest.fixture(scope="module")
def trained(texts, cache, tmp_path_factory):
    """The folder of a run whose decoder predicts its texts."""
    run = tmp_path_factory.mktemp("base") / "run"
    model = {"layers": 2, "width": 32, "context": 16}
    settings = base_run(texts, cache, run, model=model, steps=150)
    with collectives.init() as comm:
        fitted(config_from(settings, "settings"), comm)
    return run


def fitted(config, comm):
    """A run without its report."""
    config.run.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, config.build(), comm)
    trainer.fit()
    return trainer


def tuned(config, comm):
    """Trains; the held-out loss before and after, and the trainer."""
    config.run.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, config.build(), comm)
    before = trainer.task.evaluate(trainer.average.model, comm)["validation_loss"]
    after = trainer.fit()["validation_loss"]
    return before, after, trainer


def check_tuned(config, comm, *, gain):
    """Trains adapters: only they change, few they are, and the held-out loss falls."""
    base = read_checkpoint(config.start).best_weights
    before, after, trainer = tuned(config, comm)
    parameters = dict(trainer.network.named_parameters())
    share = sum(p.numel() for p in parameters.values() if p.requires_grad)
    assert share < 0.02 * sum(p.numel() for p in parameters.values())
    saved = read_checkpoint(config.run)
    kept = saved.part("model")
    assert all(torch.equal(kept[name], weight) for name, weight in base.items())
    learned = adapters_of(kept)
    assert kept.keys() == base.keys() | learned.keys()
    assert learned
    assert all(weight.abs().max() > 0 for weight in learned.values())
    kinds, _, names = zip(*(name.partition("/") for name in saved.part("optimizer")), strict=True)
    assert set(names) == learned.keys()  # nothing is remembered of what does not move
    assert "exp_avg" in kinds
    assert "momentum" not in kinds  # muon's
    assert after < before - gain
    decoder, _ = read_decoder(config.run)
    assert trainer.task.evaluate(decoder, comm)["validation_loss"] == pytest.approx(after, rel=1e-4)
    return before, after


def test_the_loss_on_other_texts_falls(trained, other_texts, alone, tmp_path):
    config = finetuning_config(trained, [other_texts], tmp_path / "run", 1)
    assert config.optimizer == config_from(read_checkpoint(trained).config, "").optimizer
    before, after = check_tuned(config, alone, gain=0.1)
    assert before < math.log(256) - 1  # the base has learned something, too
    assert after < before


@pytest.mark.full
def test_the_loss_on_other_texts_falls_in_a_larger_one(other_texts, texts, cache, alone, tmp_path):
    model = {"layers": 4, "width": 96, "heads": 4, "context": 48}
    settings = base_run(texts, cache, tmp_path / "base", model=model, steps=300)
    fitted(config_from(settings, "settings"), alone)
    config = finetuning_config(tmp_path / "base", [other_texts], tmp_path / "run", 3)
    check_tuned(config, alone, gain=0.2)


def adapter_settings(text_settings, start, rank=2, **lora):
    settings = {**text_settings, "start": str(start), "lora": {"rank": rank, **lora}}
    settings["optimizer"] = {"kind": "muon", "rate": 1e-2}
    return settings


def weights_of_runs(comm, settings, *shards):
    """What comes of it, sharded or not."""
    torch.set_num_threads(1)
    found = []
    for shard in shards:
        run = f"{settings['run']}-{comm.size}-{shard}"
        changed = {**settings, "run": run, "parallel": {"shard": shard}}
        network = fitted(config_from(changed, "settings"), comm).network
        found.append({name: weight.clone() for name, weight in network.state_dict().items()})
    return found


def all_equal(weights, others):
    assert weights.keys() == others.keys()
    return all(torch.equal(others[name], weight) for name, weight in weights.items())


def test_sharded_it_is_the_same(text_settings, trained, alone):
    plain, sharded = weights_of_runs(alone, adapter_settings(text_settings, trained), False, True)
    assert all_equal(plain, sharded)
    assert all(weight.abs().max() > 0 for weight in adapters_of(plain).values())


@pytest.mark.full
def test_on_two_ranks_it_is_the_same(text_settings, trained, alone):
    settings = adapter_settings(text_settings, trained)
    expected, base = weights_of_runs(alone, settings, False)[0], read_checkpoint(trained)
    (plain, sharded), others = launch.spawn(weights_of_runs, 2, settings, False, True)
    assert all(all_equal(plain, found) for found in (sharded, *others))
    assert all(torch.equal(plain[name], w) for name, w in base.best_weights.items())
    for name, weight in adapters_of(plain).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-2, atol=1e-3)


def test_it_goes_on_and_refuses_other_adapters(text_settings, trained, alone, capsys):
    settings = adapter_settings(text_settings, trained)
    settings["train"] |= {"epochs": 2}
    config = config_from(settings, "settings")
    expected = fitted(config, alone).network.state_dict()
    latest = max(config.run.glob("checkpoint-*"))
    latest.unlink()
    found = carry_out(config, alone, resume=True).network.state_dict()
    assert all_equal(expected, found)
    said = capsys.readouterr().out
    assert "parameters, 896 of which are trained (2.24%), on 1 rank" in said
    assert main(["generate", str(config.run), "def fib(", "--seed", "3"]) == 0
    assert capsys.readouterr().out.strip() in said  # the sample, of adapters that are not merged
    for change, message in (
        ({"rank": 3}, "lora.rank: expected 3 as configured, found 2"),
        ({"rank": 0}, "lora.rank: expected 0 as configured, found 2"),
        ({"alpha": 9.0}, "lora.alpha: expected 9.0 as configured, found 0.0"),
        ({"layers": ["key"]}, r"lora.layers: expected \['key'\] as configured, found \['query',"),
    ):
        other = config_from({**settings, "lora": {**settings["lora"], **change}}, "settings")
        with pytest.raises(CheckpointError, match=message):
            check_run(other, 1, resume=True)


def test_a_checkpoint_from_before_there_were_adapters_goes_on(text_settings, alone, tmp_path):
    """Its settings say nothing of them."""
    config = config_from(text_settings, "settings")
    fitted(config, alone)
    read = read_checkpoint(config.run)
    assert read.config.pop("lora")["rank"] == 0
    assert merged_weights(read).keys() == read.best_weights.keys()
    write_checkpoint(config.run, read, keep=9)
    check_run(config, 1, resume=True)
    start = {**text_settings, "start": str(config.run), "run": str(tmp_path / "next")}
    check_run(config_from({**start, "lora": {"rank": 2}}, "settings"), 1, resume=False)


def test_what_starts_from_adapters_starts_from_them_merged(text_settings, trained, alone):
    settings = adapter_settings(text_settings, trained, alpha=3.0)
    first = config_from(settings, "settings")
    fitted(first, alone)
    for rank in (0, 1):
        config = finetuning_config(first.run, [Path(text_settings["data"]["path"])], None, rank)
        assert config.lora.rank == rank
        trainer = Trainer(config, config.build(), alone)
        begun = trainer.network.state_dict()
        expected = merged(read_checkpoint(first.run).part("average"), 3 / 2)
        for name, weight in expected.items():
            torch.testing.assert_close(begun[name], weight)
        assert len(adapters_of(begun)) == (16 if rank else 0)


def words_of_finetuning(trained, other_texts, out):
    words = ["finetune", trained, "--data", other_texts, "--run", out, "--lora", 2]
    return list(map(str, [*words, "--set", "lora.alpha=8"]))


ASKED = {"rank": 2, "alpha": 8, "layers": ["query", "key", "value", "output"]}


def test_the_command_asks_for_it(trained, other_texts, tmp_path, capsys):
    words = words_of_finetuning(trained, other_texts, tmp_path / "tuned")
    assert main([*words, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["lora"] == ASKED


@pytest.mark.full
def test_the_command(trained, other_texts, tmp_path, capfd):
    out = tmp_path / "tuned"
    words = words_of_finetuning(trained, other_texts, out)
    more = ["--set", "train.steps_per_epoch=4", "-n", "2", "--threads", "1"]
    assert main([*words, *more]) == 0
    assert "parameters, 896 of which are trained (2.24%), on 2 ranks" in capfd.readouterr().out
    assert yaml.safe_load((out / "config.yaml").read_text())["lora"] == ASKED
    assert main(["generate", str(out), "def ", "--tokens", "5"]) == 0
    assert capfd.readouterr().out.startswith("def ")


def test_other_tasks_have_no_layers_for_them(tmp_path, capsys):
    other = Checkpoint(task="super_resolution", step=1, config={}, tensors={})
    path = write_checkpoint(tmp_path, other, keep=1)
    assert main(["finetune", str(path), "--data", str(tmp_path), "--lora", "2"]) == 2
    assert (
        "--lora: expected a checkpoint of 'language_model', whose layers take adapters, found one "
        "of 'super_resolution'"
    ) in capsys.readouterr().err
