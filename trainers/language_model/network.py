"""The decoder: attention and gated layers in turn, each adding to what came before.

Each layer reads its input through a root-mean-square norm (Zhang & Sennrich 2019). Positions are
rotations of queries and keys (Su et al. 2021), several query heads share a pair of key and value
heads (Ainslie et al. 2023), the inner layer is gated by SiLU (Shazeer 2020), and one table serves
as the embedding of tokens and as the last layer (Press & Wolf 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.errors import ConfigurationError

EMBEDDING_DEVIATION = 0.02
"""Of the table's initial values: small, so that the first predictions are nearly uniform."""

ADDING = ("attention.output.weight", "gated.down.weight")
"""What is added to the stream; begun smaller, or the sum would grow with the number of layers."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of the decoder.

    Attributes:
        layers: how many; attention and gated layer count as one.
        width: numbers per token between layers.
        heads: how many of queries; they divide the width.
        key_value_heads: how many of keys and values; they divide the heads.
        hidden: inner width of a gated layer; 0 for 8/3 of the width, up to a multiple of 64.
        context: the most tokens it looks at.
        rope_base: the slowest rotation turns once in 2 pi times as many tokens, nearly.
    """

    layers: int = 6
    width: int = 128
    heads: int = 4
    key_value_heads: int = 2
    hidden: int = 0
    context: int = 256
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        least = {"layers": 1, "width": 1, "heads": 1, "key_value_heads": 1, "hidden": 0}
        for name, value in {**least, "context": 2}.items():
            if getattr(self, name) < value:
                raise ConfigurationError(
                    f"model.{name}: expected {value} or more, found {getattr(self, name)}"
                )
        if self.rope_base <= 1:
            raise ConfigurationError(
                f"model.rope_base: expected a number above 1, found {self.rope_base}"
            )
        if self.width % self.heads:
            raise ConfigurationError(
                f"model.width: expected a multiple of model.heads ({self.heads}), "
                f"found {self.width}"
            )
        if self.heads % self.key_value_heads:
            raise ConfigurationError(
                "model.heads: expected a multiple of model.key_value_heads "
                f"({self.key_value_heads}), found {self.heads}"
            )
        if self.head_size % 2:
            raise ConfigurationError(
                "model.width / model.heads: expected an even size of a head, which is rotated in "
                f"pairs, found {self.head_size}"
            )

    @property
    def head_size(self) -> int:
        """Numbers per head."""
        return self.width // self.heads

    @property
    def inner(self) -> int:
        """The inner width of a gated layer."""
        return self.hidden or -(-8 * self.width // (3 * 64)) * 64


class KeyValueCache:
    """Keys and values of the tokens a decoder has seen, in room for its whole context.

    Args:
        config: of the decoder.
        sequences: that are continued side by side.
        ranks: which share out the heads.
    """

    def __init__(self, config: DecoderConfig, sequences: int = 1, ranks: int = 1) -> None:
        self.length = 0
        heads = (config.key_value_heads // ranks, config.context, config.head_size)
        self._memory = torch.zeros(config.layers, 2, sequences, *heads)

    def extended(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Puts those of new tokens after the seen ones; returns a layer's whole keys and values."""
        end = self.length + keys.shape[-2]
        for kept, new in zip(self._memory[layer], (keys, values), strict=True):
            kept[..., self.length : end, :] = new
        whole = self._memory[layer, ..., :end, :]
        return whole[0], whole[1]


class Decoder(nn.Module):
    """Tokens (sequences, length) in, logits of each one's successor out.

    Args:
        config: its shape.
        vocabulary: how many different tokens there are.
    """

    def __init__(self, config: DecoderConfig, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocabulary, config.width)
        self.blocks = nn.ModuleList(_Block(config, layer) for layer in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        for name, turn in zip(("cosines", "sines"), _rotations(config), strict=True):
            self.register_buffer(name, turn, persistent=False)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_DEVIATION)
        for name, parameter in self.blocks.named_parameters():
            if parameter.ndim == 2:
                deviation = parameter.shape[1] ** -0.5
                if name.endswith(ADDING):
                    deviation *= (2 * config.layers) ** -0.5
                nn.init.normal_(parameter, std=deviation)

    @property
    def matrices(self) -> list[nn.Parameter]:
        """The weights between layers: all but the table, the norms and adapters."""
        return [
            parameter
            for name, parameter in self.blocks.named_parameters()
            if parameter.ndim == 2 and name.endswith("weight")
        ]

    def forward(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """The logits; with a cache, `tokens` come after those it holds, and are added to it."""
        begin = cache.length if cache is not None else 0
        end = begin + tokens.shape[-1]
        if end > self.config.context:
            raise ValueError(f"expected at most {self.config.context} tokens, found {end}")
        turn = self.get_buffer("cosines")[begin:end], self.get_buffer("sines")[begin:end]
        stream = self.embedding(tokens)
        for block in self.blocks:
            stream = block(stream, turn, cache)
        if cache is not None:
            cache.length = end
        return functional.linear(self.norm(stream), self.embedding.weight)


class _Block(nn.Module):
    """One layer: attention, then a gated layer."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.attention = _Attention(config, layer)
        self.gated_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.gated = _Gated(config)

    def forward(
        self, stream: Tensor, turn: tuple[Tensor, Tensor], cache: KeyValueCache | None
    ) -> Tensor:
        stream = stream + self.attention(self.attention_norm(stream), turn, cache)
        result: Tensor = stream + self.gated(self.gated_norm(stream))
        return result


class _Attention(nn.Module):
    """Every token takes in what earlier ones offer, and itself."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_size = config.head_size
        shared = config.key_value_heads * config.head_size
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(config.width, shared, bias=False)
        self.value = nn.Linear(config.width, shared, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self, inputs: Tensor, turn: tuple[Tensor, Tensor], cache: KeyValueCache | None
    ) -> Tensor:
        values = self._heads(self.value(inputs))
        # The rotation is done in float32, attention in the type that products are in.
        queries = rotated(self._heads(self.query(inputs)), *turn).to(values.dtype)
        keys = rotated(self._heads(self.key(inputs)), *turn).to(values.dtype)
        mask = None
        if cache is not None:
            keys, values = cache.extended(self.layer, keys, values)
            new, seen = queries.shape[-2], keys.shape[-2] - queries.shape[-2]
            if seen and new > 1:
                mask = torch.ones(new, seen + new, dtype=torch.bool, device=keys.device)
                mask = mask.tril(seen)
        mixed = functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            is_causal=queries.shape[-2] == keys.shape[-2],
            enable_gqa=True,
        )
        result: Tensor = self.output(mixed.transpose(-3, -2).flatten(-2))
        return result

    def _heads(self, inputs: Tensor) -> Tensor:
        return inputs.view(*inputs.shape[:-1], -1, self.head_size).transpose(-3, -2)


class _Gated(nn.Module):
    """SwiGLU: one half opens and closes the other."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.inner, bias=False)
        self.up = nn.Linear(config.width, config.inner, bias=False)
        self.down = nn.Linear(config.inner, config.width, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.down(functional.silu(self.gate(inputs)) * self.up(inputs))
        return result


def rotated(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turns pairs of numbers, one from each half of a head, by angles that grow with position."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)


def _rotations(config: DecoderConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every (position, pair)'s angle."""
    pairs = torch.arange(0, config.head_size, 2, dtype=torch.float64) / config.head_size
    angles = torch.outer(torch.arange(config.context), config.rope_base**-pairs)
    return angles.cos().float(), angles.sin().float()
