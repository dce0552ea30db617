"""A continuation is what the decoder predicts, drawn as asked, however the work is saved."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainers.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from trainers.errors import CheckpointError, ConfigurationError
from trainers.language_model.generation import (
    Sampling,
    continuation,
    continued,
    read_decoder,
)
from trainers.language_model.network import Decoder, DecoderConfig
from trainers.language_model.tokenization import ByteTokenizer

SHAPE = DecoderConfig(layers=2, width=32, context=16)


@pytest.fixture(scope="module")
def decoder():
    """Untrained, but with opinions."""
    torch.manual_seed(0)
    decoder = Decoder(SHAPE, 256)
    nn.init.constant_(decoder.norm.weight, 30.0)
    return decoder


@torch.no_grad()
def greedy_by_hand(decoder, tokens, count):
    """Runs the whole window each time."""
    window = list(tokens)
    everything = list(tokens)
    for _ in range(count):
        if len(window) > SHAPE.context:
            window = everything[-SHAPE.context // 2 :]
        token = int(decoder(torch.tensor([window]))[0, -1].argmax())
        window.append(token)
        everything.append(token)
    return everything[len(tokens) :]


@pytest.mark.parametrize("length", [1, 5, 16, 17, 40])
def test_saved_keys_and_values_change_nothing(decoder, length):
    tokens = torch.randint(256, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    found = continued(decoder, tokens, Sampling(tokens=50, temperature=0))
    assert found == greedy_by_hand(decoder, tokens, 50)
    assert len(set(found)) > 3


class Fixed(nn.Module):
    """Has one opinion, whatever came before."""

    config = SHAPE

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, tokens, cache):
        cache.length += tokens.shape[1]
        return self.logits.expand(*tokens.shape, -1)


def shares(model, **how):
    drawn = continued(model, [0], Sampling(tokens=4000, **how))
    return [drawn.count(token) / 4000 for token in range(len(model.logits))]


def test_tokens_are_drawn_as_likely_as_they_are():
    model = Fixed(0.0, 1.0, 2.0, -1.0)
    for temperature in (0.5, 1.0, 3.0):
        expected = torch.softmax(model.logits / temperature, 0)
        assert shares(model, temperature=temperature, top_k=0) == pytest.approx(expected, abs=0.03)
    expected = [0, *torch.softmax(model.logits[1:3], 0).tolist(), 0]
    assert shares(model, temperature=1, top_k=2) == pytest.approx(expected, abs=0.03)
    assert shares(model, temperature=1, top_k=1) == shares(model, temperature=0) == [0, 0, 1, 0]
    assert shares(model, temperature=1e-45) == [0, 0, 1, 0]


def test_the_seed_is_all_that_is_random(decoder):
    texts = [
        continuation(decoder, ByteTokenizer(), "def ", Sampling(tokens=30, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("def ") for text in texts)


def test_the_end_of_a_file_ends_it():
    assert continued(Fixed(0.0, 9.0), [0], Sampling(tokens=5, temperature=0), end=1) == []
    assert continued(Fixed(0.0, 9.0), [0], Sampling(tokens=5, temperature=0), end=0) == [1] * 5


def test_an_empty_prompt_begins_a_file():
    seen = []

    class Watched(Fixed):
        def forward(self, tokens, cache):
            seen.append(tokens.tolist())
            return super().forward(tokens, cache)

    model = Watched(*[0.0] * 97, 9.0)
    sampling = Sampling(tokens=2, temperature=0)
    assert continuation(model, ByteTokenizer(), "", sampling) == "aa"
    assert seen == [[[0]], [[97]]]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tokens", 0, "tokens: expected 1 or more, found 0"),
        ("temperature", -1.0, "temperature: expected 0 or more, found -1.0"),
        ("temperature", float("nan"), "temperature: expected 0 or more, found nan"),
        ("top_k", -1, "top_k: expected 0 or more, found -1"),
        ("seed", -1, "seed: expected 0 or more, found -1"),
    ],
)
def test_what_cannot_be_drawn(name, value, message):
    with pytest.raises(ConfigurationError, match=message):
        Sampling(**{name: value})


def test_a_checkpoint_is_enough(whole_text_run):
    decoder, tokenizer = read_decoder(whole_text_run[0])
    assert tokenizer.kind == "bytes"
    best = read_checkpoint(whole_text_run[0]).best_weights
    assert all(torch.equal(value, best[name]) for name, value in decoder.state_dict().items())


def altered(checkpoint, folder, **change):
    parts = {name: getattr(checkpoint, name) for name in checkpoint.__dataclass_fields__}
    return write_checkpoint(folder, Checkpoint(**{**parts, **change}), keep=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "cooking"}, "of another task: expected 'language_model', found 'cooking'"),
        ({"attachments": {}}, "expected a tokenizer attached to it, found nothing"),
        ({"attachments": {"tokenizer": "?"}}, "expected a tokenizer, found none"),
        (
            {"tensors": {"model/embedding.weight": torch.zeros(300, 32)}},
            r"of another model: blocks.0.attention.key.weight: expected \[16, 32\], found no such",
        ),
    ],
)
def test_a_checkpoint_that_does_not_do(whole_text_run, tmp_path, change, message):
    path = altered(read_checkpoint(whole_text_run[0]), tmp_path, **change)
    with pytest.raises(CheckpointError, match=message):
        read_decoder(path)
