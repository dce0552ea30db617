"""How well noise is predicted in crops of photographs that were never trained on.

Crops, times and noise are the same in every run. The times are evenly spread, as what is predicted
well at one may be at random at another. Crops are judged in groups of a fixed size, which the ranks
share out, and losses are added in the order of the crops: what comes out has the same bits on any
number of ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainers.diffusion.crops import CropSampler, Samples
from trainers.diffusion.schedule import NoiseSchedule

if TYPE_CHECKING:
    from collectives import Communicator

GROUP = 16

_JUDGED = 0, 0, 1
"""Beside an index: more numbers than a sample of training follows from, hence other samples."""


class HeldOutCrops:
    """Crops to judge by, from the least noisy to the noisiest.

    Args:
        sampler: of the held-out photographs.
        schedule: of the noise.
        count: how many.

    Attributes:
        samples: the crops, with a time and noise each.
        baseline: what predicting the noise's mean, which is 0, loses on each crop.
    """

    def __init__(self, sampler: CropSampler, schedule: NoiseSchedule, count: int) -> None:
        drawn = sampler.drawn([(index, *_JUDGED) for index in range(count)])
        middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        times = 1 + (middles * schedule.times).long()
        self.samples = Samples(drawn.pictures, times, drawn.noise)
        self.baseline: list[float] = _means(drawn.noise.square())
        self._schedule = schedule

    def losses(self, model: nn.Module, comm: Communicator | None = None) -> list[float]:
        """The mean squared error on each crop; a collective call if there is a communicator."""
        rank, size = (comm.rank, comm.size) if comm is not None else (0, 1)
        groups = range(0, len(self.baseline), GROUP)
        mine = {begin: self._group(model, begin) for begin in groups[rank::size]}
        everyones = comm.allgather_object(mine) if comm is not None else [mine]
        found = {begin: losses for part in everyones for begin, losses in part.items()}
        return [loss for begin in groups for loss in found[begin]]

    @torch.no_grad()
    def _group(self, model: nn.Module, begin: int) -> list[float]:
        group = Samples(*(each[begin : begin + GROUP] for each in self.samples))
        return _means(squared_errors(model, self._schedule, group))


def squared_errors(model: nn.Module, schedule: NoiseSchedule, samples: Samples) -> Tensor:
    """Of the predicted noise in each pixel and colour."""
    noisy = schedule.noised(samples.pictures, samples.noise, samples.times)
    predicted: Tensor = model(noisy, samples.times)
    return (predicted.float() - samples.noise).square()


def mean_of(losses: list[float]) -> float:
    """The mean, added up in the order of the list."""
    return sum(losses) / len(losses)


def _means(squares: Tensor) -> list[float]:
    means: list[float] = squares.double().flatten(1).mean(1).tolist()
    return means
