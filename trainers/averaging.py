"""An exponential moving average of a model's weights, which judges better than the last step's."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """A second copy of `model` that follows it slowly.

    Args:
        model: the model that is trained.
        decay: how much of the average is kept each step; early on less, so that the random weights
            of the beginning are forgotten. 0 means that the copy is the model itself.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = model if decay == 0 else copy.deepcopy(model).requires_grad_(False)
        self._theirs: list[Tensor] = list(model.parameters())
        self._ours: list[Tensor] = list(self.model.parameters())
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after `step` (counted from 0)."""
        if self.decay == 0:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._ours, self._theirs, 1 - decay)
        for mine, theirs in self._buffers:
            mine.copy_(theirs)
