"""The decoder does what its parts are defined to do, alone and together."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from trainers.data_parallel import DataParallel
from trainers.errors import ConfigurationError
from trainers.language_model.judging import loss_of
from trainers.language_model.network import Decoder, DecoderConfig, KeyValueCache, rotated
from trainers.optimization import Optimization, OptimizerConfig

VOCABULARY = 61
SMALL = DecoderConfig(layers=2, width=32, heads=4, key_value_heads=2, context=24)


def new_decoder(config=SMALL, seed=0):
    torch.manual_seed(seed)
    return Decoder(config, VOCABULARY)


def new_tokens(*shape, seed=1):
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def decoder():
    """With weights of ones and around: norms and output matrices, too, make a difference."""
    decoder = new_decoder()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return decoder


def norm_by_hand(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def rotation_by_hand(x, base):
    """Every pair (i, i + half) of a head as one complex number, turned by position x frequency."""
    length, size = x.shape[-2:]
    half = size // 2
    turning = np.exp(1j * np.arange(length)[:, None] * base ** (-2 * np.arange(half) / size))
    turned = (x[..., :half] + 1j * x[..., half:]) * turning
    return np.concatenate([turned.real, turned.imag], axis=-1)


def decoder_by_hand(decoder, tokens):
    """The definition, one sequence in float64, head by head, every query head with its own keys."""
    config = decoder.config
    weights = {name: w.detach().double().numpy() for name, w in decoder.state_dict().items()}
    stream = weights["embedding.weight"][tokens]
    length, size = len(tokens), config.head_size
    future = np.triu(np.ones((length, length), bool), 1)
    for layer in range(config.layers):
        own = {
            name.removeprefix(f"blocks.{layer}."): weight
            for name, weight in weights.items()
            if name.startswith(f"blocks.{layer}.")
        }
        inputs = norm_by_hand(stream, own["attention_norm.weight"])
        parts = {
            name: (inputs @ own[f"attention.{name}.weight"].T).reshape(length, -1, size)
            for name in ("query", "key", "value")
        }
        mixed = []
        for head in range(config.heads):
            shared = head // (config.heads // config.key_value_heads)
            query = rotation_by_hand(parts["query"][:, head], config.rope_base)
            key = rotation_by_hand(parts["key"][:, shared], config.rope_base)
            scores = np.where(future, -np.inf, query @ key.T / np.sqrt(size))
            chances = np.exp(scores - scores.max(-1, keepdims=True))
            chances /= chances.sum(-1, keepdims=True)
            mixed.append(chances @ parts["value"][:, shared])
        stream = stream + np.concatenate(mixed, -1) @ own["attention.output.weight"].T
        inputs = norm_by_hand(stream, own["gated_norm.weight"])
        gate = inputs @ own["gated.gate.weight"].T
        inner = gate / (1 + np.exp(-gate)) * (inputs @ own["gated.up.weight"].T)
        stream = stream + inner @ own["gated.down.weight"].T
    return norm_by_hand(stream, weights["norm.weight"]) @ weights["embedding.weight"].T


def test_it_is_what_its_definition_says(decoder):
    tokens = new_tokens(20)
    expected = decoder_by_hand(decoder, tokens.numpy())
    found = decoder(tokens[None])[0].detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


def test_shared_heads_are_repeated_heads(decoder):
    """With its keys and values copied for each query head, one without sharing is the same."""
    whole = new_decoder(DecoderConfig(layers=2, width=32, heads=4, key_value_heads=4, context=24))
    weights = decoder.state_dict()
    for name, weight in weights.items():
        if name.endswith(("key.weight", "value.weight")):
            weights[name] = weight.view(2, 8, 32).repeat_interleave(2, 0).reshape(32, 32)
    whole.load_state_dict(weights)
    tokens = new_tokens(2, 24)
    torch.testing.assert_close(whole(tokens), decoder(tokens))


def test_scores_depend_on_distance_alone(decoder):
    """Wherever two vectors are, their product after rotation is that of their distance."""
    query, key = torch.randn(2, 8, generator=torch.Generator().manual_seed(2))
    queries = rotated(query.expand(24, 8), decoder.cosines, decoder.sines)
    keys = rotated(key.expand(24, 8), decoder.cosines, decoder.sines)
    scores = queries @ keys.T
    for distance in range(24):
        along = scores.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along))
    assert scores[:, 0].std() > 0.1
    torch.testing.assert_close(queries.norm(dim=1), query.norm().expand(24))


def test_later_tokens_change_nothing_before(decoder):
    tokens = new_tokens(1, 24)
    changed = tokens.clone()
    changed[0, 10] = (tokens[0, 10] + 1) % VOCABULARY
    before, after = decoder(tokens)[0], decoder(changed)[0]
    assert torch.equal(before[:10], after[:10])
    assert ((before[10:] - after[10:]).abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize(
    "config",
    [SMALL, DecoderConfig(), DecoderConfig(layers=1, width=48, heads=3, key_value_heads=1)],
)
def test_the_number_of_parameters(config):
    width, shared = config.width, config.key_value_heads * config.head_size
    layer = 2 * width**2 + 2 * width * shared + 3 * width * config.inner + 2 * width
    expected = VOCABULARY * width + config.layers * layer + width
    assert sum(parameter.numel() for parameter in new_decoder(config).parameters()) == expected


def test_the_inner_width():
    assert DecoderConfig(width=128).inner == 384  # 341 and a third, up to a multiple of 64
    assert DecoderConfig(width=192, heads=4).inner == 512  # exactly
    assert DecoderConfig(hidden=100).inner == 100


@pytest.mark.parametrize("config", [SMALL, DecoderConfig(layers=12, width=64)])
def test_it_begins_with_no_opinion(config):
    loss = loss_of(new_decoder(config), new_tokens(8, 20))
    assert loss.item() == pytest.approx(math.log(VOCABULARY), abs=0.1)


def test_it_begins_with_a_stream_that_depth_does_not_widen():
    tokens = new_tokens(4, 24)
    widths = []
    for layers in (1, 16):
        decoder = new_decoder(DecoderConfig(layers=layers, width=64, context=24))
        streams = []
        decoder.norm.register_forward_pre_hook(lambda _, inputs, to=streams: to.append(inputs[0]))
        decoder(tokens)
        widths.append(streams[0].std().item())
    assert widths[1] < 1.5 * widths[0]


def test_with_a_cache_it_is_the_same(decoder):
    tokens = new_tokens(3, 24)
    expected = decoder(tokens)
    for cuts in ([*range(25)], [0, 7, 8, 20, 24], [0, 24]):
        cache = KeyValueCache(SMALL, sequences=3)
        with torch.no_grad():
            parts = [
                decoder(tokens[:, begin:end], cache) for begin, end in itertools.pairwise(cuts)
            ]
        assert cache.length == 24
        torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-4, atol=1e-4)


def test_more_than_its_context_is_refused(decoder):
    with pytest.raises(ValueError, match="expected at most 24 tokens, found 25"):
        decoder(new_tokens(1, 25))
    cache = KeyValueCache(SMALL)
    with torch.no_grad():
        decoder(new_tokens(1, 20), cache)
    with pytest.raises(ValueError, match="expected at most 24 tokens, found 25"):
        decoder(new_tokens(1, 5), cache)


def test_muon_moves_the_matrices_of_the_layers_and_adam_the_rest(decoder, alone):
    names = {id(parameter): name for name, parameter in decoder.named_parameters()}
    matrices = [names[id(matrix)] for matrix in decoder.matrices]
    assert len(matrices) == len(set(matrices)) == 2 * 7
    assert all(name.startswith("blocks.") and "norm" not in name for name in matrices)
    model = new_decoder()
    kind = OptimizerConfig(kind="muon")
    parallel = DataParallel(model, alone)
    optimization = Optimization(parallel, kind, 10, model.matrices)
    loss_of(model, new_tokens(2, 9)).backward()
    optimization.step(0)
    kept = optimization.state()
    assert {name.removeprefix("momentum/") for name in kept if name.startswith("momentum/")} == set(
        matrices
    )
    assert "exp_avg/embedding.weight" in kept


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.full)])
def test_compiled_it_is_the_same(decoder, backend):
    tokens = new_tokens(2, 16)
    torch.compiler.reset()
    compiled = torch.compile(decoder, backend=backend)
    expected = loss_of(decoder, tokens)
    found = loss_of(compiled, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(expected, decoder.embedding.weight)[0]
    torch.testing.assert_close(
        torch.autograd.grad(found, decoder.embedding.weight)[0], wanted, rtol=1e-3, atol=1e-5
    )
    torch.compiler.reset()


def test_it_computes_in_bfloat16(decoder):
    tokens = new_tokens(2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(decoder, tokens)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loss_of(decoder, tokens).item(), rel=0.05)


def test_the_loss_is_the_mean_over_what_is_predicted(decoder):
    windows = new_tokens(3, 10)
    logits = decoder(windows[:, :-1]).detach().numpy().astype(np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    taken = np.take_along_axis(chances, windows[:, 1:, None].numpy(), -1)
    assert loss_of(decoder, windows).item() == pytest.approx(-np.log(taken).mean(), rel=1e-5)
    each = loss_of(decoder, windows, reduction="none")
    np.testing.assert_allclose(each.detach(), -np.log(taken[..., 0]), rtol=1e-3, atol=1e-4)
    assert functional.softmax(decoder(windows[:, :-1]), -1).shape == (3, 9, VOCABULARY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "model.layers: expected 1 or more, found 0"),
        ({"width": 0}, "model.width: expected 1 or more, found 0"),
        ({"heads": 0}, "model.heads: expected 1 or more, found 0"),
        ({"key_value_heads": 0}, "model.key_value_heads: expected 1 or more, found 0"),
        ({"hidden": -1}, "model.hidden: expected 0 or more, found -1"),
        ({"context": 1}, "model.context: expected 2 or more, found 1"),
        ({"rope_base": 1.0}, "model.rope_base: expected a number above 1, found 1.0"),
        ({"width": 130}, r"model.width: expected a multiple of model.heads \(4\), found 130"),
        (
            {"key_value_heads": 3},
            r"model.heads: expected a multiple of model.key_value_heads \(3\), found 4",
        ),
        ({"width": 12}, "expected an even size of a head, .*, found 3"),
    ],
)
def test_a_shape_that_does_not_fit(change, message):
    with pytest.raises(ConfigurationError, match=message):
        DecoderConfig(**change)
