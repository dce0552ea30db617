"""Photographs are found, split and read; what cannot be used is named before training."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from trainers.configuration import config_from
from trainers.errors import DataError
from trainers.super_resolution import photographs
from trainers.super_resolution.photographs import (
    DataConfig,
    find_photographs,
    luminance_of,
    open_image,
    planes_of,
    resized,
)


def save(path, size=(60, 72), mode="RGB"):
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.new(mode, size).save(path)


def test_the_samples():
    files = find_photographs(DataConfig())
    assert list(files.held_out) == ["camera", "chelsea", "coffee", "china"]
    assert len(files.trained) == 13
    assert not files.trained.keys() & files.held_out.keys()
    for path in (*files.trained.values(), *files.held_out.values()):
        assert min(luminance_of(open_image(path)).shape) >= 300


def test_the_samples_need_their_packages(monkeypatch):
    monkeypatch.setattr(photographs, "SAMPLES", (("no_such_package", "data", ("a.png",)),))
    with pytest.raises(DataError, match="need no_such_package: install the extra `train`"):
        find_photographs(DataConfig())


def test_a_folder_is_searched_in_depth_and_split_by_name(tmp_path):
    for index in range(20):
        save(tmp_path / f"part{index % 3}" / f"image{index}.png")
    (tmp_path / "notes.txt").write_text("no image")
    files = find_photographs(DataConfig(path=tmp_path))
    assert (len(files.trained), len(files.held_out)) == (18, 2)
    assert find_photographs(DataConfig(path=tmp_path)) == files
    chosen = find_photographs(DataConfig(path=tmp_path, held_out=["part1/image1"]))
    assert list(chosen.held_out) == ["part1/image1"]


def test_files_with_one_name_and_two_suffixes(tmp_path):
    for name in ("a.png", "a.jpg", "b.png"):
        save(tmp_path / name)
    files = find_photographs(DataConfig(path=tmp_path, held_out=["b"]))
    assert set(files.trained) == {"a", "a.png"}


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(DataError, match="expected a folder of images, found nothing at"):
        find_photographs(DataConfig(path=tmp_path / "none"))
    with pytest.raises(DataError, match=r"expected images in .*, found none"):
        find_photographs(DataConfig(path=tmp_path))
    save(tmp_path / "only.png")
    with pytest.raises(DataError, match="expected a folder of images, found a file"):
        find_photographs(DataConfig(path=tmp_path / "only.png"))
    with pytest.raises(DataError, match="images to train on and images to hold out, found 0 and 1"):
        find_photographs(DataConfig(path=tmp_path))
    with pytest.raises(DataError, match=r"among the 1 images, found 'onli' \(did you mean 'only'"):
        find_photographs(DataConfig(path=tmp_path, held_out=["onli"]))


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "text.png").write_text("words")
    with pytest.raises(DataError, match=r"text.png: expected an image, found a file of no known"):
        open_image(tmp_path / "text.png")
    save(tmp_path / "cut.png", size=(300, 300))
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:80])
    with pytest.raises(DataError, match=r"cut.png: (cannot be read as|expected) an image"):
        open_image(tmp_path / "cut.png")
    with pytest.raises(DataError, match=r"none.png: cannot be read as an image: No such file"):
        open_image(tmp_path / "none.png")


def test_an_image_that_would_fill_memory(tmp_path, monkeypatch):
    save(tmp_path / "bomb.png")
    for limit in (60 * 72 - 1, 60 * 72 // 3):  # Pillow warns first and refuses at twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match="larger than what can be trusted"):
            open_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("which", ["trained", "held out"])
def test_an_image_smaller_than_a_crop(settings, photographs, tmp_path, which):
    folder = tmp_path / "mixed"
    for index in range(2):
        save(folder / f"good{index}.png")
    save(folder / "small.png", size=(60, 23))
    settings["data"] |= {
        "path": str(folder),
        "held_out": ["small" if which == "held out" else "good0"],
    }
    config = config_from(settings, "settings")
    with pytest.raises(
        DataError, match=r"small.png.*: expected at least 24 x 24 pixels .* found 60 x 23"
    ):
        config.build()


RGB = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]]], np.uint8)
Y = [76, 150, 29, 18]  # 0.299 R + 0.587 G + 0.114 B, rounded


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(RGB), Y),
        (Image.fromarray(RGB).convert("RGBA"), Y),
        (Image.fromarray(RGB).quantize(4), Y),
        (Image.fromarray(np.array([[0, 5, 255]], np.uint8)), [0, 5, 255]),
        (Image.fromarray(np.array([[0, 5, 255]], np.uint8)).convert("LA"), [0, 5, 255]),
        (Image.fromarray(np.array([[False, True]])), [0, 255]),
        (Image.fromarray(np.array([[0, 257, 65535]], np.uint16)), [0, 1, 255]),
        (Image.fromarray(np.array([[0.0, 0.5, 7.0]], np.float32)), [0, 128, 255]),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_luminance_of_every_mode(image, expected):
    found = luminance_of(image)
    assert found.dtype == np.uint8
    assert found[0].tolist() == expected


def test_planes_of_colour_only():
    planes = planes_of(Image.fromarray(RGB))
    assert {name: plane[0].tolist() for name, plane in planes.items()} == {
        "red": [255, 0, 0, 10],
        "green": [0, 255, 0, 20],
        "blue": [0, 0, 255, 30],
    }
    assert planes_of(Image.new("LA", (1, 1))) == planes_of(Image.new("I;16", (1, 1))) == {}


def test_smaller_versions(settings):
    plane = np.full((30, 50), 7, np.uint8)
    assert resized(plane, 1.0) is plane
    assert resized(plane, 0.7).shape == (21, 35)
    settings["data"]["sizes"] = [1.0, 0.5]
    low, original = config_from(settings, "settings").build().samples(0, range(7))
    assert (low.shape, original.shape) == ((7, 1, 8, 8), (7, 1, 16, 16))
    settings["data"]["sizes"] = [0.3]
    with pytest.raises(
        DataError, match=r"at size 0.3\): expected at least 24 x 24 .* found 22 x 18"
    ):
        config_from(settings, "settings").build()
