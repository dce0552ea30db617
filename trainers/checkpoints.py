"""Checkpoints: one safetensors file each, written whole or not at all, read without running code.

A file `checkpoint-00003000.safetensors` holds the state after 3000 steps:

    model/NAME           the weights being trained
    average/NAME         their moving average, where the run keeps one
    optimizer/KIND/NAME  what the optimizer remembers about NAME
    metadata             format, task, step, and as JSON the whole configuration and what the task
                         attaches: texts that the weights are of no use without

There is no random state in it because there is none to keep: whatever is random in a step follows
from (seed, step, rank). A file is written beside its place, flushed to the disk and then renamed,
so that whatever happens the file of that name is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from trainers.errors import CheckpointError

FORMAT = "collectives-checkpoint-1"
_NAME = re.compile(r"checkpoint-(\d{8,})\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What one file holds.

    Attributes:
        task: the kind of run it is of.
        step: how many steps had been done.
        config: the run's settings as plain data.
        tensors: by the names given above.
        attachments: texts of the task's, by name.
    """

    task: str
    step: int
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    attachments: dict[str, str] = field(default_factory=dict)

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors below `name/`, without that prefix."""
        prefix = f"{name}/"
        return {
            key.removeprefix(prefix): value
            for key, value in self.tensors.items()
            if key.startswith(prefix)
        }

    def check_task(self, expected: str, origin: Path) -> None:
        """Refuses a checkpoint of another task, read from `origin`."""
        if self.task != expected:
            raise CheckpointError(
                f"{origin} is of another task: expected {expected!r}, found {self.task!r}"
            )

    @property
    def best_weights(self) -> dict[str, Tensor]:
        """The weights to use: the moving average where there is one."""
        return self.part("average") or self.part("model")


def packed(checkpoint: Checkpoint) -> bytes:
    """The bytes of a checkpoint's file."""
    metadata = {
        "format": FORMAT,
        "task": checkpoint.task,
        "step": str(checkpoint.step),
        "config": json.dumps(checkpoint.config),
        "attachments": json.dumps(checkpoint.attachments),
    }
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()
    }
    return safetensors.torch.save(tensors, metadata)


def unpacked(data: bytes, origin: Path) -> Checkpoint:
    """The checkpoint in the bytes of the file `origin`."""
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{origin}: expected a checkpoint (a safetensors file), found something else or a "
            f"damaged one: {error}"
        ) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{origin}: expected a checkpoint of this program ({FORMAT}), found a safetensors file "
            f"with format {metadata.get('format')!r}"
        )
    return Checkpoint(
        task=metadata["task"],
        step=int(metadata["step"]),
        config=json.loads(metadata["config"]),
        tensors=tensors,
        attachments=json.loads(metadata.get("attachments", "{}")),  # older ones have none
    )


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint from its file, or the latest one of a run's folder."""
    file = latest(path) if path.is_dir() else path
    return unpacked(read_bytes(file), file)


def read_bytes(path: Path) -> bytes:
    """A checkpoint file as it is."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from error


def all_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _match(path))]
    return [path for _, path in sorted(found)]


def latest(folder: Path) -> Path:
    """The checkpoint with the most steps in a run's folder."""
    found = all_checkpoints(folder)
    if not found:
        state = "has none" if folder.is_dir() else "does not exist"
        raise CheckpointError(
            f"expected a file checkpoint-*.safetensors in {folder}, but the folder {state}"
        )
    return found[-1]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps is, in a run's folder."""
    return folder / f"checkpoint-{step:08d}.safetensors"


def write_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes `checkpoint` into `folder` and removes all but the `keep` latest ones."""
    path = checkpoint_path(folder, checkpoint.step)
    write_whole(path, packed(checkpoint))
    for old in all_checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def write_whole(path: Path, data: bytes) -> None:
    """Puts a file in its place, whole and on the disk, or leaves what was there as it was."""
    draft = path.with_name(f".{path.name}.part")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot write {path} ({len(data):,} bytes): {error.strerror}; what was there before "
            "is intact"
        ) from error


def load_weights(model: nn.Module, weights: dict[str, Tensor], origin: str) -> None:
    """Puts `weights` into `model`, in the memory format the model has."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        differing = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        name = differing[0]
        raise CheckpointError(
            f"{origin} is of another model: {name}: expected {_shape(expected.get(name))}, "
            f"found {_shape(found.get(name))} ({len(differing)} weights differ)"
        )
    model.load_state_dict(weights)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "no such weight" if shape is None else str(list(shape))


def _match(path: Path) -> re.Match[str] | None:
    return _NAME.fullmatch(path.name)
