"""Which files are text to learn from, and which of them are held out.

By default the sources of Python's own standard library, without its tests: they are on every
machine. Whole files are held out, chosen by a hash of their names: the same ones whatever the order
and wherever the folder is. A single file is cut instead: its end is held out.
"""

from __future__ import annotations

import hashlib
import math
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainers.errors import DataError

NOT_OURS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
"""Folders of the standard library's that hold no sources of it, or its tests."""

PIECE = 1 << 20
"""Characters that are handed on at once, at least; the next end of a line ends a piece."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """One file, or a part of it.

    Attributes:
        name: below the folder it was found in.
        path: where it is.
        digest: of the whole file's bytes as they were found.
        begin: the first of its characters that belongs to this text.
        end: the one after the last; None for the file's end.
    """

    name: str
    path: Path
    digest: bytes
    begin: int = 0
    end: int | None = None

    def pieces(self) -> Iterator[str]:
        """Its characters, in pieces of whole lines.

        Raises:
            DataError: the file has changed since it was found.
        """
        data = _read(self.path)
        if hashlib.sha256(data).digest() != self.digest:
            raise DataError(f"{self.path}: expected the text that was found, found it changed")
        text = data.decode()[self.begin : self.end]
        begin = 0
        while begin < len(text):
            end = text.find("\n", begin + PIECE) + 1 or len(text)
            yield text[begin:end]
            begin = end


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Texts in a fixed order."""

    trained: list[Text]
    held_out: list[Text]

    @property
    def digest(self) -> str:
        """Of everything that tokens follow from."""
        total = hashlib.sha256()
        for part in (self.trained, self.held_out):
            total.update(len(part).to_bytes(8, "little"))
            for text in part:
                total.update(text.digest + repr((text.begin, text.end)).encode())
        return total.hexdigest()


def find_texts(paths: Sequence[Path] | None, share: float) -> Corpus:
    """Finds the texts.

    Args:
        paths: files, and folders searched in depth, where what is hidden or no text is left out;
            None for the standard library.
        share: the part of all files that is held out, at least one.

    Raises:
        DataError: nothing there, a file that cannot be read, a named one that is no text.
    """
    texts = _standard_library() if paths is None else _texts_of(paths)
    if not texts:
        where = "the standard library" if paths is None else ", ".join(map(str, paths))
        raise DataError(f"data.path: expected texts (UTF-8) in {where}, found none")
    if len(texts) == 1:
        return _cut(texts[0], share)
    by_hash = sorted(texts, key=lambda text: hashlib.sha256(text.name.encode()).digest())
    held_out = {id(text) for text in by_hash[: math.ceil(share * len(texts))]}
    return Corpus(
        trained=[text for text in texts if id(text) not in held_out],
        held_out=[text for text in texts if id(text) in held_out],
    )


def _texts_of(paths: Sequence[Path]) -> list[Text]:
    texts: list[Text] = []
    for path in paths:
        if path.is_dir():
            texts += _below(path, "*", set())
        elif path.exists():
            text = _text(path.name, path)
            if text is None:
                raise DataError(f"{path}: expected text (UTF-8), found other bytes or none")
            texts.append(text)
        else:
            raise DataError(
                f"data.path: expected files or folders of text, found nothing at {path}"
            )
    return texts


def _standard_library() -> list[Text]:
    return _below(Path(sysconfig.get_path("stdlib")), "*.py", NOT_OURS)


def _below(folder: Path, pattern: str, left_out: set[str]) -> list[Text]:
    """The texts in a folder, in the order of their names."""
    found = []
    for path in sorted(folder.rglob(pattern)):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part in left_out or part.startswith(".") for part in parts):
            found.append(_text("/".join(parts), path))
    return [text for text in found if text is not None]


def _text(name: str, path: Path) -> Text | None:
    """The text in a file; None of a file that is empty or no text."""
    data = _read(path)
    try:
        characters = data.decode()
    except UnicodeDecodeError:
        return None
    if not characters or "\0" in characters:  # which ends a file among tokens, and is in no text
        return None
    return Text(name=name, path=path, digest=hashlib.sha256(data).digest())


def _cut(text: Text, share: float) -> Corpus:
    """The only text, cut in two after a line or, where that holds only one, anywhere."""
    characters = _read(text.path).decode()
    place = round(len(characters) * (1 - share))
    place = characters.rfind("\n", 0, place) + 1 or place
    parts = [
        Text(name=text.name, path=text.path, digest=text.digest, begin=begin, end=end)
        for begin, end in ((0, place), (place, None))
    ]
    return Corpus(trained=parts[:1], held_out=parts[1:])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
