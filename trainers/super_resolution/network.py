"""The example network: four convolutions, then a shuffle of channels into pixels.

It is the network of PyTorch's super-resolution example, after ESPCN (W. Shi et al., "Real-Time
Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network",
2016): all work is done at low resolution, and the last convolution gives each pixel's r x r
successors as channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from trainers.errors import ConfigurationError

REACH = 5
"""How many low-resolution pixels to each side an output pixel depends on: 2 + 1 + 1 + 1."""


@dataclass(frozen=True, kw_only=True)
class NetConfig:
    """Of the example network.

    Attributes:
        upscale_factor: how many times wider and higher the output is.
    """

    upscale_factor: int = 3

    def __post_init__(self) -> None:
        if not 2 <= self.upscale_factor <= 8:
            raise ConfigurationError(
                f"model.upscale_factor: expected 2 to 8, found {self.upscale_factor}"
            )


class Net(nn.Module):
    """Luminance in [0, 1], shape (images, 1, height, width), enlarged by `upscale_factor`."""

    def __init__(self, upscale_factor: int) -> None:
        super().__init__()
        self.upscale_factor = upscale_factor
        self.conv1 = nn.Conv2d(1, 64, 5, padding=2)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 32, 3, padding=1)
        self.conv4 = nn.Conv2d(32, upscale_factor**2, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.pixel_shuffle = nn.PixelShuffle(upscale_factor)
        gain = nn.init.calculate_gain("relu")
        for layer in (self.conv1, self.conv2, self.conv3):
            nn.init.orthogonal_(layer.weight, gain)
        nn.init.orthogonal_(self.conv4.weight)

    def forward(self, low: Tensor) -> Tensor:
        """The enlarged luminance."""
        features = self.relu(self.conv1(low))
        features = self.relu(self.conv2(features))
        features = self.relu(self.conv3(features))
        return cast("Tensor", self.pixel_shuffle(self.conv4(features)))
