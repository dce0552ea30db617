"""What every run has, whatever its task: how long, on how much at once, and what is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trainers.errors import ConfigurationError
from trainers.optimization import OptimizerConfig
from trainers.placement import Kind
from trainers.precision import Precision

if TYPE_CHECKING:
    from trainers.task import Task


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, on how much at once, and what is kept.

    Attributes:
        epochs: how many times `steps_per_epoch`.
        steps_per_epoch: optimizer steps in an epoch.
        batch: samples per step, of all ranks together.
        accumulate: parts in which a rank works off its samples of a step, one after another: less
            memory, and one averaging of gradients for all.
        evaluate_every: steps between evaluations; 0: at the end of each epoch.
        save_every: steps between checkpoints; 0: at the end of each epoch.
        compile: compile the model (torch.compile).
        precision: what the model computes in; weights, gradients and sums stay float32. auto is
            bfloat16 where every rank's processor multiplies it by itself, else float32.
        average: decay of the moving average of the weights that is judged and used; 0 for none.
        device: where models are: in host memory (cpu), or each on its rank's GPU (cuda). Ranks get
            the GPUs in turn.
        keep: how many checkpoints stay in the folder.
        log_every: steps between two records of metrics.
        trace: how many of the last steps are in the run's trace; 0: none is written.
    """

    epochs: int = 10
    steps_per_epoch: int = 1000
    batch: int = 16
    accumulate: int = 1
    evaluate_every: int = 0
    save_every: int = 0
    compile: bool = False
    precision: Precision = "auto"
    average: float = 0.0
    device: Kind = "cpu"
    keep: int = 2
    log_every: int = 100
    trace: int = 20

    def __post_init__(self) -> None:
        for least, names in _LEAST.items():
            for name in names:
                if getattr(self, name) < least:
                    raise ConfigurationError(
                        f"train.{name}: expected {least} or more, found {getattr(self, name)}"
                    )
        if not 0 <= self.average < 1:
            raise ConfigurationError(
                f"train.average: expected a number from 0 to below 1, found {self.average}"
            )

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.epochs * self.steps_per_epoch

    def is_due(self, every: int, step: int) -> bool:
        """Whether what happens `every` so many steps, or each epoch, happens after `step`."""
        return step % (every or self.steps_per_epoch) == 0 or step == self.steps


_LEAST = {
    1: ("epochs", "steps_per_epoch", "batch", "accumulate", "keep", "log_every"),
    0: ("evaluate_every", "save_every", "trace"),
}


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How ranks train one model together.

    Attributes:
        bucket_bytes: bytes of gradients that one allreduce carries at most; 0: by the cost model of
            this machine (`collectives tune`).
        wire: the type in which gradients travel; 16-bit types are added up in float32.
        shard: each rank moves a part of the parameters, and remembers what the optimizer needs of
            that part only.
        unused: a parameter without a gradient ends the run (error), or its gradient counts as zero.
    """

    bucket_bytes: int = 0
    wire: Literal["as they are", "bfloat16", "float16"] = "as they are"
    shard: bool = False
    unused: Literal["error", "zero"] = "error"

    def __post_init__(self) -> None:
        if self.bucket_bytes < 0:
            raise ConfigurationError(
                f"parallel.bucket_bytes: expected 0 or more, found {self.bucket_bytes}"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run has, whatever its task.

    Attributes:
        task: what is trained.
        run: folder for checkpoints, metrics and pictures.
        seed: everything random follows from it, 0 or any other.
        start: a checkpoint, or the folder of a run, whose weights are begun with; the optimizer and
            the steps begin anew. null for random weights.
        train: how long and on how much at once.
        parallel: how ranks work together.
        optimizer: how parameters follow their gradients.
    """

    task: str
    run: Path
    seed: int = 0
    start: Path | None = None
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
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


def check_ranks(config: RunConfig, ranks: int) -> None:
    """Refuses a global batch that has not a sample for every rank, in each of its parts."""
    train = config.train
    parts = f" in each of its {train.accumulate} parts" if train.accumulate > 1 else ""
    if train.batch < ranks * train.accumulate:
        raise ConfigurationError(
            f"train.batch: expected at least one sample for each of the {ranks} ranks{parts}, "
            f"found {train.batch}"
        )
