"""From a checkpoint to the configuration of a run that starts from its weights, on other data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.checkpoints import latest, read_checkpoint
from trainers.configuration import config_from
from trainers.errors import ConfigurationError

if TYPE_CHECKING:
    from trainers.run_config import RunConfig

RATES = 0.1
"""Times the checkpoint's rates: long steps would undo what its weights have learned."""

ADAPTED = "language_model"
"""The task whose layers take adapters."""


def finetuning_config(
    checkpoint: Path, data: Sequence[Path], run: Path | None = None, adapters: int = 0
) -> RunConfig:
    """The checkpoint's configuration with other data, its weights as the start, and lower rates.

    Rates stay as they are where adapters are trained, which begin at nothing, as all weights did.

    Args:
        checkpoint: a file, or the folder of a run: its latest one.
        data: what `data.path` is to be; several only for a task that takes a list there.
        run: folder of the new run; None for that of the checkpoint's run with `-finetuned`.
        adapters: of this rank are trained in place of the weights; 0 for none.

    Raises:
        TrainerError: the checkpoint cannot be read, has no layers for adapters, or what was asked
            for does not fit.
    """
    # The file and no folder: what a later checkpoint there says is no concern of this run.
    file = latest(checkpoint) if checkpoint.is_dir() else checkpoint
    read = read_checkpoint(file)
    if adapters and read.task != ADAPTED:
        raise ConfigurationError(
            f"--lora: expected a checkpoint of {ADAPTED!r}, whose layers take adapters, found one "
            f"of {read.task!r}"
        )
    wanted = dict(read.config)
    names = list(map(str, data))
    wanted["data"] = {**wanted.get("data", {}), "path": names[0] if len(names) == 1 else names}
    if "held_out" in wanted["data"]:  # names of the old data
        wanted["data"]["held_out"] = None
    wanted["start"] = str(file)
    wanted["run"] = str(run) if run is not None else f"{wanted.get('run', 'runs/run')}-finetuned"
    optimizer = dict(wanted.get("optimizer", {}))
    for key in ("rate", "matrix_rate"):
        if key in optimizer and not adapters:
            optimizer[key] = float(f"{optimizer[key] * RATES:.6g}")
    wanted["optimizer"] = optimizer
    wanted.pop("lora", None)  # of a checkpoint that has adapters: they are merged
    if adapters:
        wanted["lora"] = {"rank": adapters}
    return config_from(wanted, str(file))
