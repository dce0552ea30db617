"""What a task is to the trainer: a model, the samples of a step, a loss, and a judgement.

The trainer knows nothing else about what it trains; a new task is a configuration with `build` and
a class with these methods, and a line in `configuration.TASKS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from collectives import Communicator
    from trainers.checkpoints import Checkpoint


class Task(Protocol):
    """One thing to train, with its data loaded.

    Attributes:
        name: of the kind of task.
        unit: what progress is counted in, in the plural.
        units_per_sample: how many of those a sample has.
    """

    name: str
    unit: str
    units_per_sample: int

    def new_model(self) -> nn.Module:
        """A model with its initial weights, drawn from torch's random state."""

    def start_weights(self, model: nn.Module, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """All weights that a new `model` is to begin with, from the checkpoint of another run."""

    def matrices(self, model: nn.Module) -> list[nn.Parameter]:
        """The inner weights of a model: those that `muon` moves where it is chosen."""

    def samples(self, step: int, share: range) -> Any:
        """Those samples of step's global batch that `share` names.

        Which samples a batch has follows from the seed and the step alone, so that it is the same
        batch however it is shared out and wherever a run resumes.
        """

    def extent(self) -> str:
        """How much of the data a run goes through, in words; empty where that means nothing."""

    def loss(self, model: nn.Module, samples: Any) -> Tensor:
        """The mean loss over the samples."""

    def attachments(self) -> dict[str, str]:
        """Texts that a checkpoint's weights are of no use without, such as a tokenizer."""

    def check_attachments(self, attachments: dict[str, str], origin: str) -> None:
        """Refuses a checkpoint that was attached other texts to than fit this data.

        Raises:
            CheckpointError: it names `origin`, what was expected and what was found.
        """

    def evaluate(self, model: nn.Module, comm: Communicator) -> dict[str, float]:
        """Judges the model on held-out data; a collective call, the same result on every rank."""

    def summary(self, result: dict[str, float]) -> str:
        """An evaluation in a few words, for the progress line."""

    def report(self, model: nn.Module, folder: Path, before: dict[str, float] | None) -> None:
        """Prints the final judgement and writes pictures into the run's folder; on rank 0 only.

        Args:
            model: to be judged.
            folder: of the run.
            before: the evaluation before the first step, where a run started from weights.
        """
