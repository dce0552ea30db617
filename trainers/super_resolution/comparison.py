"""The end of a run: a table of PSNR against bicubic, and a picture to see it by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.table import Table
from torch import nn

from trainers.super_resolution.enlargement import enlarged_image, enlarged_luminance
from trainers.super_resolution.photographs import Pixels, luminance_of, open_image, planes_of
from trainers.super_resolution.resolution import (
    bicubic,
    cut_to_multiple,
    psnr,
    shrunk,
    to_pixels,
    to_tensor,
)

CLOSE_UP = 96  # side of the enlarged detail in the picture, in original pixels


class HeldOut:
    """A photograph to judge by: its luminance, that at low resolution, and bicubic's result."""

    def __init__(self, name: str, path: Path, factor: int) -> None:
        self.name = name
        self.path = path
        self.factor = factor
        self.original = cut_to_multiple(luminance_of(open_image(path)), factor)
        self.low = to_pixels(shrunk(to_tensor(self.original), factor))
        self.bicubic = to_pixels(bicubic(to_tensor(self.low), factor))
        self.bicubic_psnr = psnr(self.bicubic, self.original, factor)

    def judged(self, network: nn.Module) -> float:
        """PSNR of the network's enlargement."""
        image = enlarged_luminance(network, self.low, self.factor)
        return psnr(image, self.original, self.factor)


@dataclass(frozen=True)
class Score:
    """PSNR on one held-out photograph, in dB."""

    name: str
    bicubic: float
    network: float

    @property
    def gain(self) -> float:
        """By how much the network is better."""
        return self.network - self.bicubic


def scores_of(held_out: list[HeldOut], result: dict[str, float]) -> list[Score]:
    """The scores in what an evaluation gave."""
    return [
        Score(image.name, image.bicubic_psnr, result[f"psnr/{image.name}"]) for image in held_out
    ]


def score_table(scores: list[Score], factor: int) -> Table:
    """PSNR on each held-out photograph, bicubic beside network."""
    table = Table(title=f"held out, x{factor}: PSNR of Y in dB")
    table.add_column("photograph")
    for heading in ("bicubic", "network", "gain"):
        table.add_column(heading, justify="right")
    for score in scores:
        table.add_row(*_cells(score))
    table.add_section()
    mean = Score(
        "mean",
        sum(score.bicubic for score in scores) / len(scores),
        sum(score.network for score in scores) / len(scores),
    )
    table.add_row(*_cells(mean), style="bold")
    return table


def draw_comparison(
    network: nn.Module, held_out: list[HeldOut], scores: list[Score], path: Path
) -> None:
    """A PNG with a row per photograph: the whole, and a detail of it each way.

    Low resolution, bicubic, network and original stand side by side. The detail is where bicubic
    errs most: chosen before the network is asked.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows = len(held_out)
    figure = Figure(figsize=(15.5, 3.25 * rows + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(rows, 5, squeeze=False, width_ratios=[1.35, 1, 1, 1, 1])
    for row, (image, score) in enumerate(zip(held_out, scores, strict=True)):
        views = _views(network, image)
        top, left, side = _close_up(image)
        whole = axes[row, 0]
        _show(whole, views["original"])
        whole.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor="red", lw=1.5))
        whole.set_title(f"{image.name}: the network gains {score.gain:+.2f} dB", fontsize=11)
        factor = image.factor
        titles = {
            "low": f"low resolution (1/{factor})",
            "bicubic": f"bicubic {score.bicubic:.2f} dB",
            "network": f"network {score.network:.2f} dB",
            "original": "original",
        }
        for axis, (kind, title) in zip(axes[row, 1:], titles.items(), strict=True):
            scale = 1 if kind != "low" else factor
            view = views[kind]
            _show(
                axis,
                view[top // scale : (top + side) // scale, left // scale : (left + side) // scale],
            )
            axis.set_title(title, fontsize=11)
    figure.savefig(path)


def _cells(score: Score) -> list[str]:
    style = "green" if score.gain > 0 else "red"
    gain = f"[{style}]{score.gain:+.2f}[/{style}]"
    return [score.name, f"{score.bicubic:.2f}", f"{score.network:.2f}", gain]


def _views(network: nn.Module, image: HeldOut) -> dict[str, npt.NDArray[np.uint8]]:
    """The photograph in colour, each way; grey where it is grey."""
    factor = image.factor
    opened = open_image(image.path)
    if planes_of(opened):
        original = cut_to_multiple(np.asarray(opened.convert("RGB")), factor)
    else:
        original = image.original
    low = to_pixels(shrunk(to_tensor(original), factor))
    return {
        "original": original,
        "low": low,
        "bicubic": to_pixels(bicubic(to_tensor(low), factor)),
        "network": np.asarray(enlarged_image(network, Image.fromarray(low), factor)),
    }


def _close_up(image: HeldOut) -> tuple[int, int, int]:
    """Top, left and side of the square where bicubic errs most, on low-resolution pixels."""
    factor = image.factor
    height, width = image.original.shape
    side = min(CLOSE_UP, height, width) // factor * factor
    error = np.square(image.bicubic.astype(np.float64) - image.original)
    sums = np.pad(error.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    within = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    places = within[::factor, ::factor]
    top, left = np.unravel_index(int(places.argmax()), places.shape)
    return int(top) * factor, int(left) * factor, side


def _show(axis: Any, image: Pixels) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
