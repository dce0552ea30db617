"""Super-resolution as the trainer sees it: crops of photographs in, enlarged luminance judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.run_config import RunConfig
from trainers.super_resolution.comparison import (
    HeldOut,
    draw_comparison,
    score_table,
    scores_of,
)
from trainers.super_resolution.crops import CropSampler, check_size
from trainers.super_resolution.network import Net, NetConfig
from trainers.super_resolution.photographs import (
    DataConfig,
    find_photographs,
    luminance_of,
    open_image,
    planes_of,
    resized,
)
from trainers.tables import print_table

if TYPE_CHECKING:
    from collectives import Communicator
    from trainers.checkpoints import Checkpoint


@dataclass(frozen=True, kw_only=True)
class SuperResolutionConfig(RunConfig):
    """A run of the example network.

    Attributes:
        model: the network.
        data: the photographs.
    """

    task: Literal["super_resolution"] = "super_resolution"
    run: Path = Path("runs/super_resolution")
    model: NetConfig = field(default_factory=NetConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def build(self) -> SuperResolution:
        """The task, with its photographs in memory."""
        return SuperResolution(self)


class SuperResolution:
    """The task of a `SuperResolutionConfig`."""

    name = "super_resolution"
    unit = "images"
    units_per_sample = 1

    def __init__(self, config: SuperResolutionConfig) -> None:
        self._config = config
        self._factor = config.model.upscale_factor
        data, factor = config.data, self._factor
        files = find_photographs(data)
        self._held_out = []
        for name, path in files.held_out.items():
            image = open_image(path)
            check_size(str(path), image.width, image.height, factor=factor, crop=data.crop)
            self._held_out.append(HeldOut(name, path, factor))
        trained = {}
        for path in files.trained.values():
            image = open_image(path)
            planes = {"luminance": luminance_of(image), **(planes_of(image) if data.planes else {})}
            for size in data.sizes:
                for name, plane in planes.items():
                    trained[f"{path} ({name} at size {size:g})"] = resized(plane, size)
        self._sampler = CropSampler(
            trained,
            factor=factor,
            crop=data.crop,
            detail=data.detail,
            seed=config.seed,
        )

    def new_model(self) -> Net:
        """The network, channels last: a fifth quicker on processors."""
        network = Net(self._factor)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def start_weights(self, model: nn.Module, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """The checkpoint's best ones."""
        return checkpoint.best_weights

    def matrices(self, model: nn.Module) -> list[nn.Parameter]:
        """The kernels of the inner layers."""
        return [parameter for parameter in model.parameters() if parameter.ndim >= 2][1:-1]

    def samples(self, step: int, share: range) -> tuple[Tensor, Tensor]:
        """Crops at low resolution, and as they were."""
        return self._sampler.draw(step, self._config.train.batch, share)

    def loss(self, model: nn.Module, samples: tuple[Tensor, Tensor]) -> Tensor:
        """The mean squared error, leaving out each crop's edge."""
        low, original = samples
        output: Tensor = model(low.contiguous(memory_format=torch.channels_last))
        edge = self._config.data.edge * self._factor
        inner = slice(edge, -edge or None)
        return functional.mse_loss(output[:, :, inner, inner].float(), original[:, :, inner, inner])

    def extent(self) -> str:
        """Nothing: crops are drawn anew in every step."""
        return ""

    def attachments(self) -> dict[str, str]:
        """Nothing: weights are enough."""
        return {}

    def check_attachments(self, attachments: dict[str, str], origin: str) -> None:
        """Nothing to refuse."""

    def evaluate(self, model: nn.Module, comm: Communicator) -> dict[str, float]:
        """PSNR on every held-out photograph; the ranks share them out."""
        mine = {
            f"psnr/{image.name}": image.judged(model)
            for image in self._held_out[comm.rank :: comm.size]
        }
        everyones = comm.allgather_object(mine)
        judged = {name: value for part in everyones for name, value in part.items()}
        return {f"psnr/{image.name}": judged[f"psnr/{image.name}"] for image in self._held_out}

    def summary(self, result: dict[str, float]) -> str:
        """The mean gain over bicubic."""
        gains = [score.gain for score in scores_of(self._held_out, result)]
        return f"gain {sum(gains) / len(gains):+.3f} dB"

    def report(self, model: nn.Module, folder: Path, before: dict[str, float] | None) -> None:
        """Prints the table and draws the picture."""
        result = {f"psnr/{image.name}": image.judged(model) for image in self._held_out}
        scores = scores_of(self._held_out, result)
        print_table(score_table(scores, self._factor))
        if before is not None:
            print(f"before the first step: {self.summary(before)}", flush=True)
        path = folder / "comparison.png"
        draw_comparison(model, self._held_out, scores, path)
        print(f"the picture is {path}", flush=True)
