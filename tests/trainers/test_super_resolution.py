"""The network, its crops, its measure and whole images through it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.super_resolution import crops
from trainers.super_resolution.comparison import HeldOut, Score, score_table
from trainers.super_resolution.crops import CropSampler
from trainers.super_resolution.enlargement import enlarged_image, enlarged_luminance
from trainers.super_resolution.network import REACH, Net
from trainers.super_resolution.resolution import (
    bicubic,
    cut_to_multiple,
    psnr,
    shrunk,
    to_pixels,
    to_tensor,
)

RANDOM = np.random.default_rng(1)
IMAGE = RANDOM.integers(256, size=(75, 93), dtype=np.uint8)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Net(3)


def test_the_network_is_the_one_of_the_literature(network):
    assert sum(parameter.numel() for parameter in network.parameters()) == 59_657
    assert network(torch.zeros(2, 1, 5, 7)).shape == (2, 1, 15, 21)
    rows = network.conv3.weight.reshape(32, -1)
    torch.testing.assert_close(rows @ rows.T, 2 * torch.eye(32), rtol=0, atol=1e-5)


def test_its_reach(network):
    low = torch.zeros(1, 1, 31, 31)
    low.requires_grad_(True)
    network(low)[0, 0, 45:48, 45:48].sum().backward()
    touched = low.grad[0, 0].nonzero()
    assert touched.min(0).values.tolist() == [15 - REACH] * 2
    assert touched.max(0).values.tolist() == [15 + REACH] * 2


def test_shrinking_is_pillows():
    exact = np.asarray(
        Image.fromarray(IMAGE.astype(np.float32)).resize((31, 25), Image.Resampling.BICUBIC)
    )
    found = to_pixels(shrunk(to_tensor(IMAGE), 3))
    assert np.abs(found - exact.clip(0, 255)).max() <= 0.5 + 1e-3


def test_psnr_by_hand():
    original = np.zeros((9, 9), np.uint8)
    image = original.copy()
    image[:3] = 200  # the border does not count
    assert psnr(image, original, 3) == np.inf
    image[3:6, 3:6] = 10
    assert psnr(image, original, 3) == pytest.approx(20 * np.log10(25.5))
    assert psnr(image[3:6, 3:6], original[3:6, 3:6], 0) == pytest.approx(20 * np.log10(25.5))
    assert cut_to_multiple(np.zeros((10, 11, 3), np.uint8), 3).shape == (9, 9, 3)


def test_a_crop_is_a_crop_of_the_shrunk_photograph(monkeypatch):
    monkeypatch.setattr(crops, "_turned", lambda window, turn: window)
    sampler = CropSampler({"a": IMAGE}, factor=3, crop=6, detail=0, seed=0)
    aligned = 0
    for step in range(30):
        low, original = sampler.draw(step, 4, range(4))
        assert low.shape == (4, 1, 6, 6)
        assert original.shape == (4, 1, 18, 18)
        for one_low, one in zip(low, original, strict=True):
            pixels = to_pixels(one[None])
            (place,) = np.argwhere(
                (np.lib.stride_tricks.sliding_window_view(IMAGE, (18, 18)) == pixels).all((2, 3))
            )
            top, left = place
            shifted = IMAGE[top % 3 :, left % 3 :]
            whole = shrunk(to_tensor(cut_to_multiple(shifted, 3)), 3)[0, 0]
            expected = whole[top // 3 : top // 3 + 6, left // 3 : left // 3 + 6]
            assert (one_low[0] - expected).abs().max() < 1.01 / 255  # a tie may round either way
            aligned += int(torch.equal(one_low[0], expected))
    assert aligned > 100


def test_crops_depend_on_seed_and_step_alone():
    images = {"a": IMAGE, "b": IMAGE.T}

    def draw(seed, step, share):
        sampler = CropSampler(images, factor=2, crop=6, detail=0.5, seed=seed)
        return sampler.draw(step, 8, share)[1]

    whole = draw(0, 5, range(8))
    assert torch.equal(torch.cat([draw(0, 5, range(3)), draw(0, 5, range(3, 8))]), whole)
    assert not torch.equal(draw(0, 6, range(8)), whole)
    assert not torch.equal(draw(1, 5, range(8)), whole)


def test_every_orientation():
    square = torch.arange(9).reshape(3, 3)
    seen = {tuple(crops._turned(square, turn).flatten().tolist()) for turn in range(8)}
    assert len(seen) == 8


def test_detail_is_preferred():
    image = np.full((60, 300), 128, np.uint8)
    image[:, 250:] = RANDOM.integers(256, size=(60, 50), dtype=np.uint8)

    def spread(detail):
        sampler = CropSampler({"a": image}, factor=3, crop=6, detail=detail, seed=0)
        return float((sampler.draw(0, 200, range(200))[1].std((1, 2, 3)) > 0).float().mean())

    assert spread(0) < 0.4
    assert spread(1) > 0.95


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (40, 50)])
@pytest.mark.parametrize("tile", [7, 16])
def test_tiles_make_no_difference(network, size, tile):
    low = RANDOM.integers(256, size=size, dtype=np.uint8)
    tiled = enlarged_luminance(network, low, 3, tile)
    whole = enlarged_luminance(network, low, 3, 1000)
    assert tiled.shape == (3 * size[0], 3 * size[1])
    assert np.abs(tiled.astype(int) - whole).max() <= 1  # a tie may round either way
    assert (tiled != whole).mean() < 0.01


class Bicubic(torch.nn.Module):
    """In a network's place, so that what is right is known."""

    def forward(self, low):
        return bicubic(low, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "CMYK", "YCbCr", "I;16", "F"])
