"""Training crops: random places and orientations that follow from (seed, step) alone.

A crop's low resolution is made on the spot from the crop with some context around it, which gives
what shrinking the whole photograph would have given there, at any offset and in no extra memory.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from trainers.errors import DataError
from trainers.super_resolution.photographs import Pixels
from trainers.super_resolution.resolution import bicubic, shrunk

CONTEXT = 2  # low-resolution pixels: half the width of the shrinking kernel
CELL = 4  # places are weighted in cells of so many pixels, and drawn evenly within


class CropSampler:
    """Draws crops from photographs.

    Args:
        images: luminance by name.
        factor: original pixels per low-resolution pixel.
        crop: side of a crop in low-resolution pixels.
        detail: how much places are preferred where bicubic enlargement errs.
        seed: of the run.
    """

    def __init__(
        self, images: Mapping[str, Pixels], *, factor: int, crop: int, detail: float, seed: int
    ) -> None:
        self._factor = factor
        self._crop = crop
        self._seed = seed
        self._window = factor * (crop + 2 * CONTEXT)
        self._images = [torch.from_numpy(np.array(image)) for image in images.values()]
        for name, image in images.items():
            check_size(name, image.shape[1], image.shape[0], factor=factor, crop=crop)
        weights = [self._weights(image, detail) for image in self._images]
        self._columns = [weight.shape[1] for weight in weights]
        self._first_cell = np.cumsum([0, *(weight.size for weight in weights)])
        self._cumulative = np.cumsum(np.concatenate([weight.ravel() for weight in weights]))

    def draw(self, step: int, batch: int, share: range) -> tuple[Tensor, Tensor]:
        """Of step's batch the crops in `share`: low resolution (n, 1, crop, crop) and original."""
        random = np.random.default_rng([self._seed, step])
        # The whole batch is drawn by every rank, so that a crop does not depend on the sharing.
        chosen = random.random(batch) * self._cumulative[-1]
        jitter = random.integers(CELL, size=(batch, 2))
        turns = random.integers(8, size=batch)
        cells = np.searchsorted(self._cumulative, chosen, side="right")
        cells = np.minimum(cells, len(self._cumulative) - 1)
        owners = np.searchsorted(self._first_cell, cells, side="right") - 1
        windows = []
        for index in share:
            owner = owners[index]
            row, column = divmod(int(cells[index] - self._first_cell[owner]), self._columns[owner])
            image = self._images[owner]
            top = min(row * CELL + int(jitter[index, 0]), image.shape[0] - self._window)
            left = min(column * CELL + int(jitter[index, 1]), image.shape[1] - self._window)
            window = image[top : top + self._window, left : left + self._window]
            windows.append(_turned(window, int(turns[index])))
        originals = torch.stack(windows)[:, None].float() / 255
        low = shrunk(originals, self._factor)
        outer = CONTEXT * self._factor
        return (
            low[:, :, CONTEXT:-CONTEXT, CONTEXT:-CONTEXT].contiguous(),
            originals[:, :, outer:-outer, outer:-outer],
        )

    def _weights(
        self, image: Tensor, detail: float
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """How likely each cell of places is: one number per CELL x CELL upper left corners."""
        factor = self._factor
        whole = image[: image.shape[0] // factor * factor, : image.shape[1] // factor * factor]
        original = whole[None, None].float() / 255
        error = (bicubic(shrunk(original, factor), factor) - original).square()
        here = functional.avg_pool2d(error, self._window, stride=CELL)[0, 0]
        weights: npt.NDArray[np.float64] = (here.double().numpy() + 1e-6) ** detail
        return weights


def check_size(name: str, width: int, height: int, *, factor: int, crop: int) -> None:
    """Refuses an image too small to cut crops from."""
    # Cut to a multiple of the factor it must still hold the window.
    least = factor * (crop + 2 * CONTEXT)
    if min(width, height) < least:
        raise DataError(
            f"{name}: expected at least {least} x {least} pixels for crops of {crop} x {crop} low-"
            f"resolution pixels with their surroundings, found {width} x {height}; see data.crop"
        )


def _turned(window: Tensor, turn: int) -> Tensor:
    """One of the eight orientations of a square."""
    if turn & 1:
        window = window.flip(0)
    if turn & 2:
        window = window.flip(1)
    return window.T if turn & 4 else window
