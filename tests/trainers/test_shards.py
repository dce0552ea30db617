"""Tokens lie in the cache whole or not at all; every step's windows follow from the seed alone."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from trainers.errors import DataError
from trainers.language_model import shards
from trainers.language_model.corpus import find_texts
from trainers.language_model.shards import default_cache, shards_of
from trainers.language_model.tokenization import ByteTokenizer, train_pairs
from trainers.language_model.window_order import WindowOrder


@pytest.fixture
def corpus(texts):
    return find_texts([texts], 0.05)


@pytest.fixture
def cache(tmp_path):
    """Of one test alone."""
    return tmp_path / "cache"


def joined(corpus, part):
    return "".join(piece for text in getattr(corpus, part) for piece in text.pieces())


@pytest.mark.parametrize(("kind", "vocabulary"), [("bytes", 256), ("bpe", 290)])
def test_tokens_are_the_texts(corpus, cache, kind, vocabulary):
    made = shards_of(corpus, kind, vocabulary, cache)
    assert made.tokenizer.vocabulary == vocabulary
    for array, part in ((made.train, "trained"), (made.validation, "held_out")):
        assert isinstance(array, np.memmap)
        assert array.dtype == np.uint16
        assert not array.flags.writeable
        assert made.tokenizer.decode(array.tolist()) == joined(corpus, part)
        assert int((array == made.tokenizer.end).sum()) == len(getattr(corpus, part))
    size = len(joined(corpus, "held_out").encode())
    assert made.bytes_per_token == size / len(made.validation)


def test_many_tokens_have_four_bytes(corpus, cache):
    class Large(ByteTokenizer):
        vocabulary = (1 << 16) + 1

    assert shards_of(corpus, "bytes", 256, cache, Large()).train.dtype == np.uint32


def test_they_are_made_once(corpus, cache, monkeypatch):
    first = shards_of(corpus, "bpe", 290, cache)
    monkeypatch.setattr(shards, "_make", None)
    again = shards_of(corpus, "bpe", 290, cache)
    assert np.array_equal(again.train, first.train)
    assert again.tokenizer.form() == first.tokenizer.form()


def test_whatever_they_follow_from_gives_a_folder_of_its_own(corpus, texts, cache, tmp_path):
    shards_of(corpus, "bytes", 256, cache)
    shards_of(corpus, "bpe", 290, cache)
    shards_of(corpus, "bpe", 285, cache)
    shards_of(find_texts([texts], 0.5), "bytes", 256, cache)
    given = train_pairs([joined(corpus, "held_out")], 290)
    found = shards_of(corpus, "bpe", 290, cache, given)
    assert found.tokenizer.form() == given.form()
    for path in texts.iterdir():
        (tmp_path / path.name).write_text(path.read_text() + "more\n")
    shards_of(find_texts(sorted(tmp_path.glob("*.txt")), 0.05), "bytes", 256, cache)
    assert len(list(cache.iterdir())) == 6


def test_two_at_once(corpus, cache, monkeypatch):
    """Both find nothing, both make the folder, the second one leaves the first one's in place."""
    both = threading.Barrier(2)
    put = shards._put

    def together(draft, folder):
        both.wait()
        put(draft, folder)

    monkeypatch.setattr(shards, "_put", together)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(shards_of(corpus, "bytes", 256, cache)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert np.array_equal(found[0].train, found[1].train)
    assert len(list(cache.iterdir())) == 1


def test_what_is_not_finished_leaves_nothing(corpus, cache, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ByteTokenizer, "form", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shards_of(corpus, "bytes", 256, cache)
    assert not list(cache.iterdir())

    def full(path, *rest):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "_write", full)
    with pytest.raises(DataError, match=r"cannot write tokens into .*No space left"):
        shards_of(corpus, "bytes", 256, cache)
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_made_or_renamed_into(corpus, cache, monkeypatch):
    with pytest.raises(DataError, match="cannot make a folder for tokens in /proc/cache"):
        shards_of(corpus, "bytes", 256, Path("/proc/cache"))

    def refuse(path, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(DataError, match=r"cannot write tokens into .*Permission denied"):
        shards_of(corpus, "bytes", 256, cache)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("facts.json", b"{}", "expected tokens, found .*; remove the folder"),
        ("facts.json", b"nothing", "expected tokens, found .*; remove the folder"),
        ("train.tokens", b"ab", r"train.tokens: expected \d+ tokens, found 1; remove the folder"),
        ("validation.tokens", b"", "expected tokens, found .*; remove the folder"),
        ("tokenizer.json", None, "expected tokens, found .*No such file.*; remove the folder"),
    ],
)
def test_a_damaged_folder(corpus, cache, file, content, message):
    shards_of(corpus, "bytes", 256, cache)
    (folder,) = cache.iterdir()
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(DataError, match=message):
        shards_of(corpus, "bytes", 256, cache)


def test_where_they_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "collectives/text"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache/collectives/text"


@pytest.mark.parametrize("tokens", [4 * 9, 4 * 9 + 3, 4 * 16 - 1, 4 * 16, 1000, 1037])
def test_a_pass_takes_every_window_once(tokens):
    order = WindowOrder(tokens=tokens, context=8, batch=4, seed=1)
    seen = set()
    for position in range(4):
        first, last = position * tokens // 4, (position + 1) * tokens // 4
        windows = max(1, (last - first - 8) // 8)
        offsets = set()
        for number in range(100):
            steps = range(number * windows, (number + 1) * windows)
            begins = [order.begin(step, position) for step in steps]
            assert min(begins) >= first
            assert max(begins) + 9 <= last
            assert np.diff(sorted(begins)).tolist() == [8] * (windows - 1)
            offsets.add(min(begins) - first)
            seen |= {begin + place for begin in begins for place in range(9)}
        room = last - first - windows * 8
        assert len(offsets) > 1 or room == 1
    assert len(seen) == tokens


def test_any_step_can_be_read_alone():
    order = WindowOrder(tokens=500, context=8, batch=4, seed=1)
    begins = {(s, p): order.begin(s, p) for s in range(80) for p in range(4)}
    for (step, position), begin in reversed(begins.items()):
        fresh = WindowOrder(tokens=500, context=8, batch=4, seed=1)
        assert fresh.begin(step, position) == order.begin(step, position) == begin
    other = WindowOrder(tokens=500, context=8, batch=4, seed=2)
    assert [other.begin(step, 0) for step in range(9)] != [begins[step, 0] for step in range(9)]
    first, second = ([begins[step, p] - p * 125 for step in range(14)] for p in (0, 1))
    assert first != second


def test_too_few_tokens():
    WindowOrder(tokens=36, context=8, batch=4, seed=1)
    message = r"at least 36 tokens .*\(a window of 9 for each of a batch of 4\), found 35"
    with pytest.raises(DataError, match=message):
        WindowOrder(tokens=35, context=8, batch=4, seed=1)