def test_images_of_every_mode(mode):
    if mode == "I;16":
        image = Image.fromarray(RANDOM.integers(65536, size=(12, 17), dtype=np.uint16))
    elif mode == "F":
        image = Image.fromarray(RANDOM.random((12, 17), dtype=np.float32))
    else:
        pixels = RANDOM.integers(256, size=(12, 17, 4), dtype=np.uint8)
        image = (
            Image.fromarray(pixels, "RGBA")
            .convert(mode if mode in ("LA", "RGBA") else "RGB")
            .convert(mode)
        )
    result = enlarged_image(Bicubic(), image, 3)
    assert result.size == (51, 36)
    assert result.mode == {"1": "L", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}.get(mode, mode)
    if mode in ("RGB", "RGBA", "L", "LA"):
        inner = (slice(9, -9), slice(9, -9))
        exact = np.asarray(image.resize((51, 36), Image.Resampling.BICUBIC))
        if mode in ("LA", "RGBA"):  # Pillow weighs colours by their opacity, we do not
            exact, result = exact[..., -1], np.asarray(result)[..., -1]
        difference = np.abs(np.asarray(result).astype(int) - exact)[inner]
        assert difference.mean() < 1.5
        assert difference.max() < 60  # where a colour was cut off at 0 or 255 before or after


def test_transparency_of_a_palette_and_a_colour_profile_stay():
    image = Image.new("P", (8, 8))
    image.info["transparency"] = 0
    assert enlarged_image(Bicubic(), image, 3).mode == "RGBA"
    image = Image.new("RGB", (8, 8))
    image.info["icc_profile"] = b"profile"
    assert enlarged_image(Bicubic(), image, 3).info["icc_profile"] == b"profile"


def test_held_out_and_its_table(photographs, network):
    held_out = HeldOut("grey", photographs / "grey.png", 3)
    assert held_out.original.shape == (60, 72)
    assert held_out.judged(Bicubic()) == pytest.approx(held_out.bicubic_psnr, abs=0.3)
    table = score_table([Score("a", 20.0, 21.0), Score("b", 30.0, 29.5)], 3)
    assert [list(column.cells)[-1] for column in table.columns] == [
        *("mean", "25.00", "25.25"),
        "[green]+0.25[/green]",
    ]
