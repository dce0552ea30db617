"""Folders of small photographs and texts, and configurations that train on them in a second."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.tiny_runs import WAYS, run_all, tiny, tiny_diffusion, tiny_text, train_whole
from PIL import Image

import collectives
import launch
from trainers.configuration import config_from


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


@pytest.fixture
def settings(photographs, tmp_path):
    return tiny(photographs, tmp_path / "run")


@pytest.fixture
def text_settings(texts, cache, tmp_path):
    return tiny_text(texts, cache, tmp_path / "run")


@pytest.fixture
def diffusion_settings(photographs, tmp_path):
    return tiny_diffusion(photographs, tmp_path / "run")


@pytest.fixture
def trained_weights():
    return train_whole


@pytest.fixture(scope="session")
def runs_of_two(photographs, texts, cache, tmp_path_factory):
    """Tiny runs of two ranks in one start: name -> (folder, weights of every rank)."""
    root = tmp_path_factory.mktemp("runs")
    plans: list[tuple[str, dict[str, Any], Path | None]] = []

    def plan(name, settings, source=None, train=None, parallel=None, **more):
        run = root / name.replace(" ", "-")
        train = settings["train"] | (train or {})
        changed = {**settings, "run": str(run), "train": train, "parallel": parallel or {}, **more}
        plans.append((name, changed, source))
        return run

    for task, settings in (
        ("super_resolution", tiny(photographs, root)),
        ("language_model", tiny_text(texts, cache, root)),
        ("diffusion", tiny_diffusion(photographs, root)),
    ):
        plan(f"{task} resumed", settings, plan(task, settings))
        for way, (train, parallel) in WAYS.items():
            plan(f"{task} {way}", settings, train=train, parallel=parallel)
        shard = {"parallel": {"shard": True}}
        plan(f"{task} sharded resumed", settings, root / f"{task}-sharded", **shard)
        shard["optimizer"] = {"kind": "adam"}
        adam = plan(f"{task} adam sharded", settings, **shard)
        plan(f"{task} adam sharded resumed", settings, adam, **shard)
    first, second = launch.spawn(run_all, 2, plans)
    return {name: (folder, [weights, second[name][1]]) for name, (folder, weights) in first.items()}


@pytest.fixture(scope="session")
def whole_run(runs_of_two):
    """The folder of a tiny run of two ranks that nothing has disturbed, and their weights."""
    return runs_of_two["super_resolution"]


@pytest.fixture(scope="session")
def whole_text_run(runs_of_two):
    """The same of a language model."""
    return runs_of_two["language_model"]


@pytest.fixture(scope="session")
def whole_diffusion_run(runs_of_two):
    """The same of a diffusion model."""
    return runs_of_two["diffusion"]


@pytest.fixture
def config(settings):
    return config_from(settings, "settings")


@pytest.fixture
def alone():
    """A world of one; lent weakly, since pytest keeps what a fixture yields beyond the test."""
    with collectives.init() as comm:
        yield weakref.proxy(comm)
