"""How well a model predicts held-out text: nats a token, perplexity, bits a byte.

Windows are judged in groups of a fixed size: what a product rounds to may depend on how many rows
it has. Ranks share the groups out and the sums are added in the order of the windows, so the result
has the same bits on any number of ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.errors import DataError

if TYPE_CHECKING:
    from collectives import Communicator

GROUP = 16


@dataclass(frozen=True)
class Score:
    """What a mean loss amounts to.

    Attributes:
        loss: nats a token.
        bytes_per_token: of the text that was judged.
    """

    loss: float
    bytes_per_token: float

    @property
    def perplexity(self) -> float:
        """Among how many tokens, equally likely, one would have to choose."""
        return math.exp(min(self.loss, 700))

    @property
    def bits_per_byte(self) -> float:
        """What a byte would take, compressed by such predictions: compares vocabularies, too."""
        return self.loss / math.log(2) / self.bytes_per_token


def loss_of(model: nn.Module, windows: Tensor, reduction: str = "mean") -> Tensor:
    """Cross entropy of each token but the first of every window, given those before it."""
    logits = model(windows[:, :-1])
    return functional.cross_entropy(
        logits.float().transpose(1, 2), windows[:, 1:], reduction=reduction
    )


class HeldOutWindows:
    """Windows of held-out tokens, one beginning where another ends.

    Args:
        tokens: all that is held out.
        context: targets per window.
        most: windows to judge by at most; if there are more they are evenly spread.

    Raises:
        DataError: fewer tokens than one window.
    """

    def __init__(self, tokens: npt.NDArray[np.unsignedinteger], *, context: int, most: int) -> None:
        there = (len(tokens) - 1) // context
        if there < 1:
            raise DataError(
                f"expected at least {context + 1:,} held-out tokens, a window of model.context "
                f"and one more, found {len(tokens):,}: give more text or a larger "
                "data.held_out_share"
            )
        chosen = min(there, most)
        begins = [index * there // chosen * context for index in range(chosen)]
        self.windows = np.stack([tokens[begin : begin + context + 1] for begin in begins])
        self.targets = chosen * context

    def loss(self, model: nn.Module, comm: Communicator | None = None) -> float:
        """The mean loss a token; a collective call where there is a communicator."""
        rank, size = (comm.rank, comm.size) if comm is not None else (0, 1)
        groups = range(0, len(self.windows), GROUP)
        mine = {begin: self._sums(model, begin) for begin in groups[rank::size]}
        everyones = comm.allgather_object(mine) if comm is not None else [mine]
        sums = {begin: part[begin] for part in everyones for begin in part}
        return sum(value for begin in groups for value in sums[begin]) / self.targets

    @torch.no_grad()
    def _sums(self, model: nn.Module, begin: int) -> list[float]:
        windows = torch.from_numpy(self.windows[begin : begin + GROUP].astype(np.int64))
        losses = loss_of(model, windows, reduction="none").double().sum(1)
        return [float(value) for value in losses]
