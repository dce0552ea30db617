"""Text becomes tokens and text again, exactly; a tokenizer is saved as text and told apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.errors import CheckpointError, DataError
from trainers.language_model.tokenization import (
    ByteTokenizer,
    check_same,
    saved_tokenizer,
    tokenizer_from,
    train_pairs,
)

TEXTS = ["def ring(rank, size):\n    return (rank + 1) % size\n" * 20, "größer – 漢字 😀\n" * 20]


@pytest.fixture(scope="module")
def pairs():
    return train_pairs(TEXTS, 280)


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def tokenizer(request, pairs):
    return ByteTokenizer() if request.param == "bytes" else pairs


@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_text_comes_back(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.uint32
    assert tokenizer.decode(tokens) == text
    assert tokenizer.end not in tokens
    assert all(token < tokenizer.vocabulary for token in tokens)
    assert tokenizer.decode([tokenizer.end, *tokens, tokenizer.end]) == text


def test_bytes_are_bytes():
    assert ByteTokenizer().encode("aé").tolist() == [0x61, 0xC3, 0xA9]
    assert ByteTokenizer().vocabulary == 256


def test_half_a_character_is_marked(pairs):
    assert ByteTokenizer().decode([0x61, 0xC3]) == "a\ufffd"
    tokens = pairs.encode("a\U00010348")  # of no training text, so a token a byte
    assert len(tokens) == 5
    assert pairs.decode(tokens[:3]) == "a\ufffd"


def test_pairs_shorten_text(pairs):
    assert pairs.vocabulary == 280
    assert pairs.end == 279
    assert len(pairs.encode(TEXTS[0])) < 0.6 * len(TEXTS[0])
    assert len(set(pairs.encode("".join(map(chr, range(1, 128)))).tolist())) >= 120


def test_training_is_repeatable(pairs):
    assert train_pairs(TEXTS, 280).form() == pairs.form()


def test_it_is_saved_as_text(tokenizer):
    again = tokenizer_from(tokenizer.form(), "here")
    assert (again.kind, again.vocabulary, again.end) == (
        *(tokenizer.kind, tokenizer.vocabulary, tokenizer.end),
    )
    assert again.form() == tokenizer.form()
    assert np.array_equal(again.encode(TEXTS[1]), tokenizer.encode(TEXTS[1]))
    assert saved_tokenizer({"tokenizer": tokenizer.form()}, "here").form() == tokenizer.form()


def test_text_too_short_for_a_vocabulary():
    with pytest.raises(DataError, match=r"enough for 5000 tokens, found enough for 3\d\d; give a"):
        train_pairs(TEXTS, 5000)


@pytest.mark.parametrize("form", ["", "[]", "{}", '{"kind": "bpe", "trained": "nothing"}'])
def test_what_is_no_tokenizer(form):
    with pytest.raises(CheckpointError, match="here: expected a tokenizer, found none"):
        tokenizer_from(form, "here")


def test_a_checkpoint_without_one():
    with pytest.raises(CheckpointError, match=r"here: expected a tokenizer attached .* nothing"):
        saved_tokenizer({}, "here")
    with pytest.raises(CheckpointError, match="found recipe"):
        saved_tokenizer({"recipe": ""}, "here")


def test_vocabularies_are_told_apart(pairs):
    other = train_pairs(["something else entirely, and more of it\n" * 30, *TEXTS[:1]], 280)
    check_same(pairs, tokenizer_from(pairs.form(), ""), "here")
    for found, words in ((ByteTokenizer(), r"256 tokens \(bytes\)"), (other, r"280 tokens \(bpe")):
        message = rf"here is of another vocabulary: expected 280 tokens \(bpe \w+\).* found {words}"
        with pytest.raises(CheckpointError, match=message):
            check_same(pairs, found, "here")
    assert identities(pairs) != identities(other)


def identities(tokenizer):
    with pytest.raises(CheckpointError) as caught:
        check_same(ByteTokenizer(), tokenizer, "")
    return str(caught.value)
