"""A checkpoint comes back as it was, is whole or absent, and refuses what it is not."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from trainers.checkpoints import (
    FORMAT,
    Checkpoint,
    all_checkpoints,
    latest,
    load_weights,
    read_checkpoint,
    write_checkpoint,
    write_whole,
)
from trainers.errors import CheckpointError


def checkpoint(step=5, size=4):
    tensors = {
        "model/weight": torch.randn(2, size, 3, 3).to(memory_format=torch.channels_last),
        "optimizer/step/weight": torch.tensor(7.0),
    }
    return Checkpoint(
        task="cooking",
        step=step,
        config={"a": {"b": 1}},
        tensors=tensors,
        attachments={"recipe": "two eggs\n"},
    )


def test_it_comes_back(tmp_path):
    written = checkpoint()
    path = write_checkpoint(tmp_path, written, keep=2)
    found = read_checkpoint(path)
    assert (found.task, found.step, found.config) == ("cooking", 5, {"a": {"b": 1}})
    assert found.attachments == {"recipe": "two eggs\n"}
    assert all(torch.equal(found.tensors[name], t) for name, t in written.tensors.items())
    assert found.best_weights.keys() == {"weight"}


def test_one_from_before_attachments_has_none(tmp_path):
    metadata = {"format": FORMAT, "task": "cooking", "step": "5", "config": "{}"}
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors", metadata)
    assert read_checkpoint(tmp_path / "x.safetensors").attachments == {}


def test_the_average_is_preferred():
    tensors = {"model/w": torch.zeros(1), "average/w": torch.ones(1)}
    found = Checkpoint(task="", step=0, config={}, tensors=tensors)
    assert found.best_weights["w"].item() == 1


def test_the_latest_stay(tmp_path):
    for step in (8, 9, 10, 100_000_000):
        write_checkpoint(tmp_path, checkpoint(step), keep=2)
    assert [read_checkpoint(path).step for path in all_checkpoints(tmp_path)] == [10, 100_000_000]
    assert read_checkpoint(tmp_path).step == 100_000_000
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint-00000010.safetensors",
        "checkpoint-100000000.safetensors",
    }


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_damaged_file_is_refused(tmp_path, cut):
    path = write_checkpoint(tmp_path, checkpoint(), keep=1)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"expected a checkpoint .* damaged"):
        read_checkpoint(tmp_path)


def test_another_programs_file_is_refused(tmp_path):
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"of this program .* format None"):
        read_checkpoint(tmp_path / "x.safetensors")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*No such file"):
        read_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="the folder has none"):
        latest(tmp_path)


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"\(5,000 bytes\): File too large; .* is intact"):
            write_whole(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there():
    with pytest.raises(CheckpointError, match="cannot write /nowhere/file"):
        write_whole(Path("/nowhere/file"), b"")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"weight": torch.ones(3, 2), "bias": torch.ones(2)},
            r"weight: expected \[2, 3\], found \[3, 2\]",
        ),
        ({"weight": torch.ones(2, 3)}, r"bias: expected \[2\], found no such weight"),
        (
            {"weight": torch.ones(2, 3), "bias": torch.ones(2), "x": torch.ones(1)},
            r"x: expected no such weight, found \[1\] \(1 weights differ\)",
        ),
    ],
)
def test_weights_of_another_model(weights, message):
    with pytest.raises(CheckpointError, match=message):
        load_weights(nn.Linear(3, 2), weights, "the file")
