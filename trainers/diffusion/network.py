"""The network: a U-Net that is told how noisy its input is, and predicts the noise in it.

Each level works at half the size of the one above, and what it gives is put beside what that one
had before (Ronneberger et al. 2015). Levels are made of residual blocks (He et al. 2016), with
group norms (Wu & He 2018) and SiLU, in each of which the time is added; at the lowest level every
place attends to every other (Ho et al. 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.errors import ConfigurationError

COLOURS = 3
LONGEST = 10_000.0
"""The slowest wave of the times' embedding turns once in 2 pi times as many."""


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Shape of the U-Net.

    Attributes:
        widths: channels at each level, from the full size down; each level halves the size.
        blocks: how many residual blocks of a level on its way down, and as many on its way up.
        groups: how many, of channels that are normed together; they divide every width.
        heads: how many of the attention; they divide the last width.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    blocks: int = 1
    groups: int = 8
    heads: int = 4

    def __post_init__(self) -> None:
        for name in ("blocks", "groups", "heads"):
            if getattr(self, name) < 1:
                raise ConfigurationError(
                    f"model.{name}: expected 1 or more, found {getattr(self, name)}"
                )
        widths = list(self.widths)
        if not widths or any(width < 1 or width % self.groups for width in widths):
            raise ConfigurationError(
                f"model.widths: expected multiples of model.groups ({self.groups}), found {widths}"
            )
        if widths[0] % 2:
            raise ConfigurationError(
                "model.widths: expected an even number of channels at the first level, for as many "
                f"sines as cosines of the time, found {widths[0]}"
            )
        if widths[-1] % self.heads:
            raise ConfigurationError(
                "model.heads: expected a divisor of the last of model.widths "
                f"({widths[-1]}), found {self.heads}"
            )

    @property
    def multiple(self) -> int:
        """What height and width of a picture must be a multiple of."""
        return 1 << (len(self.widths) - 1)


class UNet(nn.Module):
    """Noisy pictures (n, 3, height, width) and n times in, the noise predicted.

    At first it predicts 0: blocks begin as nothing but their short cut, and so does the whole.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        first, told = config.widths[0], 4 * config.widths[0]
        self.time = nn.Sequential(nn.Linear(first, told), nn.SiLU(), nn.Linear(told, told))
        self.first = nn.Conv2d(COLOURS, first, 3, padding=1)
        self.levels = _level(config, config.widths, told)
        self.norm = nn.GroupNorm(config.groups, first)
        self.last = _nothing_yet(nn.Conv2d(first, COLOURS, 3, padding=1))

    @property
    def matrices(self) -> list[nn.Parameter]:
        """The weights between the first and the last layer."""
        inner = [*self.time.parameters(), *self.levels.parameters()]
        return [parameter for parameter in inner if parameter.ndim >= 2]

    def forward(self, noisy: Tensor, times: Tensor) -> Tensor:
        """The noise in `noisy`, at a time for each."""
        told = functional.silu(self.time(waves(times, self.first.out_channels)))
        features = self.levels(self.first(noisy), told)
        return cast("Tensor", self.last(functional.silu(self.norm(features))))


def waves(times: Tensor, channels: int) -> Tensor:
    """Cosines and sines of times (n), at frequencies from 1 down: (n, channels)."""
    half = channels // 2
    frequencies = torch.exp(torch.arange(half, device=times.device) * (-math.log(LONGEST) / half))
    angles = times[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _level(config: UNetConfig, widths: tuple[int, ...], told: int) -> nn.Module:
    """The level of widths[0] channels with all that lie below it."""
    return _Level(config, widths, told) if len(widths) > 1 else _Lowest(config, widths[0], told)


class _Level(nn.Module):
    """Blocks; what lies below, at half the size; and blocks on both side by side."""

    def __init__(self, config: UNetConfig, widths: tuple[int, ...], told: int) -> None:
        super().__init__()
        width, below = widths[:2]
        inputs = [width] * config.blocks
        self.before = nn.ModuleList(_Block(each, width, config.groups, told) for each in inputs)
        self.smaller = nn.Conv2d(width, below, 3, stride=2, padding=1)
        self.below = _level(config, widths[1:], told)
        self.larger = nn.Conv2d(below, width, 3, padding=1)
        inputs[0] = 2 * width
        self.after = nn.ModuleList(_Block(each, width, config.groups, told) for each in inputs)

    def forward(self, features: Tensor, told: Tensor) -> Tensor:
        for block in self.before:
            features = block(features, told)
        below = self.below(self.smaller(features), told)
        below = self.larger(functional.interpolate(below, scale_factor=2.0, mode="nearest"))
        features = torch.cat([features, below], dim=1)
        for block in self.after:
            features = block(features, told)
        return features


class _Lowest(nn.Module):
    """A block, attention, a block."""

    def __init__(self, config: UNetConfig, width: int, told: int) -> None:
        super().__init__()
        self.before = _Block(width, width, config.groups, told)
        self.attention = _Attention(width, config.groups, config.heads)
        self.after = _Block(width, width, config.groups, told)

    def forward(self, features: Tensor, told: Tensor) -> Tensor:
        features = self.attention(self.before(features, told))
        return cast("Tensor", self.after(features, told))


class _Block(nn.Module):
    """Adds what two convolutions make of the input; between them it is told the time."""

    def __init__(self, inputs: int, outputs: int, groups: int, told: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(told, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.conv2 = _nothing_yet(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.short = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, features: Tensor, told: Tensor) -> Tensor:
        inner = self.conv1(functional.silu(self.norm1(features)))
        inner = inner + self.time(told)[:, :, None, None]
        inner = self.conv2(functional.silu(self.norm2(inner)))
        return cast("Tensor", self.short(features) + inner)


class _Attention(nn.Module):
    """Every place takes in what the others offer."""

    def __init__(self, width: int, groups: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, width)
        # No biases: that of the keys would change nothing.
        self.mixed = nn.Conv2d(width, 3 * width, 1, bias=False)
        self.output = _nothing_yet(nn.Conv2d(width, width, 1))

    def forward(self, features: Tensor) -> Tensor:
        images, width, height, breadth = features.shape
        mixed = self.mixed(self.norm(features)).flatten(2)
        parts = mixed.view(images, 3, self.heads, width // self.heads, -1).transpose(-1, -2)
        queries, keys, values = parts.unbind(1)
        attended = functional.scaled_dot_product_attention(queries, keys, values)
        attended = attended.transpose(-1, -2).reshape(images, width, height, breadth)
        return cast("Tensor", features + self.output(attended))


def _nothing_yet(layer: nn.Conv2d) -> nn.Conv2d:
    """A layer that gives 0 until it has learned."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
