"""Diffusion as the trainer sees it: noisy crops of photographs in, predicted noise judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from rich.table import Table
from torch import Tensor, nn

from trainers.diffusion.crops import CropSampler, Samples, colours_of
from trainers.diffusion.drawing import draw_grid
from trainers.diffusion.judging import GROUP, HeldOutCrops, mean_of, squared_errors
from trainers.diffusion.network import COLOURS, UNet, UNetConfig
from trainers.diffusion.schedule import FEWEST, Kind, NoiseSchedule
from trainers.errors import CheckpointError, ConfigurationError
from trainers.run_config import RunConfig
from trainers.super_resolution.photographs import DataConfig as PhotographsConfig
from trainers.super_resolution.photographs import find_photographs, open_image, resized
from trainers.tables import print_table

if TYPE_CHECKING:
    from collectives import Communicator
    from trainers.checkpoints import Checkpoint

SIDE = 8
"""Samples in a row of the grid, and rows."""

PARTS = 4
"""Of the times, which the report judges apart."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(UNetConfig):
    """The network, and the noise that it is trained to predict.

    Attributes:
        schedule: how a picture becomes noise.
        times: in how many steps a picture becomes noise.
    """

    schedule: Kind = "cosine"
    times: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.times < FEWEST:
            raise ConfigurationError(f"model.times: expected {FEWEST} or more, found {self.times}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which photographs, and what is cut from them.

    Attributes:
        path: folder of images, searched in depth; null for the sample photographs.
        held_out: names (without suffix) of images that are judged on and never trained on; null for
            camera, chelsea, coffee and china of the samples, or a share of the folder.
        held_out_share: that share of a folder's images, chosen by a hash of names; at least 1.
        crop: side of a crop in pixels, a multiple of what the network's levels need.
        sizes: what is used of each photograph: itself (1.0) and smaller versions of it, a crop of
            which shows more.
        validation_crops: how many crops of the held-out photographs are judged on.
    """

    path: Path | None = None
    held_out: list[str] | None = None
    held_out_share: float = 0.1
    crop: int = 32
    sizes: tuple[float, ...] = (1.0,)
    validation_crops: int = 256

    def __post_init__(self) -> None:
        self.photographs()  # which checks what is the same for both tasks
        if self.crop < 1:
            raise ConfigurationError(f"data.crop: expected 1 or more, found {self.crop}")
        if self.validation_crops < PARTS:
            raise ConfigurationError(
                f"data.validation_crops: expected {PARTS} or more, found {self.validation_crops}"
            )

    def photographs(self) -> PhotographsConfig:
        """Which of the photographs that super-resolution has, too."""
        return PhotographsConfig(
            path=self.path,
            held_out=self.held_out,
            held_out_share=self.held_out_share,
            sizes=self.sizes,
        )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the pictures at a run's end are made.

    Attributes:
        steps: how many from noise to picture.
        eta: how much of the noise is fresh in each step: 0 for none (DDIM); 1, with as many steps
            as times, is ancestral sampling (DDPM).
    """

    steps: int = 50
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigurationError(f"sampling.steps: expected 1 or more, found {self.steps}")
        if not 0 <= self.eta <= 1:
            raise ConfigurationError(f"sampling.eta: expected 0 to 1, found {self.eta}")


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(RunConfig):
    """A run of the U-Net.

    Attributes:
        model: the network and its noise.
        data: the photographs.
        sampling: of the pictures at the end.
    """

    task: Literal["diffusion"] = "diffusion"
    run: Path = Path("runs/diffusion")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.crop % self.model.multiple:
            raise ConfigurationError(
                f"data.crop: expected a multiple of {self.model.multiple}, since each of the "
                f"{len(self.model.widths)} levels of model.widths but the first halves the size, "
                f"found {self.data.crop}"
            )
        if self.sampling.steps > self.model.times:
            raise ConfigurationError(
                f"sampling.steps: expected at most model.times ({self.model.times}), "
                f"found {self.sampling.steps}"
            )

    def build(self) -> Diffusion:
        """The task, with its photographs in memory."""
        return Diffusion(self)


class Diffusion:
    """The task of a `DiffusionConfig`."""

    name = "diffusion"
    unit = "images"
    units_per_sample = 1

    def __init__(self, config: DiffusionConfig) -> None:
        self._config = config
        self._schedule = NoiseSchedule(config.model.schedule, config.model.times)
        files = find_photographs(config.data.photographs())
        self._sampler = self._sampler_of(files.trained)
        self._held_out = HeldOutCrops(
            self._sampler_of(files.held_out), self._schedule, config.data.validation_crops
        )

    def new_model(self) -> UNet:
        """The network; its memory stays as it is, since channels last gain it nothing."""
        return UNet(self._config.model)

    def start_weights(self, model: nn.Module, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """The weights to use of it."""
        return checkpoint.best_weights

    def matrices(self, model: nn.Module) -> list[nn.Parameter]:
        """What lies between the first and the last convolution."""
        return cast("UNet", model).matrices

    def samples(self, step: int, share: range) -> Samples:
        """Crops, and how noisy each is to be."""
        return self._sampler.drawn([(self._config.seed, step, position) for position in share])

    def loss(self, model: nn.Module, samples: Samples) -> Tensor:
        """The mean squared error of the predicted noise."""
        return squared_errors(model, self._schedule, samples).mean()

    def extent(self) -> str:
        """Nothing: crops are drawn anew in every step."""
        return ""

    def attachments(self) -> dict[str, str]:
        """The schedule, whose noise the weights predict and no other."""
        return {"schedule": f"{self._config.model.schedule}, {self._config.model.times} times"}

    def check_attachments(self, attachments: dict[str, str], origin: str) -> None:
        """Refuses weights that know another schedule."""
        found, expected = attachments.get("schedule"), self.attachments()["schedule"]
        if found != expected:
            raise CheckpointError(
                f"{origin} is of another schedule of noise: expected {expected!r}, as "
                f"model.schedule and model.times say, found {found!r}"
            )

    def evaluate(self, model: nn.Module, comm: Communicator) -> dict[str, float]:
        """The loss on the held-out crops, also as a part of what predicting the mean loses."""
        loss = mean_of(self._held_out.losses(model, comm))
        return {"validation_loss": loss, "of_mean": loss / mean_of(self._held_out.baseline)}

    def summary(self, result: dict[str, float]) -> str:
        """Both losses."""
        loss = result["validation_loss"]
        return f"val {loss:.4f}, predicting the mean {loss / result['of_mean']:.4f}"

    def report(self, model: nn.Module, folder: Path, before: dict[str, float] | None) -> None:
        """Prints the table and draws samples."""
        print_table(
            self._table(
                {
                    "predicting the mean": self._held_out.baseline,
                    "network": self._held_out.losses(model),
                }
            )
        )
        if before is not None:
            print(f"before the first step: {self.summary(before)}", flush=True)
        path = folder / "samples.png"
        draw_grid(self._drawn(model), SIDE, path)
        print(f"samples of the network are {path}", flush=True)

    def _sampler_of(self, files: dict[str, Path]) -> CropSampler:
        images = {}
        for path in files.values():
            image = colours_of(open_image(path))
            for size in self._config.data.sizes:
                images[f"{path} (at size {size:g})"] = resized(image, size)
        return CropSampler(images, crop=self._config.data.crop, times=self._config.model.times)

    def _drawn(self, model: nn.Module) -> Tensor:
        """A grid's worth of samples, which follow from the seed and the weights."""
        random = torch.Generator().manual_seed(self._config.seed)
        side, sampling = self._config.data.crop, self._config.sampling
        noise = torch.randn(SIDE * SIDE, COLOURS, side, side, generator=random)
        groups = [
            self._schedule.sampled(
                model, group, steps=sampling.steps, eta=sampling.eta, random=random
            )
            for group in torch.split(noise, GROUP)
        ]
        return torch.cat(groups)

    def _table(self, losses: dict[str, list[float]]) -> Table:
        count, times = len(self._held_out.baseline), self._held_out.samples.times
        table = Table(title=f"held out, {count} crops: mean squared error of the noise at times")
        table.add_column("")
        edges = [count * part // PARTS for part in range(PARTS + 1)]
        parts = [slice(*pair) for pair in pairwise(edges)]
        for part in parts:
            table.add_column(f"{times[part][0]}–{times[part][-1]}", justify="right")
        table.add_column("all", justify="right")
        for name, each in losses.items():
            means = [mean_of(each[part]) for part in (*parts, slice(None))]
            style = "bold" if name == "network" else None
            table.add_row(name, *(f"{mean:.4f}" for mean in means), style=style)
        return table
