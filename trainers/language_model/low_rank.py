"""Low-rank adapters: a layer's weight W stays as it is, and a small product B A beside it learns.

    y = W x + (alpha / rank) B (A x)        A: rank x inputs,  B: outputs x rank

B begins at zero, so that the decoder begins as what it was (Hu et al. 2021). Afterwards both can be
merged, W + (alpha / rank) B A, into a decoder of the usual shape that costs nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.errors import ConfigurationError

if TYPE_CHECKING:
    from trainers.checkpoints import Checkpoint
    from trainers.language_model.network import Decoder

Layer = Literal["query", "key", "value", "output", "gate", "up", "down"]

INWARD, OUTWARD = "adapter_in", "adapter_out"
"""A and B, as a checkpoint names them beside the `weight` they belong to."""


@dataclass(frozen=True, kw_only=True)
class LowRankConfig:
    """Adapters that are trained in place of the weights.

    Attributes:
        rank: the rank of the adapters; 0 for none, so that all weights are trained.
        alpha: how much they count, as a multiple of 1 / rank; 0 for twice the rank.
        layers: which ones get an adapter, in every block; query to output are the attention's.
    """

    rank: int = 0
    alpha: float = 0.0
    layers: list[Layer] = field(default_factory=lambda: ["query", "key", "value", "output"])

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            if not getattr(self, name) >= 0:
                raise ConfigurationError(
                    f"lora.{name}: expected 0 or more, found {getattr(self, name)}"
                )
        if not self.layers:
            raise ConfigurationError("lora.layers: expected at least one layer, found none")

    @property
    def scale(self) -> float:
        """What the product is multiplied with."""
        return self.alpha / self.rank if self.alpha and self.rank else 2.0


class AdaptedLinear(nn.Module):
    """A linear layer that has got an adapter; its weight keeps its name.

    Args:
        base: the layer as it was, whose weight is shared.
        rank: of the adapter.
        scale: what the product is multiplied with.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        outputs, inputs = base.weight.shape
        self.scale = scale
        self.weight = base.weight
        self.adapter_in = nn.Parameter(torch.randn(rank, inputs) * inputs**-0.5)
        self.adapter_out = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, inputs: Tensor) -> Tensor:
        """What the layer gave, and the adapter's share."""
        learned = functional.linear(functional.linear(inputs, self.adapter_in), self.adapter_out)
        return functional.linear(inputs, self.weight) + self.scale * learned


def add_adapters(decoder: Decoder, config: LowRankConfig) -> None:
    """Freezes a decoder and gives its layers adapters, which alone are trained then.

    Raises:
        ConfigurationError: the rank is more than a layer can have.
    """
    decoder.requires_grad_(False)
    for name, module in list(decoder.blocks.named_modules()):
        parent, _, last = name.rpartition(".")
        if not isinstance(module, nn.Linear) or last not in config.layers:
            continue
        most = min(module.weight.shape)
        if config.rank > most:
            raise ConfigurationError(
                f"lora.rank: expected at most {most}, the smaller side of blocks.{name}, "
                f"found {config.rank}"
            )
        adapted = AdaptedLinear(module, config.rank, config.scale)
        setattr(decoder.blocks.get_submodule(parent), last, adapted)


def adapters_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a decoder's weights that belong to adapters."""
    return {name: w for name, w in weights.items() if name.endswith((INWARD, OUTWARD))}


def merged(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The weights of a decoder without adapters that computes the same."""
    adapters = adapters_of(weights)
    plain = {name: weight for name, weight in weights.items() if name not in adapters}
    for name in adapters:
        layer, _, part = name.rpartition(".")
        if part == OUTWARD:
            learned = weights[name] @ weights[f"{layer}.{INWARD}"]
            plain[f"{layer}.weight"] = plain[f"{layer}.weight"] + scale * learned
    return plain


def merged_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The best weights of a language model's checkpoint, for a decoder without adapters."""
    config = LowRankConfig(**checkpoint.config.get("lora", {}))  # older ones have none
    return merged(checkpoint.best_weights, config.scale)
