"""Folders of small photographs and texts, and configurations that train on them in a second."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import collectives
import launch
from trainers.configuration import config_from
from trainers.run import carry_out


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tests run beside each other; a rank has one thread anyway."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """Four images of 60 x 72 with structure at every scale; one greyscale, one transparent."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(7)
    for name, channels in (("first", 3), ("second", 3), ("grey", 1), ("clear", 4)):
        noise = random.random((10, 12, channels))
        image = np.kron(noise, np.ones((6, 6, 1))) * 0.7 + random.random((60, 72, channels)) * 0.3
        pixels = (image * 255).astype(np.uint8)
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> Path:
    """Eight files of a few kilobytes, of words that follow each other with some order."""
    folder = tmp_path_factory.mktemp("texts")
    random = np.random.default_rng(5)
    words = ["ring", "tree", "rank", "größe", "send", "recv", "def", "=", "(x)", "return"]
    for number in range(8):
        steps = random.integers(1, 3, size=600).cumsum()
        lines = [
            " ".join(words[step % 10] for step in steps[at : at + 9]) for at in range(0, 600, 9)
        ]
        (folder / f"{number}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """Where tokens are kept."""
    return tmp_path_factory.mktemp("tokens")


def tiny(photographs: Path, run: Path) -> dict[str, Any]:
    """Plain data of a tiny run."""
    return {
        "task": "super_resolution",
        "run": str(run),
        "seed": 3,
        "model": {"upscale_factor": 2},
        "data": {"path": str(photographs), "held_out": ["grey"], "crop": 8, "edge": 1},
        "train": {
            "epochs": 3,
            "steps_per_epoch": 2,
            "batch": 7,
            "precision": "float32",
            "average": 0.9,
            "keep": 9,
            "log_every": 1,
        },
        "optimizer": {"kind": "muon", "rate": 1e-3},
    }


def tiny_text(texts: Path, cache: Path, run: Path) -> dict[str, Any]:
    """Plain data of a tiny run of a language model."""
    return {
        **tiny(texts, run),
        "task": "language_model",
        "model": {"layers": 2, "width": 32, "context": 16},
        "data": {"path": str(texts), "tokenizer": "bytes", "cache": str(cache)},
    }


def tiny_diffusion(photographs: Path, run: Path) -> dict[str, Any]:
    """Plain data of a tiny run of a diffusion model."""
    return {
        **tiny(photographs, run),
        "task": "diffusion",
        "model": {"widths": [8, 16], "groups": 4, "heads": 2, "times": 50},
        "data": {
            "path": str(photographs),
            "held_out": ["grey"],
            "crop": 8,
            "validation_crops": 40,
        },
        "sampling": {"steps": 3},
    }


@pytest.fixture
def settings(photographs, tmp_path):
    return tiny(photographs, tmp_path / "run")


@pytest.fixture
def text_settings(texts, cache, tmp_path):
    return tiny_text(texts, cache, tmp_path / "run")


@pytest.fixture
def diffusion_settings(photographs, tmp_path):
    return tiny_diffusion(photographs, tmp_path / "run")


def train_whole(comm, settings):
    """One whole run, report included; the weights of every rank."""
    torch.set_num_threads(1)
    trainer = carry_out(config_from(settings, "settings"), comm, resume=False)
    return {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}


@pytest.fixture
def trained_weights():
    return train_whole


@pytest.fixture(scope="session")
def whole_run(photographs, tmp_path_factory):
    """The folder of a tiny run of two ranks that nothing has disturbed, and their weights."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, launch.spawn(train_whole, 2, tiny(photographs, folder))


@pytest.fixture(scope="session")
def whole_text_run(texts, cache, tmp_path_factory):
    """The same of a language model."""
    folder = tmp_path_factory.mktemp("whole-text") / "run"
    return folder, launch.spawn(train_whole, 2, tiny_text(texts, cache, folder))


@pytest.fixture(scope="session")
def whole_diffusion_run(photographs, tmp_path_factory):
    """The same of a diffusion model."""
    folder = tmp_path_factory.mktemp("whole-diffusion") / "run"
    return folder, launch.spawn(train_whole, 2, tiny_diffusion(photographs, folder))


@pytest.fixture
def config(settings):
    return config_from(settings, "settings")


@pytest.fixture
def alone():
    """A world of one; lent weakly, since pytest keeps what a fixture yields beyond the test."""
    with collectives.init() as comm:
        yield weakref.proxy(comm)
