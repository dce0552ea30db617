"""Settings come from one definition; a wrong one is named, with what was expected and found."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from trainers import configuration
from trainers.configuration import as_data, as_yaml, config_from, differences, read_config
from trainers.errors import ConfigurationError
from trainers.optimization import OptimizerConfig, rate_factor

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("task: super_resolution\ntrain:\n  epochs: 3\n")
    return path


def test_file_then_settings_then_defaults(file):
    config = read_config(
        file,
        [
            "train.batch=32",
            "optimizer.rate=1e-4",
            "optimizer.betas=[0.8, 0.9]",
            "data.held_out=[a, b]",
            "data.path=photographs",
        ],
    )
    assert (config.train.epochs, config.train.batch, config.train.device) == (3, 32, "cpu")
    assert config.optimizer.rate == 1e-4
    assert config.optimizer.betas == (0.8, 0.9)
    assert config.data.held_out == ["a", "b"]
    assert config.data.path == Path("photographs")


def test_what_is_printed_gives_the_same_configuration(file):
    config = read_config(file, ["data.path=somewhere", "optimizer.rate=3e-5"])
    assert config_from(yaml.safe_load(as_yaml(config)), "printed") == config
    assert differences(as_data(config), as_data(read_config(file))) == [
        "data.path",
        "optimizer.rate",
    ]


@pytest.mark.parametrize(
    ("pattern", "task", "least"),
    [
        ("espcn*.yaml", "super_resolution", 2),
        ("llm*.yaml", "language_model", 2),
        ("ddpm*.yaml", "diffusion", 1),
    ],
)
def test_the_configurations_that_come_with_us_are_valid(pattern, task, least):
    paths = list(CONFIGS.glob(pattern))
    assert len(paths) >= least
    for path in paths:
        check_heading(path)
        assert read_config(path).task == task


def check_heading(path):
    first, second = path.read_text().splitlines()[:2]
    assert f"collectives train configs/{path.name} -n" in first
    assert second.startswith("#")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epoch=1", r"unknown key 'train.epoch' \(did you mean 'train.epochs'\?\)"),
        ("trian.epochs=1", r"unknown key 'trian' \(did you mean 'train'\?\)"),
        ("epochs=1", r"unknown key 'epochs' \(did you mean 'train.epochs'\?\)"),
        ("data.upscale_facter=1", r"did you mean 'model.upscale_factor'\?"),
        ("nothing_like_it_anywhere=1", "unknown key 'nothing_like_it_anywhere'$"),
        ("train.epochs=many", "train.epochs: expected a whole number, found 'many'$"),
        ("train.epochs=1.5", "train.epochs: expected a whole number, found 1.5$"),
        ("train.epochs=", "train.epochs: expected a whole number, found nothing$"),
        ("run=null", "run: expected a path, found nothing$"),
        ("run=5", "run: expected a path, found 5$"),
        ("data.planes=3", "data.planes: expected true or false, found 3$"),
        ("data.path=5", "data.path: expected a path, or null, found 5$"),
        ("data.held_out=5", "data.held_out: expected a list, each a text, or null, found 5$"),
        ("optimizer.rate=x", "optimizer.rate: expected a number, found 'x'$"),
        (
            "optimizer.betas=[1]",
            r"optimizer.betas: expected a list of 2: a number, a number, found \[1\]$",
        ),
        ("data.sizes=[x]", r"data.sizes: expected a list, each a number, found \['x'\]$"),
        ("train.epochs=0", "train.epochs: expected 1 or more, found 0"),
        ("train.batch=-1", "train.batch: expected 1 or more, found -1"),
        ("train.average=1", "train.average: expected a number from 0 to below 1, found 1"),
        ("train.device=gpu", "train.device: expected 'cpu' or 'cuda', found 'gpu'"),
        ("train.precision=float16", "expected 'auto' or 'float32' or 'bfloat16', found 'float16'$"),
        ("train=5", "train: expected keys below it .*epochs.*, found 5"),
        ("train.epochs.more=5", "'epochs' is a value, with no keys below it"),
        ("seed=-1", "seed: expected 0 or more, found -1"),
        ("start=5", "start: expected a path, or null, found 5$"),
        (
            "start=runs/super_resolution/checkpoint-00000001.safetensors",
            "start: expected a checkpoint outside the run's own folder .*; give this run another",
        ),
        ("optimizer.kind=sgd", "optimizer.kind: expected 'adam' or 'muon', found 'sgd'$"),
        ("optimizer.rate=0", "optimizer.rate.*expected numbers above 0, found 0"),
        ("optimizer.warmup=2", "optimizer.warmup: expected a part from 0 to 1, found 2"),
        ("optimizer.momentum=1", "optimizer.momentum: expected numbers from 0 to below 1"),
        ("optimizer.clip=-1", "optimizer.clip: expected 0 or more, found -1"),
        ("model.upscale_factor=1", "model.upscale_factor: expected 2 to 8, found 1"),
        ("data.crop=3", "data.crop: expected 4 or more, found 3"),
        ("data.edge=10", "data.edge: expected 0 to less than half of data.crop.*found 10"),
        ("data.held_out_share=1", "data.held_out_share: expected a number between 0 and 1"),
        ("data.detail=3", "data.detail: expected 0 to 2, found 3"),
        ("data.sizes=[2]", "data.sizes: expected numbers from 0.1 to 1, found .2"),
        ("data.sizes=[]", "data.sizes: expected numbers from 0.1 to 1, found "),
        ("task=cooking", "expected one of super_resolution, .*, diffusion, found 'cooking'"),
        ("task=super_resolutoin", r"did you mean 'super_resolution'\?"),
        ("task=null", "expected `task:` to be one of super_resolution, .*, found none"),
        ("train.epochs", "--set: expected key=value .*, found 'train.epochs'"),
        ("=3", "--set: expected key=value"),
        ("run=[", r"--set run: not a YAML value: '\['"),
    ],
)
def test_a_wrong_setting_is_named(file, setting, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_config(file, [setting])
    assert "\n" not in str(caught.value)
    text = str(caught.value)  # the file alone is not to blame
    assert str(file) not in text or f"{file} --set {setting}: " in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [", "run.yaml is not YAML: "),
        (
            "task: super_resolution\ntrain:\n  epochs: 1\n  batch: 2\n  epochs: 3\n",
            "run.yaml, line 5: expected the key 'epochs' once, found it in line 3 too",
        ),
        (
            "train: {batch: 1, batch: 1}",
            "line 1: expected the key 'batch' once, found it in line 1",
        ),
        ("just words", "expected keys and values, found 'just words'"),
        ("", "expected `task:`"),
        ("task: super_resolution\n7: 8", "unknown key '7'"),
    ],
)
def test_a_file_that_is_no_configuration(file, text, message):
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_config(file)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigurationError, match=r"none.yaml: No such file"):
        read_config(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        read_config(tmp_path / "binary.yaml")


def test_rates_grow_then_fall():
    config = OptimizerConfig(warmup=0.1, final=0.2)
    factors = [rate_factor(step, 100, config) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0.2)
    assert rate_factor(0, 1, OptimizerConfig(warmup=0)) == 1


def test_what_the_parser_says_otherwise_is_kept():
    assert configuration._in_our_words(OptimizerConfig, {}, "something else") is None
    for key in ("rate", "rate.more", "nothing"):
        refusal = f'Parser key "{key}": Expected a <class'
        assert configuration._in_our_words(OptimizerConfig, {}, refusal) is None
