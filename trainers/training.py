"""The trainer: steps over a task's batches on all ranks, with checkpoints to resume from.

Everything random follows from (seed, step, rank), and a checkpoint holds all the rest: a run that
was broken off and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from trainers.averaging import WeightAverage
from trainers.checkpoints import (
    Checkpoint,
    all_checkpoints,
    latest,
    load_weights,
    read_bytes,
    read_checkpoint,
    unpacked,
    write_checkpoint,
)
from trainers.configuration import as_data, differences
from trainers.data_parallel import DataParallel, share_of
from trainers.errors import CheckpointError, ConfigurationError, DivergedError
from trainers.optimization import Optimization, OptimizerConfig
from trainers.precision import Precision, agreed_precision
from trainers.progress import MetricsFile, ProgressLine, speed_key

if TYPE_CHECKING:
    from collectives import Communicator
    from trainers.task import Task


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, on how much at once, and what is kept.

    Attributes:
        epochs: how many times `steps_per_epoch`; evaluated and saved after each.
        steps_per_epoch: optimizer steps in an epoch.
        batch: samples per step, of all ranks together.
        precision: what the model computes in; weights, gradients and sums stay float32.
        average: decay of the moving average of the weights that is judged and used; 0 for none.
        device: where the model is.
        keep: how many checkpoints stay in the folder.
        log_every: steps between two records of metrics.
    """

    epochs: int = 10
    steps_per_epoch: int = 1000
    batch: int = 16
    precision: Precision = "auto"
    average: float = 0.0
    device: str = "cpu"
    keep: int = 2
    log_every: int = 100

    def __post_init__(self) -> None:
        for name in ("epochs", "steps_per_epoch", "batch", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigurationError(
                    f"train.{name}: expected 1 or more, found {getattr(self, name)}"
                )
        if not 0 <= self.average < 1:
            raise ConfigurationError(
                f"train.average: expected a number from 0 to below 1, found {self.average}"
            )
        if self.device != "cpu":
            raise ConfigurationError(
                f"train.device: expected 'cpu', found {self.device!r}; training on other devices "
                "is not carried yet"
            )

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run has, whatever its task.

    Attributes:
        task: what is trained.
        run: folder for checkpoints, metrics and pictures.
        seed: everything random follows from it.
        start: a checkpoint, or the folder of a run, whose weights are begun with; the optimizer and
            the steps begin anew. null for random weights.
        train: how long and on how much at once.
        optimizer: how parameters follow their gradients.
    """

    task: str
    run: Path
    seed: int = 0
    start: Path | None = None
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigurationError(f"seed: expected 0 or more, found {self.seed}")
        if self.start is not None and self.run.absolute() in (
            self.start.absolute(),
            *self.start.absolute().parents,
        ):  # the folder is moved aside before it is begun with
            raise ConfigurationError(
                f"start: expected a checkpoint outside the run's own folder {self.run}, found "
                f"{self.start}; give this run another folder"
            )

    def build(self) -> Task:
        """The task, with its data loaded."""
        raise NotImplementedError(f"{type(self).__name__} has no build()")


class Trainer:
    """One run on all ranks of `comm`; every rank makes one and calls `fit`.

    Args:
        config: equal on every rank.
        task: what to train.
        comm: the ranks.
        checkpoint: what to go on from.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        comm: Communicator,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        check_ranks(config, comm.size)
        self.config = config
        self.task = task
        self.comm = comm
        self.precision = agreed_precision(comm, config.train.precision)
        self.step = 0
        torch.manual_seed(_mixed(config.seed))
        model = task.new_model()
        if checkpoint is not None:
            task.check_attachments(checkpoint.attachments, "the checkpoint")
            load_weights(model, checkpoint.part("model"), "the checkpoint")
            self.step = checkpoint.step
        elif config.start is not None and comm.rank == 0:  # whose weights all ranks get
            load_start(model, task, config.start)
        self.model = DataParallel(model, comm)
        self.average = WeightAverage(model, config.train.average)
        self.optimization = Optimization(
            model, config.optimizer, config.train.steps, task.matrices(model)
        )
        if checkpoint is not None:
            self.optimization.load_state(checkpoint.part("optimizer"))
            if averaged := checkpoint.part("average"):
                load_weights(self.average.model, averaged, "the checkpoint's average")

    def fit(self) -> dict[str, float]:
        """Trains to the end; returns the last evaluation. A collective call."""
        train = self.config.train
        first = self.comm.rank == 0
        line = ProgressLine(
            steps=train.steps,
            start=self.step,
            epoch=train.steps_per_epoch,
            unit=self.task.unit,
            shown=first,
        )
        metrics = MetricsFile(self.config.run / "metrics.jsonl" if first else None, self.step)
        share = share_of(train.batch, self.comm.rank, self.comm.size)
        meter = _Meter(self.model, self.task.unit, train.batch * self.task.units_per_sample)
        result: dict[str, float] = {}
        if self.step >= train.steps:
            result = self.task.evaluate(self.average.model, self.comm)
        while self.step < train.steps:
            meter.add(self._one_step(share))
            epoch_ends = self.step % train.steps_per_epoch == 0
            if epoch_ends or self.step % train.log_every == 0:
                facts = self._facts(meter)
                metrics.write({"step": self.step, **facts})
                line.update(self.step, facts)
            if epoch_ends:
                result = self.task.evaluate(self.average.model, self.comm)
                metrics.write({"step": self.step, **result})
                if first:
                    self.save()
                line.finish_epoch(self.step, facts, self.task.summary(result))
                meter.restart()
        return result

    def save(self) -> Path:
        """Writes a checkpoint; on rank 0."""
        tensors = {f"model/{n}": t for n, t in self.model.module.state_dict().items()}
        tensors |= {f"optimizer/{n}": t for n, t in self.optimization.state().items()}
        if self.average.decay:
            tensors |= {f"average/{n}": t for n, t in self.average.model.state_dict().items()}
        checkpoint = Checkpoint(
            task=self.task.name,
            step=self.step,
            config=as_data(self.config),
            tensors=tensors,
            attachments=self.task.attachments(),
        )
        return write_checkpoint(self.config.run, checkpoint, self.config.train.keep)

    def _one_step(self, share: range) -> float:
        """One optimizer step; returns this rank's part of the global batch's mean loss."""
        # Not torch.manual_seed, which looks after every other device too, for 0.3 ms.
        torch.default_generator.manual_seed(_mixed(self.config.seed, self.step, self.comm.rank))
        samples = self.task.samples(self.step, share)
        self.model.zero_gradients()
        with torch.autocast("cpu", self.precision, enabled=self.precision != torch.float32):
            loss = self.task.loss(self.model, samples)
        loss.backward()  # type: ignore[no-untyped-call]
        weight = len(share) / self.config.train.batch
        self.model.average_gradients(weight)
        if self.config.optimizer.clip:
            self.model.clip_gradients(self.config.optimizer.clip)
        self.optimization.step(self.step)
        self.average.update(self.step)
        self.step += 1
        return loss.item() * weight

    def _facts(self, meter: _Meter) -> dict[str, float]:
        """Loss and speed since the last call, over all ranks; stops a run that has diverged."""
        local = np.array([meter.loss / meter.steps])
        loss = float(self.comm.allreduce(local)[0])
        if not math.isfinite(loss):
            raise DivergedError(
                f"the mean loss of steps {self.step - meter.steps + 1} to {self.step} is {loss}; "
                f"rank {self.comm.rank}'s part is {local[0]}. The last checkpoint is from before. "
                "Try a smaller optimizer.rate, or optimizer.clip"
            )
        return {"loss": loss, **meter.read()}


class _Meter:
    """Sums up what happened since it was last read."""

    def __init__(self, model: DataParallel, unit: str, units_per_step: int) -> None:
        self._model = model
        self._key = speed_key(unit)
        self._units_per_step = units_per_step
        self.restart()

    def restart(self) -> None:
        self.loss = 0.0
        self.steps = 0
        self._began = time.perf_counter()
        self._communicated = self._model.communication_seconds

    def add(self, loss: float) -> None:
        self.loss += loss
        self.steps += 1

    def read(self) -> dict[str, float]:
        passed = time.perf_counter() - self._began
        facts = {
            self._key: self.steps * self._units_per_step / passed,
            "communication_share": (self._model.communication_seconds - self._communicated)
            / passed,
        }
        self.restart()
        return facts


def check_ranks(config: RunConfig, ranks: int) -> None:
    """Refuses a global batch that has not a sample for every rank."""
    if config.train.batch < ranks:
        raise ConfigurationError(
            f"train.batch: expected at least one sample for each of the {ranks} ranks, "
            f"found {config.train.batch}"
        )


def load_start(model: nn.Module, task: Task, start: Path) -> None:
    """Puts the best weights of another run's checkpoint into a model.

    Raises:
        CheckpointError: there is none, or it is of another task, model or attachments.
    """
    checkpoint = read_checkpoint(start)
    checkpoint.check_task(task.name, start)
    task.check_attachments(checkpoint.attachments, str(start))
    load_weights(model, checkpoint.best_weights, str(start))


def checkpoint_to_resume(config: RunConfig) -> tuple[Path, bytes, list[str]]:
    """The latest checkpoint of the run's folder, its bytes, and the settings changed since.

    Raises:
        CheckpointError: there is none, or it is of another task or model, or beyond the run's end.
    """
    path = latest(config.run)
    data = read_bytes(path)
    checkpoint = unpacked(data, path)
    checkpoint.check_task(config.task, path)
    wanted = as_data(config)
    changed = differences(checkpoint.config, wanted)
    for key in changed:
        section, _, name = key.partition(".")
        if section == "model" or key in ("optimizer.kind", "train.average"):
            old, new = checkpoint.config.get(section), wanted.get(section)
            found, expected = (part.get(name) if part else None for part in (old, new))
            raise CheckpointError(
                f"{path} is of another model or optimizer: {key}: expected {expected!r} as "
                f"configured, found {found!r}"
            )
    if checkpoint.step > config.train.steps:
        raise CheckpointError(
            f"{path} is beyond the end of the run: expected at most {config.train.steps} steps, "
            f"found {checkpoint.step}"
        )
    return path, data, [key for key in changed if key != "run"]


def begin_folder(folder: Path) -> Path | None:
    """Makes the folder of a new run; an earlier run there is moved aside, to the path returned."""
    aside = None
    try:
        if all_checkpoints(folder):
            numbers = range(1, 1_000_000)
            aside = next(p for n in numbers if not (p := Path(f"{folder}.{n}")).exists())
            folder.rename(aside)
        check_folder(folder)
    except OSError as error:
        raise CheckpointError(f"cannot make the run's folder {folder}: {error.strerror}") from error
    return aside


def check_folder(folder: Path) -> None:
    """Makes the run's folder if need be and refuses one where nothing can be written."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise CheckpointError(
            f"cannot write into the run's folder {folder}: {error.strerror}"
        ) from error


def _mixed(*numbers: Any) -> int:
    """A random seed of its own for every tuple of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
