"""Text continued by a trained decoder, a token at a time, each drawn from what it predicts.

Keys and values of earlier tokens are kept, so that a token costs one pass over one token. When the
decoder's context is full it is begun anew with the later half of it: text may become longer than
the context, of which then half to all is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainers.checkpoints import load_weights, read_checkpoint
from trainers.configuration import config_from
from trainers.errors import ConfigurationError
from trainers.language_model.low_rank import merged_weights
from trainers.language_model.network import Decoder, KeyValueCache
from trainers.language_model.tokenization import Tokenizer, saved_tokenizer

TASK = "language_model"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a continuation is drawn.

    Attributes:
        tokens: how many at most; the end of a file ends it, too.
        temperature: what logits are divided by; 0 takes the likeliest token.
        top_k: draws among so many of the likeliest; 0 for all.
        seed: of the draws.
    """

    tokens: int = 200
    temperature: float = 0.8
    top_k: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("temperature", 0), ("top_k", 0), ("seed", 0)):
            if not getattr(self, name) >= least:
                raise ConfigurationError(
                    f"{name}: expected {least} or more, found {getattr(self, name)}"
                )


def read_decoder(path: Path) -> tuple[Decoder, Tokenizer]:
    """The decoder in a checkpoint, or in the latest one of a run's folder, and its tokenizer.

    Adapters are merged into the weights.
    """
    checkpoint = read_checkpoint(path)
    checkpoint.check_task(TASK, path)
    tokenizer = saved_tokenizer(checkpoint.attachments, str(path))
    config = config_from(checkpoint.config, str(path))
    decoder = Decoder(config.model, tokenizer.vocabulary)  # type: ignore[attr-defined]
    load_weights(decoder, merged_weights(checkpoint), str(path))
    return decoder, tokenizer


def continuation(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompt: str,
    sampling: Sampling,
    cache: KeyValueCache | None = None,
) -> str:
    """The prompt and what the decoder writes after it; an empty prompt begins a file."""
    tokens = [int(token) for token in tokenizer.encode(prompt)] or [tokenizer.end]
    return tokenizer.decode([*tokens, *continued(decoder, tokens, sampling, tokenizer.end, cache)])


@torch.no_grad()
def continued(
    decoder: Decoder,
    tokens: Sequence[int],
    sampling: Sampling,
    end: int | None = None,
    cache: KeyValueCache | None = None,
) -> list[int]:
    """The tokens that come after `tokens`, up to `end`, which is not among them.

    Args:
        decoder: that predicts.
        tokens: what is continued.
        sampling: how.
        end: the token that ends a file.
        cache: an empty one, for a decoder that has not all heads; by default it has.
    """
    random = torch.Generator().manual_seed(sampling.seed)
    context = decoder.config.context
    cache = KeyValueCache(decoder.config) if cache is None else cache
    found: list[int] = []
    unseen = list(tokens)
    while len(found) < sampling.tokens:
        if cache.length + len(unseen) > context:
            cache.length = 0
            unseen = [*tokens, *found][-(context // 2) :]
        logits = decoder(torch.tensor([unseen]), cache)[0, -1]
        token = _drawn(logits.float(), sampling, random)
        if token == end:
            break
        found.append(token)
        unseen = [token]
    return found


def _drawn(logits: Tensor, sampling: Sampling, random: torch.Generator) -> int:
    if sampling.temperature == 0:
        return int(logits.argmax())
    if 0 < sampling.top_k < len(logits):
        logits, places = logits.topk(sampling.top_k)
    else:
        places = torch.arange(len(logits))
    # The highest first becomes 0, so that no temperature makes it more than a float holds.
    chances = torch.softmax((logits - logits.max()) / sampling.temperature, dim=0)
    return int(places[torch.multinomial(chances, 1, generator=random)])
