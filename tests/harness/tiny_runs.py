"""Runs that take a second, of each task and in each way, and what ranks do for them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from trainers.checkpoints import read_checkpoint
from trainers.configuration import config_from
from trainers.run import carry_out
from trainers.training import Trainer


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


def train_whole(comm, settings):
    """One whole run, report included; the weights of every rank."""
    torch.set_num_threads(1)
    trainer = carry_out(config_from(settings, "settings"), comm, resume=False)
    return {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}


WAYS = {
    "accumulated": ({"accumulate": 3}, {}),
    "cut": ({}, {"unused": "zero", "bucket_bytes": 1}),
    "wire": ({}, {"wire": "bfloat16"}),
    "sharded": ({}, {"shard": True}),
}
"""Other ways to train, which lead to the same weights: settings of `train` and of `parallel`."""


def run_all(comm, plans):
    """Runs one after the other, of which only those without a further word end with a report.

    Each is (name, settings, folder to go on from after step 4 or None).
    """
    torch.set_num_threads(1)
    found = {}
    for name, settings, source in plans:
        with comm.split(0, comm.rank) as part:
            config = config_from(settings, name)
            if source is not None and part.rank == 0:
                begin_broken_off(config.run, source)
            part.barrier()
            if " " in name and not name.endswith("_model resumed"):
                trainer = without_report(config, part, resume=source is not None)
            else:
                trainer = carry_out(config, part, resume=source is not None)
            state = trainer.network.state_dict()
            weights = {key: tensor.clone() for key, tensor in state.items()}
            found[name] = (config.run, weights)
    return found


def without_report(config, comm, *, resume):
    """Trains and saves, and that is all."""
    config.run.mkdir(exist_ok=True)
    checkpoint = read_checkpoint(config.run) if resume else None
    trainer = Trainer(config, config.build(), comm, checkpoint)
    trainer.fit()
    return trainer


def begin_broken_off(run: Path, source: Path) -> None:
    """Makes `run` what `source` was when it was killed after its fourth step."""
    run.mkdir()
    shutil.copy(source / "checkpoint-00000004.safetensors", run)
    records = (source / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*records, '{"step": 99, "lo']))
