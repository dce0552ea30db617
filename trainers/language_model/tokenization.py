"""Text as tokens and back: plain bytes, or byte-level byte pair encoding trained on the spot.

Either carries every text exactly, and has a token that no text needs, which ends a file: byte 0
among bytes, the last number of a trained vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from trainers.errors import CheckpointError, DataError

if TYPE_CHECKING:
    import tokenizers

Kind = Literal["bpe", "bytes"]
Tokens = npt.NDArray[np.uint32]

BYTES = 256
BYTES_FORM = '{"kind": "bytes"}'


class Tokenizer(Protocol):
    """How text becomes numbers.

    Attributes:
        kind: which of the two it is.
        vocabulary: how many tokens there are, that at a file's end included.
        end: the token at a file's end.
    """

    kind: Kind
    vocabulary: int
    end: int

    def encode(self, text: str) -> Tokens:
        """The tokens of a text, without an end."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Their text; ends are left out, and half a character is U+FFFD."""

    def form(self) -> str:
        """The tokenizer as text, from which `tokenizer_from` makes it again."""


class ByteTokenizer:
    """The bytes of UTF-8."""

    kind: Kind = "bytes"
    vocabulary = BYTES
    end = 0

    def encode(self, text: str) -> Tokens:
        """Its bytes."""
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32)

    def decode(self, tokens: Sequence[int]) -> str:
        """Their text."""
        return bytes(token for token in tokens if token != self.end).decode(errors="replace")

    def form(self) -> str:
        """Says only that it is of bytes."""
        return BYTES_FORM


class PairTokenizer:
    """Byte pair encoding.

    Args:
        trained: of the package `tokenizers`.
    """

    kind: Kind = "bpe"

    def __init__(self, trained: tokenizers.Tokenizer) -> None:
        self._trained = trained
        self.end = int(trained.get_vocab_size())
        self.vocabulary = self.end + 1

    def encode(self, text: str) -> Tokens:
        """The pieces that training has found, longest known first."""
        return np.array(self._trained.encode(text).ids, dtype=np.uint32)

    def decode(self, tokens: Sequence[int]) -> str:
        """Their text."""
        return str(self._trained.decode([int(token) for token in tokens if token != self.end]))

    def form(self) -> str:
        """The trained one's own form, with its kind."""
        return json.dumps({"kind": self.kind, "trained": self._trained.to_str()})


def train_pairs(texts: Iterable[str], vocabulary: int) -> PairTokenizer:
    """Finds the pairs worth a token of their own.

    Args:
        texts: pieces of any length.
        vocabulary: how many tokens there shall be, more than 256.

    Raises:
        DataError: the texts have not so many pairs that come twice.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    result = PairTokenizer(made)
    if result.vocabulary != vocabulary:
        raise DataError(
            f"data.vocabulary: expected text enough for {vocabulary} tokens, found enough for "
            f"{result.vocabulary}; give a smaller number or more text"
        )
    return result


def tokenizer_from(form: str, origin: str) -> Tokenizer:
    """The tokenizer that `form` describes; `origin` says in messages where it is from."""
    try:
        saved = json.loads(form)
        if saved["kind"] == "bytes":
            return ByteTokenizer()
        import tokenizers

        return PairTokenizer(tokenizers.Tokenizer.from_str(saved["trained"]))
    except Exception as error:  # the package raises nothing narrower
        raise CheckpointError(f"{origin}: expected a tokenizer, found none: {error}") from error


def described(tokenizer: Tokenizer) -> str:
    """A tokenizer in a few words that no other one has."""
    words = "bytes" if tokenizer.kind == "bytes" else f"bpe {mark(tokenizer.form())}"
    return f"{tokenizer.vocabulary} tokens ({words})"


def mark(text: str) -> str:
    """Eight characters that tell texts apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def check_same(expected: Tokenizer, found: Tokenizer, origin: str) -> None:
    """Refuses a checkpoint whose tokens are others than those of the data."""
    if expected.form() != found.form():
        raise CheckpointError(
            f"{origin} is of another vocabulary: expected {described(expected)}, as the data has, "
            f"found {described(found)}"
        )


def saved_tokenizer(attachments: dict[str, str], origin: str) -> Tokenizer:
    """The tokenizer among a checkpoint's attachments."""
    if "tokenizer" not in attachments:
        held = ", ".join(attachments) or "nothing"
        raise CheckpointError(f"{origin}: expected a tokenizer attached to it, found {held}")
    return tokenizer_from(attachments["tokenizer"], origin)
