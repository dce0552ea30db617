"""Crops of photographs in colour, each with a time and noise, that follow from a few numbers.

A sample of training is drawn from (seed, step, position in the batch) alone: a batch is the same on
any number of ranks, and a rank draws no more than its own part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainers.diffusion.network import COLOURS
from trainers.errors import DataError
from trainers.super_resolution.photographs import Pixels, luminance_of


class Samples(NamedTuple):
    """Pictures (n, 3, height, width) in [-1, 1], n times, and noise like the pictures."""

    pictures: Tensor
    times: Tensor
    noise: Tensor


class CropSampler:
    """Draws crops from photographs, every place of every photograph alike.

    Args:
        images: of 8 bits, (height, width, 3), by name.
        crop: side of a crop in pixels.
        times: of the noise's schedule.

    Raises:
        DataError: a photograph is smaller than a crop; the message names it.
    """

    def __init__(self, images: Mapping[str, Pixels], *, crop: int, times: int) -> None:
        for name, image in images.items():
            height, width = image.shape[:2]
            if min(height, width) < crop:
                raise DataError(
                    f"{name}: expected at least {crop} x {crop} pixels for a crop, found "
                    f"{width} x {height}; see data.crop and data.sizes"
                )
        self._images = list(images.values())
        self._crop = crop
        self._times = times
        self._rows = [image.shape[0] - crop + 1 for image in self._images]
        self._columns = [image.shape[1] - crop + 1 for image in self._images]
        places = [rows * columns for rows, columns in zip(self._rows, self._columns, strict=True)]
        self._first = np.cumsum([0, *places])

    def drawn(self, numbers: Iterable[Sequence[int]]) -> Samples:
        """A sample for each of several sequences of numbers, from which alone it follows."""
        pictures, times, noise = [], [], []
        for each in numbers:
            random = np.random.default_rng(each)
            pictures.append(self._picture(random))
            times.append(int(random.integers(1, self._times + 1)))
            shape = (COLOURS, self._crop, self._crop)
            noise.append(random.standard_normal(shape, dtype=np.float32))
        return Samples(
            torch.from_numpy(np.stack(pictures)),
            torch.tensor(times),
            torch.from_numpy(np.stack(noise)),
        )

    def _picture(
        self, random: np.random.Generator
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        place = int(random.integers(self._first[-1]))
        flipped = bool(random.integers(2))
        owner = int(np.searchsorted(self._first, place, side="right")) - 1
        top, left = divmod(place - int(self._first[owner]), self._columns[owner])
        image = self._images[owner][top : top + self._crop, left : left + self._crop]
        if flipped:
            image = image[:, ::-1]
        return image.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - 1


def colours_of(image: Image.Image) -> Pixels:
    """An image of any mode, transparency left out, as (height, width, 3) of 8 bits."""
    if image.mode.startswith(("I", "F")):
        return np.repeat(luminance_of(image)[..., None], COLOURS, axis=2)
    return np.asarray(image.convert("RGB"))
