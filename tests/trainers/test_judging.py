"""Held-out text is judged alike on any number of ranks, beside what counting predicts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import launch
from trainers.configuration import config_from
from trainers.errors import DataError
from trainers.language_model import counting
from trainers.language_model.counting import CountedModel
from trainers.language_model.judging import GROUP, HeldOutWindows, Score

RANDOM = np.random.default_rng(3)


class Uniform(nn.Module):
    """Holds every token equally likely, but for twice the likelihood of token 0."""

    def forward(self, tokens):
        logits = torch.zeros(*tokens.shape, 9)
        logits[..., 0] = math.log(2)
        return logits


def test_windows_are_evenly_spread():
    tokens = np.arange(101, dtype=np.uint16)
    assert HeldOutWindows(tokens, context=10, most=99).windows[:, 0].tolist() == [
        *range(0, 100, 10)
    ]
    few = HeldOutWindows(tokens, context=10, most=4)
    assert few.windows[:, 0].tolist() == [0, 20, 50, 70]
    assert few.windows[3].tolist() == [*range(70, 81)]
    assert few.targets == 40
    assert len(HeldOutWindows(tokens[:100], context=10, most=99).windows) == 9


def test_the_loss_by_hand():
    tokens = RANDOM.integers(9, size=50 * 8 + 1).astype(np.uint16)
    windows = HeldOutWindows(tokens, context=8, most=1000)
    zeros = int((tokens[1:] == 0).sum())
    expected = math.log(10) - zeros / 400 * math.log(2)
    assert windows.loss(Uniform()) == pytest.approx(expected, rel=1e-6)


def test_what_a_loss_means():
    score = Score(math.log(8), 2.0)
    assert score.perplexity == pytest.approx(8)
    assert score.bits_per_byte == pytest.approx(1.5)
    assert math.isfinite(Score(1e6, 1.0).perplexity)


def test_too_short_to_judge_by():
    HeldOutWindows(np.zeros(9, np.uint16), context=8, most=1)
    with pytest.raises(DataError, match=r"at least 9 held-out tokens, .*, found 8: give more"):
        HeldOutWindows(np.zeros(8, np.uint16), context=8, most=1)


def judged(comm, settings):
    torch.set_num_threads(1)
    task = config_from(settings, "settings").build()
    torch.manual_seed(1)
    return task.evaluate(task.new_model(), comm)


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.full)])
def test_the_same_bits_on_any_number_of_ranks(text_settings, alone, size):
    expected = judged(alone, text_settings)
    assert len(config_from(text_settings, "").build()._held_out.windows) > 3 * GROUP
    assert launch.spawn(judged, size, text_settings) == [expected] * size


def test_sums_are_added_in_the_order_of_windows(monkeypatch):
    """Numbers whose sum depends on the order, since float64 has no room for one beside 1e16."""
    values = [1e16, 1.0, -1e16, 1.0]
    monkeypatch.setattr(HeldOutWindows, "_sums", lambda self, model, at: [values[at // GROUP]])
    windows = HeldOutWindows(np.zeros(4 * GROUP * 8 + 1, np.uint16), context=8, most=1000)

    class OneOfTwo:
        rank, size = 0, 2

        def allgather_object(self, mine):
            assert mine == {0: [1e16], 2 * GROUP: [-1e16]}
            return [mine, {GROUP: [1.0], 3 * GROUP: [1.0]}]

    assert sum(values) == 1.0 != sum(values[::2]) + sum(values[1::2])
    assert windows.loss(Uniform(), OneOfTwo()) == windows.loss(Uniform()) == 1.0 / windows.targets


@pytest.fixture(params=[7, 10**6], ids=["in parts", "at once"])
def counted(request, monkeypatch):
    monkeypatch.setattr(counting, "AT_ONCE", request.param)
    tokens = RANDOM.integers(6, size=200) ** 2 // 5  # uneven
    return tokens, CountedModel(tokens.astype(np.uint16), 8)


def test_unigrams_by_hand(counted):
    tokens, model = counted
    expected = [((tokens == token).sum() + 1) / (200 + 8) for token in range(8)]
    np.testing.assert_allclose(model.unigram(np.arange(8)), expected)
    assert sum(expected) == pytest.approx(1)


def test_bigrams_by_hand(counted):
    tokens, model = counted
    times = {}
    for pair in zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True):
        times[pair] = times.get(pair, 0) + 1
    once, twice = ([*times.values()].count(number) + 1 for number in (1, 2))
    discount = once / (once + 2 * twice)
    assert model.discount == pytest.approx(discount)
    unigrams = model.unigram(np.arange(8))
    for before in range(8):
        row = {after: count for (first, after), count in times.items() if first == before}
        total = sum(row.values())
        found = model.bigram(np.full(8, before), np.arange(8))
        expected = unigrams
        if total:
            left = discount * len(row) / total
            kept = [max(row.get(after, 0) - discount, 0) / total for after in range(8)]
            expected = np.array(kept) + left * unigrams
        np.testing.assert_allclose(found, expected)
        assert found.sum() == pytest.approx(1)
        assert found.min() > 0
