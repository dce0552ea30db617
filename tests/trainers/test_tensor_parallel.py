"""A decoder that is shared out writes what the whole one writes, and says what that took."""

from __future__ import annotations

import pytest
import torch
from harness.batches import Batch
from harness.errors import raising
from torch import nn

from launch.command_line import main
from trainers.checkpoints import Checkpoint, write_checkpoint
from trainers.configuration import as_data, config_from
from trainers.errors import ConfigurationError
from trainers.language_model.generation import Sampling, continued
from trainers.language_model.network import Decoder, DecoderConfig, KeyValueCache
from trainers.language_model.parallel_generation import words_for
from trainers.language_model.tensor_parallel import (
    Pass,
    Traffic,
    agreed_text,
    check_divides,
    share_out,
)
from trainers.language_model.tokenization import ByteTokenizer

SHAPE = DecoderConfig(layers=3, width=48, heads=12, key_value_heads=6, hidden=42, context=40)
PROMPT = [5, 200, 17]

ranks = Batch({"OMP_NUM_THREADS": "1"})


def opinionated():
    """Untrained, but what it says depends on what it read."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    decoder = Decoder(SHAPE, 256)
    nn.init.constant_(decoder.norm.weight, 30.0)
    return decoder


def write_the_same(comm):
    """Greedy, as many tokens as fill the context several times."""
    sampling = Sampling(tokens=256, temperature=0)
    expected = continued(opinionated(), PROMPT, sampling)
    shared = opinionated()
    share_out(shared, comm)
    cache = KeyValueCache(SHAPE, ranks=comm.size)
    found = continued(shared, PROMPT, sampling, cache=cache)
    assert found == expected
    assert len(found) == 256
    assert len(set(found)) > 10


@ranks(2)
def test_greedy_it_writes_the_same_256_tokens(comm):
    write_the_same(comm)


@pytest.mark.full
@ranks(1, 3)
def test_greedy_on_other_numbers_of_ranks(comm):
    write_the_same(comm)


@ranks(2)
def test_all_ranks_draw_the_same_from_the_same_bits(comm):
    shared = opinionated()
    share_out(shared, comm)
    cache = KeyValueCache(SHAPE, ranks=comm.size)
    found = continued(shared, PROMPT, Sampling(tokens=30, seed=3), cache=cache)
    assert comm.allgather_object(found) == [found] * 2
    with torch.no_grad():
        logits = shared(torch.tensor([PROMPT]))
    assert all(torch.equal(each, logits) for each in comm.allgather(logits))
    assert len(set(found)) > 3


@ranks(2)
def test_a_rank_holds_its_part_alone(comm):
    whole, shared = opinionated(), opinionated()
    share_out(shared, comm)
    once = SHAPE.width * (256 + 1 + 2 * SHAPE.layers)  # the table and the norms
    layers = sum(p.numel() for p in whole.parameters()) - once
    assert sum(p.numel() for p in shared.parameters()) == once + layers // comm.size
    assert all(
        p.untyped_storage().nbytes() == p.numel() * p.element_size() for p in shared.parameters()
    )
    key = whole.blocks[1].attention.key.weight.view(comm.size, -1, SHAPE.width)[comm.rank]
    assert torch.equal(shared.blocks[1].attention.key.weight, key)
    down = whole.blocks[2].gated.down.weight.view(SHAPE.width, comm.size, -1)[:, comm.rank]
    assert torch.equal(shared.blocks[2].gated.down.weight, down)


@ranks(2)
def test_what_a_token_communicates(comm):
    shared = opinionated()
    traffic = share_out(shared, comm)
    cache = KeyValueCache(SHAPE, ranks=comm.size)
    continued(shared, PROMPT, Sampling(tokens=4), cache=cache)
    assert [each.tokens for each in traffic.passes] == [3, 1, 1, 1]
    for each in traffic.passes:
        assert each.calls == 2 * SHAPE.layers
        assert each.nbytes == each.calls * each.tokens * 4 * SHAPE.width
        assert 0 < each.communicating < each.seconds


@ranks(2)
def test_parts_that_are_not_equal_are_refused(comm):
    shape = DecoderConfig(layers=1, width=32, heads=4, key_value_heads=1, hidden=30)
    with raising(ConfigurationError, "divides model.key_value_heads (1), found 2"):
        share_out(Decoder(shape, 8), comm)


@ranks(2)
def test_ranks_that_differ_are_told(comm):
    assert agreed_text(comm, "the same") == "the same"
    other = 1 - comm.rank
    message = f"expected the same text on all ranks, found '{other}' on rank {other} and"
    with raising(RuntimeError, message):
        agreed_text(comm, str(comm.rank))


def test_heads_and_inner_width_divide():
    check_divides(SHAPE, 6)
    with pytest.raises(ConfigurationError, match=r"divides model.key_value_heads \(6\), found 4"):
        check_divides(SHAPE, 4)
    odd = DecoderConfig(width=48, heads=12, key_value_heads=6, hidden=43)
    with pytest.raises(ConfigurationError, match=r"divides model.hidden \(43\), found 2"):
        check_divides(odd, 2)


def test_the_cost_of_a_token_in_words():
    passes = [
        Pass(7, 6, 6 * 700, 9.0, 9.0),
        Pass(1, 6, 6 * 100, 1e-4, 4e-4),
        Pass(1, 6, 6 * 100, 3e-4, 2e-3),
        Pass(1, 6, 6 * 100, 2e-4, 9e-4),
    ]
    assert Traffic(passes).described(3, 2) == (
        "2 ranks: 6 allreduces a token (2 a layer) of 100 bytes, 600 bytes in all; "
        "900 us a token, 200 us of which in allreduce"
    )
    assert "6 allreduces a pass over 7 tokens (2 a layer)" in Traffic(passes[:1]).described(3, 2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a decoder that is not trained."""
    shape = {"layers": 2, "width": 32, "heads": 4, "key_value_heads": 2, "context": 16}
    config = config_from({"task": "language_model", "model": shape}, "settings")
    torch.manual_seed(0)
    weights = {f"model/{n}": w for n, w in Decoder(config.model, 256).state_dict().items()}
    weights["model/norm.weight"].fill_(30.0)
    saved = Checkpoint(
        task="language_model",
        step=1,
        config=as_data(config),
        tensors=weights,
        attachments={"tokenizer": ByteTokenizer().form()},
    )
    return write_checkpoint(tmp_path_factory.mktemp("run"), saved, keep=1)


