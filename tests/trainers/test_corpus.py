"""Which files are text, which are held out, and what is refused."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from trainers.errors import DataError
from trainers.language_model import corpus
from trainers.language_model.corpus import Corpus, find_texts


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "texts"
    (folder / "deep" / ".hidden").mkdir(parents=True)
    for number in range(30):
        (folder / f"{number}.txt").write_text(f"text {number}\nand more\n" * 3)
    (folder / "deep" / "last.md").write_text("größer\n")
    (folder / "deep" / ".hidden" / "no.txt").write_text("hidden")
    (folder / ".no.txt").write_text("hidden")
    (folder / "latin.txt").write_bytes(b"gr\xf6\xdfer")
    (folder / "zero.txt").write_bytes(b"a\0b")
    (folder / "empty.txt").write_bytes(b"")
    return folder


def names(texts):
    return {text.name for text in texts}


def whole(text):
    return "".join(text.pieces())


def test_a_folder(folder):
    found = find_texts([folder], 0.05)
    everything = {f"{number}.txt" for number in range(30)} | {"deep/last.md"}
    assert len(found.held_out) == 2  # one in twenty of 31, rounded up
    assert names(found.trained) | names(found.held_out) == everything
    assert not names(found.trained) & names(found.held_out)
    assert all(whole(text) == text.path.read_text() for text in found.trained)
    assert [text.name for text in found.trained] == sorted(names(found.trained))


def test_what_is_held_out_follows_from_names(folder, tmp_path):
    found = find_texts([folder], 0.05)
    moved = folder.rename(tmp_path / "elsewhere")
    again = find_texts([moved], 0.05)
    assert names(again.held_out) == names(found.held_out)
    assert again.digest == found.digest
    more = find_texts([moved], 0.2)
    assert names(more.held_out) > names(found.held_out)
    assert more.digest != found.digest


def test_files_and_folders(folder, tmp_path):
    extra = tmp_path / "extra.txt"
    extra.write_text("extra")
    found = find_texts([extra, folder], 0.05)
    assert len(found.trained) + len(found.held_out) == 32
    assert "extra.txt" in names(found.trained) | names(found.held_out)


def test_one_file_is_cut_after_a_line(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("".join(f"line {number}: größer\n" for number in range(97)))
    found = find_texts([path], 0.05)
    (trained,), (held_out,) = found.trained, found.held_out
    assert whole(trained) + whole(held_out) == path.read_text()
    assert whole(held_out).startswith("line 9")
    assert 0.03 < len(whole(held_out)) / len(path.read_text()) < 0.08
    path.write_text("x" * 100)  # one line
    found = find_texts([path], 0.05)
    assert (len(whole(found.trained[0])), len(whole(found.held_out[0]))) == (95, 5)


def test_pieces_are_whole_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "PIECE", 10)
    text = "".join(f"{'x' * number}\n" for number in range(40)) + "end"
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text("b")
    for one in (*find_texts([tmp_path], 0.5).trained, *find_texts([tmp_path], 0.5).held_out):
        pieces = list(one.pieces())
        assert "".join(pieces) == one.path.read_text()
        assert all(piece.endswith("\n") for piece in pieces[:-1])
        assert all(len(piece) >= 10 for piece in pieces[:-1])


def test_the_standard_library(monkeypatch):
    found = find_texts(None, 0.05)
    everything = names(found.trained) | names(found.held_out)
    assert {"ast.py", "json/decoder.py"} <= everything
    assert not any("test" in name.split("/") or "site-packages" in name for name in everything)
    assert 1 <= len(found.held_out) <= len(everything) / 15
    assert sum(text.path.stat().st_size for text in found.trained) > 5_000_000
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    with pytest.raises(DataError, match=r"texts \(UTF-8\) in the standard library, found none"):
        find_texts(None, 0.05)


def test_of_the_standard_library_only_its_sources(tmp_path, monkeypatch):
    wanted = ("ast.py", "json/decoder.py")
    others = ("test/a.py", "unittest/test/a.py", "lib2to3/tests/a.py", "idlelib/idle_test/a.py")
    elsewhere = ("site-packages/a.py", "dist-packages/a.py", "__pycache__/a.py", "LICENSE.txt")
    for name in (*wanted, *others, *elsewhere):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    found = find_texts(None, 0.05)
    assert names(found.trained) | names(found.held_out) == set(wanted)


def test_the_digest_tells_parts_apart(folder):
    texts = find_texts([folder], 0.05).trained
    digests = {
        Corpus(trained=texts[:cut], held_out=texts[cut:]).digest for cut in range(len(texts))
    }
    assert len(digests) == len(texts)


def test_a_text_that_changes(folder):
    text = find_texts([folder], 0.05).trained[0]
    text.path.write_text("other")
    with pytest.raises(DataError, match="expected the text that was found, found it changed"):
        whole(text)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "expected files or folders of text, found nothing at .*none"),
        ("latin.txt", r"latin.txt: expected text \(UTF-8\), found other bytes or none"),
        ("zero.txt", "zero.txt: expected text"),
        ("empty.txt", "empty.txt: expected text"),
        ("deep/.hidden/empty", "hidden/empty, found none"),
    ],
)
def test_what_is_no_text(folder, name, message):
    (folder / "deep/.hidden/empty").mkdir()
    with pytest.raises(DataError, match=message):
        find_texts([folder / name], 0.05)


def test_what_cannot_be_read(tmp_path):
    unreadable = Path("/proc/self/mem")  # for anybody, root included, at its beginning
    (tmp_path / "link").symlink_to(unreadable)
    for path in (unreadable, tmp_path):
        with pytest.raises(DataError, match="cannot be read: Input/output error"):
            find_texts([path], 0.05)
