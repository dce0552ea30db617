"""How pictures become noise, by how much at each time, and how noise becomes pictures again.

At time t, from 1 to the last, a picture x has become sqrt(kept[t]) x + sqrt(1 - kept[t]) noise,
with noise of variance 1 (Ho et al. 2020; `kept` is what they write as alpha with a bar): pictures
of variance 1 keep it. At time 0 nothing is lost, at the last one nearly nothing is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FEWEST = 20
"""Times that a schedule needs; with fewer the linear one would add more than all."""

Kind = Literal["cosine", "linear"]
Prediction = Callable[[Tensor, Tensor], Tensor]

_OFFSET = 0.008  # of the cosine: so that the first times take a little of the picture, not nothing
_MOST = 0.999  # of the variance that one time may add
_LINEAR = 1e-4, 0.02  # what the first and last of 1000 times add


class NoiseSchedule:
    """How much of a picture is left at each time.

    Args:
        kind: the cosine of Nichol & Dhariwal 2021, or the linear one of Ho et al. 2020, whose
            variances are multiplied so that other numbers of times end alike.
        times: how many there are, `FEWEST` or more.

    Attributes:
        times: how many there are.
        kept: the part of the variance that is the picture's, at times 0 to `times`.
    """

    def __init__(self, kind: Kind, times: int) -> None:
        self.times = times
        added = _cosine(times) if kind == "cosine" else _linear(times)
        self.kept: npt.NDArray[np.float64] = np.cumprod([1.0, *(1 - added.clip(0, _MOST))])
        self._factors: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def noised(self, pictures: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What pictures (n, channels, height, width) are at n times."""
        each = (-1, 1, 1, 1)
        picture, left = self._factors_on(times.device)
        return picture[times].view(each) * pictures + left[times].view(each) * noise

    def _factors_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        found = self._factors.get(device)
        if found is None:
            factors = np.sqrt(self.kept), np.sqrt(1 - self.kept)
            picture, left = (torch.from_numpy(each).float().to(device) for each in factors)
            found = self._factors[device] = picture, left
        return found

    @torch.no_grad()
    def sampled(
        self,
        predict: Prediction,
        noise: Tensor,
        *,
        steps: int,
        eta: float = 0.0,
        random: torch.Generator | None = None,
    ) -> Tensor:
        """Makes pictures, in [-1, 1], out of noise (n, channels, height, width).

        Each step takes the picture that the predicted noise leaves, and goes to an earlier time of
        that picture (Song et al. 2021).

        Args:
            predict: gives the noise in what is noised, at a time for each.
            noise: to begin with.
            steps: how many, from 1 to `times`; evenly spread.
            eta: how much of the noise is fresh in each step. 0 for none: the picture follows from
                `noise` alone (DDIM). 1, with as many steps as times, is ancestral sampling (DDPM)
                with the variance that is right if the picture is known.
            random: where fresh noise is from.
        """
        current = noise
        for now, then in pairwise(np.linspace(self.times, 0, steps + 1).round().astype(int)):
            kept, left = float(self.kept[now]), float(self.kept[then])
            predicted = predict(current, torch.full((len(current),), int(now)))
            picture = (current - math.sqrt(1 - kept) * predicted) / math.sqrt(kept)
            # No picture is outside of [-1, 1]; the noise is what is then not the picture.
            picture = picture.clamp(-1, 1)
            predicted = (current - math.sqrt(kept) * picture) / math.sqrt(1 - kept)
            fresh = eta**2 * (1 - left) / (1 - kept) * (1 - kept / left)
            current = math.sqrt(left) * picture + math.sqrt(1 - left - fresh) * predicted
            if fresh > 0:
                current = current + math.sqrt(fresh) * torch.randn(noise.shape, generator=random)
        return current


def _cosine(times: int) -> npt.NDArray[np.float64]:
    """The variance each time adds, where the square of a quarter of a cosine is kept."""
    done = np.arange(times + 1) / times
    kept = np.cos((done + _OFFSET) / (1 + _OFFSET) * math.pi / 2) ** 2
    added: npt.NDArray[np.float64] = 1 - kept[1:] / kept[:-1]
    return added


def _linear(times: int) -> npt.NDArray[np.float64]:
    """The variance each time adds, growing evenly."""
    return np.linspace(*_LINEAR, times) * 1000 / times