def said_by(capfd, *words):
    assert main(list(map(str, words))) == 0, capfd.readouterr().err
    return capfd.readouterr()


@pytest.mark.timeout(300)
def test_the_command(checkpoint, capfd):
    words = ["generate", checkpoint.parent, "-\r\n ", "--tokens", 25, "--temperature", 0]
    alone = said_by(capfd, *words)
    shared = said_by(capfd, *words, "-n", 2, "--threads", 1)
    assert shared.out == alone.out
    assert shared.out.startswith("-\r\n ")
    # Of two layers, 32 numbers a token.
    assert "2 ranks: 4 allreduces a token (2 a layer) of 128 bytes, 512 bytes in all" in shared.err


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (0, "the number of ranks must be at least 1, not 0"),
        (3, "ranks: expected a number that divides model.key_value_heads (2), found 3"),
    ],
)
def test_what_is_wrong_is_said_before_a_rank_starts(checkpoint, capfd, ranks, message):
    assert main(["generate", str(checkpoint), "x", "-n", str(ranks)]) == 2
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.startswith("collectives generate: error: ")
    assert message in output.err


@pytest.mark.full
def test_a_failure_of_the_ranks_is_one_of_the_command(checkpoint, capfd, monkeypatch):
    def elsewhere(checkpoint, *rest):
        return words_for(checkpoint.parent / "none", *rest)

    monkeypatch.setattr("trainers.language_model.parallel_generation.words_for", elsewhere)
    assert main(["generate", str(checkpoint), "x", "-n", "2", "--threads", "1"]) == 1
    output = capfd.readouterr()
    assert output.out == ""
    assert "cannot read the checkpoint" in output.err
