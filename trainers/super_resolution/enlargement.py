"""Enlarges whole images with a network, tile by tile: memory for one tile beside image and result.

An output pixel depends on REACH low-resolution pixels to each side, so a tile computed with that
much of its surroundings has the values the whole image would give. Beyond the image's border its
edge pixels are repeated. The network does luminance; colour differences and transparency are
bicubic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from trainers.super_resolution.network import REACH
from trainers.super_resolution.photographs import Pixels
from trainers.super_resolution.resolution import bicubic, to_pixels, to_tensor

Element = TypeVar("Element", bound=np.generic)

TILE = 192
SURROUNDINGS = REACH + 1

# Full-range YCbCr of ITU-R BT.601, as JPEG has it, for R, G, B in [0, 1] and Cb, Cr around 0.
_TO_YCBCR = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)
_TO_RGB = torch.tensor([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]])


def enlarged_luminance(network: nn.Module, low: Pixels, factor: int, tile: int = TILE) -> Pixels:
    """Luminance of 8 bits enlarged by the network, in 8 bits."""
    return _by_tiles(low, factor, tile, lambda part: _clean(network, to_tensor(part)))


def enlarged_image(
    network: nn.Module, image: Image.Image, factor: int, tile: int = TILE
) -> Image.Image:
    """An image of any mode enlarged; greyscale, transparency and 16 bits stay what they are."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        result = _enlarged_deep(network, image, factor, tile)
    else:
        if image.mode == "P" or "transparency" in image.info:
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        elif image.mode in ("1", "L", "LA", "La"):
            image = image.convert("LA" if "A" in image.mode.upper() else "L")
        elif image.mode not in ("RGB", "RGBA"):
            image = image.convert("RGBA" if image.mode.endswith(("A", "a")) else "RGB")
        pixels = _by_tiles(
            np.asarray(image), factor, tile, lambda part: _all_channels(network, part, factor)
        )
        result = Image.fromarray(pixels)
    if profile and result.mode == image.mode:
        result.info["icc_profile"] = profile
    return result


@torch.no_grad()
def _clean(network: nn.Module, low: Tensor) -> Tensor:
    result: Tensor = network(low.contiguous(memory_format=torch.channels_last))
    return result


def _all_channels(network: nn.Module, part: Pixels, factor: int) -> Tensor:
    """Every channel of a tile: L, LA, RGB or RGBA."""
    low = to_tensor(part)
    channels = low.shape[1]
    if channels <= 2:
        light = _clean(network, low[:, :1])
    else:
        ycbcr = torch.einsum("kc,nchw->nkhw", _TO_YCBCR, low[:, :3])
        y = _clean(network, ycbcr[:, :1])
        full = torch.cat([y, bicubic(ycbcr[:, 1:], factor)], dim=1)
        light = torch.einsum("kc,nchw->nkhw", _TO_RGB, full)
    if channels in (2, 4):
        light = torch.cat([light, bicubic(low[:, -1:], factor)], dim=1)
    return light


def _enlarged_deep(network: nn.Module, image: Image.Image, factor: int, tile: int) -> Image.Image:
    """A greyscale image of 16 bits, or of floats in [0, 1]."""
    values = np.asarray(image)
    top = 1.0 if image.mode.startswith("F") else 65535.0
    height, width = values.shape
    result: npt.NDArray[np.generic] = np.empty(
        (height * factor, width * factor), np.float32 if top == 1.0 else np.uint16
    )
    for rows, columns, part in _tiles(values, tile):
        low = torch.from_numpy((part.astype(np.float32) / top).clip(0, 1))[None, None]
        high = _inner(_clean(network, low), factor)[0, 0].clamp(0, 1).numpy() * top
        place = _enlarged_place(rows, columns, factor)
        result[place] = high if top == 1.0 else np.rint(high)
    return Image.fromarray(result)


def _by_tiles(
    pixels: Pixels, factor: int, tile: int, enlarge: Callable[[Pixels], Tensor]
) -> Pixels:
    height, width = pixels.shape[:2]
    result: Pixels = np.empty((height * factor, width * factor, *pixels.shape[2:]), np.uint8)
    for rows, columns, part in _tiles(pixels, tile):
        high = to_pixels(_inner(enlarge(part), factor))
        result[_enlarged_place(rows, columns, factor)] = high
    return result


def _tiles(
    pixels: npt.NDArray[Element], tile: int
) -> Iterator[tuple[range, range, npt.NDArray[Element]]]:
    """Rows and columns of each tile, and its pixels with their surroundings."""
    height, width = pixels.shape[:2]
    for top in range(0, height, tile):
        rows = range(top, min(top + tile, height))
        for left in range(0, width, tile):
            columns = range(left, min(left + tile, width))
            yield rows, columns, pixels[_around(rows, height)][:, _around(columns, width)]


def _around(places: range, length: int) -> npt.NDArray[np.intp]:
    """Indices of `places` and their surroundings, the border's own repeated beyond it."""
    return np.arange(places.start - SURROUNDINGS, places.stop + SURROUNDINGS).clip(0, length - 1)


def _inner(high: Tensor, factor: int) -> Tensor:
    margin = SURROUNDINGS * factor
    return high[..., margin:-margin, margin:-margin]


def _enlarged_place(rows: range, columns: range, factor: int) -> tuple[slice, slice]:
    return (
        slice(rows.start * factor, rows.stop * factor),
        slice(columns.start * factor, columns.stop * factor),
    )
