"""Low resolution, bicubic enlargement and PSNR, each in one place and defined exactly.

- Low resolution is the original shrunk by bicubic interpolation with antialiasing (Keys' kernel,
  a = -0.5, widened by the factor: what Pillow and MATLAB do) and rounded to 8 bits, as files are.
- Bicubic enlargement, which a network must beat, uses the same kernel.
- PSNR is 10 log10(255² / mean squared error) in dB between luminances of 8 bits, leaving out a
  border as wide as the factor; originals are first cut to a multiple of the factor (at the right
  and bottom).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trainers.super_resolution.photographs import Pixels


def cut_to_multiple(image: Pixels, factor: int) -> Pixels:
    """The image without what is left over at the right and bottom."""
    height, width = image.shape[:2]
    return image[: height - height % factor, : width - width % factor]


def shrunk(images: Tensor, factor: int) -> Tensor:
    """Images (n, channels, height, width) in [0, 1] at low resolution, rounded to 8 bits."""
    low = functional.interpolate(
        images, scale_factor=1 / factor, mode="bicubic", antialias=True, align_corners=False
    )
    return low.clamp(0, 1).mul(255).round() / 255


def bicubic(images: Tensor, factor: int) -> Tensor:
    """Images (n, channels, height, width) enlarged by interpolation."""
    return functional.interpolate(
        images, scale_factor=float(factor), mode="bicubic", antialias=True, align_corners=False
    )


def to_tensor(image: Pixels) -> Tensor:
    """8 bits, (height, width) or (height, width, channels), as (1, channels, height, width)."""
    values = torch.from_numpy(np.array(image, dtype=np.float32)) / 255
    return values[None, None] if values.ndim == 2 else values.permute(2, 0, 1)[None]


def to_pixels(images: Tensor) -> Pixels:
    """One image (1, channels, height, width) in 8 bits, (height, width[, channels])."""
    rounded = images.clamp(0, 1).mul(255).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()
    result: Pixels = rounded[..., 0] if rounded.shape[-1] == 1 else rounded
    return result


def psnr(image: Pixels, original: Pixels, border: int) -> float:
    """Peak signal-to-noise ratio of two luminances, in dB."""
    inner = (slice(border, -border or None),) * 2
    error = image[inner].astype(np.float64) - original[inner]
    mean = float(np.square(error).mean())
    return math.inf if mean == 0 else 10 * math.log10(255**2 / mean)
