"""Texts as files of tokens, made once and memory-mapped by every rank.

A corpus becomes a folder in the cache, named by a hash of all that its tokens follow from:

    train.tokens       every text's tokens and an end, end to end, of 2 or 4 bytes each
    validation.tokens  the same of what is held out
    tokenizer.json     the tokenizer's form
    facts.json         how many tokens, of which size, for how many bytes of text

The folder is made under another name and then renamed, so that it is whole or absent, and whoever
comes second finds it there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainers.errors import DataError
from trainers.language_model.corpus import Corpus, Text
from trainers.language_model.tokenization import (
    ByteTokenizer,
    Kind,
    Tokenizer,
    tokenizer_from,
    train_pairs,
)

FORMAT = "collectives-tokens-1"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the files of tokens hold.

    Attributes:
        dtype: of a token.
        train: tokens to train on.
        validation: tokens held out.
        validation_bytes: of the texts that those stand for.
    """

    dtype: str
    train: int
    validation: int
    validation_bytes: int


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Tokens, mapped and not read."""

    tokenizer: Tokenizer
    train: npt.NDArray[np.unsignedinteger]
    validation: npt.NDArray[np.unsignedinteger]
    bytes_per_token: float


def default_cache() -> Path:
    """Where tokens are kept if nothing else is said: in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "collectives/text"


def shards_of(
    corpus: Corpus, kind: Kind, vocabulary: int, cache: Path, tokenizer: Tokenizer | None = None
) -> Shards:
    """The tokens of a corpus, from the cache or made and put there.

    Args:
        corpus: the texts.
        kind: of the tokenizer to train on those that are not held out.
        vocabulary: of that tokenizer.
        cache: folder of all such folders.
        tokenizer: one that is there already, instead.
    """
    form = "" if tokenizer is None else tokenizer.form()
    origin = repr((FORMAT, corpus.digest, kind, vocabulary, form))
    folder = cache / hashlib.sha256(origin.encode()).hexdigest()[:32]
    if not folder.exists():
        tokenizer = tokenizer or _trained(corpus, kind, vocabulary)
        _make(folder, corpus, tokenizer)
    return _mapped(folder)


def _trained(corpus: Corpus, kind: Kind, vocabulary: int) -> Tokenizer:
    if kind == "bytes":
        return ByteTokenizer()
    return train_pairs((piece for text in corpus.trained for piece in text.pieces()), vocabulary)


def _make(folder: Path, corpus: Corpus, tokenizer: Tokenizer) -> None:
    """Makes the folder, whole or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise DataError(f"cannot make a folder for tokens in {folder.parent}: {error}") from error
    try:
        dtype = "uint16" if tokenizer.vocabulary <= 1 << 16 else "uint32"
        train, _ = _write(draft / "train.tokens", corpus.trained, tokenizer, dtype)
        validation, size = _write(draft / "validation.tokens", corpus.held_out, tokenizer, dtype)
        facts = Facts(dtype=dtype, train=train, validation=validation, validation_bytes=size)
        (draft / "tokenizer.json").write_text(tokenizer.form(), encoding="utf-8")
        (draft / "facts.json").write_text(json.dumps(asdict(facts)), encoding="utf-8")
        _put(draft, folder)
    except OSError as error:
        raise DataError(f"cannot write tokens into {folder.parent}: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _put(draft: Path, folder: Path) -> None:
    """Puts a folder in its place, unless another rank has been there first."""
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _write(path: Path, texts: Iterable[Text], tokenizer: Tokenizer, dtype: str) -> tuple[int, int]:
    """Writes the tokens of texts; returns how many, and of how many bytes."""
    tokens = size = 0
    with path.open("wb") as file:
        for text in texts:
            for piece in text.pieces():
                encoded = tokenizer.encode(piece)
                file.write(encoded.astype(dtype).tobytes())
                tokens += len(encoded)
                size += len(piece.encode())
            file.write(np.array([tokenizer.end], dtype=dtype).tobytes())
            tokens += 1
        file.flush()
        os.fsync(file.fileno())
    return tokens, size


def _mapped(folder: Path) -> Shards:
    try:
        facts = Facts(**json.loads((folder / "facts.json").read_text(encoding="utf-8")))
        form = (folder / "tokenizer.json").read_text(encoding="utf-8")
        arrays = {
            name: np.memmap(folder / f"{name}.tokens", dtype=facts.dtype, mode="r")
            for name in ("train", "validation")
        }
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"{folder}: expected tokens, found {error}; remove the folder") from error
    for name, array in arrays.items():
        if len(array) != getattr(facts, name):
            raise DataError(
                f"{folder}/{name}.tokens: expected {getattr(facts, name)} tokens, found "
                f"{len(array)}; remove the folder"
            )
    return Shards(
        tokenizer=tokenizer_from(form, str(folder)),
        train=arrays["train"],
        validation=arrays["validation"],
        bytes_per_token=facts.validation_bytes / facts.validation,
    )
