"""The U-Net, what it is trained on, how it is judged, and the settings that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import launch
from trainers.configuration import config_from
from trainers.diffusion.crops import CropSampler, Samples, colours_of
from trainers.diffusion.drawing import ENLARGED, GAP, draw_grid
from trainers.diffusion.judging import GROUP, HeldOutCrops, mean_of
from trainers.diffusion.network import UNet, UNetConfig, waves
from trainers.diffusion.schedule import NoiseSchedule
from trainers.errors import CheckpointError, ConfigurationError, DataError
from trainers.run import carry_out

RANDOM = np.random.default_rng(8)
SHAPE = {"widths": (8, 16, 24), "groups": 4, "heads": 2}
SCHEDULE = NoiseSchedule("cosine", 40)


@pytest.fixture
def network():
    """With weights in place of those that are nothing yet."""
    torch.manual_seed(0)
    network = UNet(UNetConfig(**SHAPE))
    for parameter in network.parameters():
        if parameter.ndim == 4:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network


@pytest.fixture
def sampler():
    sizes = ((20, 31), (26, 17))
    images = {f"{h}": RANDOM.integers(256, size=(h, w, 3), dtype=np.uint8) for h, w in sizes}
    return CropSampler(images, crop=12, times=40)


def test_the_network_begins_with_the_mean_of_the_noise():
    network = UNet(UNetConfig())
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_164_323
    found = network(torch.randn(2, 3, 32, 32), torch.tensor([1, 1000]))
    assert found.shape == (2, 3, 32, 32)
    assert not found.any()


def test_every_weight_counts(network):
    noisy, times = torch.randn(3, 3, 8, 12), torch.tensor([1, 20, 40])
    network(noisy, times).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    others = {id(parameter) for parameter in network.matrices}
    left = {n for n, p in network.named_parameters() if p.ndim >= 2 and id(p) not in others}
    assert left == {"first.weight", "last.weight"}


def test_each_picture_has_its_own_time(network):
    noisy = torch.randn(3, 3, 8, 8)
    whole = network(noisy, torch.tensor([3, 3, 30]))
    for index, time in enumerate((3, 3, 30)):
        alone = network(noisy[index : index + 1], torch.tensor([time]))
        torch.testing.assert_close(whole[index : index + 1], alone, rtol=1e-4, atol=1e-4)
    assert (network(noisy, torch.tensor([30, 3, 30]))[0] - whole[0]).abs().max() > 0.01


def test_waves_by_definition():
    found = waves(torch.tensor([0, 1, 700]), 6).numpy()
    frequencies = [1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)]
    for row, time in zip(found, (0, 1, 700), strict=True):
        angles = [time * frequency for frequency in frequencies]
        np.testing.assert_allclose(row, [*np.cos(angles), *np.sin(angles)], atol=1e-4)


def test_attention_by_definition(network):
    attention = network.levels.below.below.attention
    features = torch.randn(1, 24, 2, 3)
    inner = attention.norm(features)[0].detach().flatten(1).numpy()
    parts = (attention.mixed.weight[:, :, 0, 0].detach().numpy() @ inner).reshape(3, 2, 12, 6)
    heads = []
    for queries, keys, values in zip(*parts, strict=True):
        weights = np.exp(queries.T @ keys / np.sqrt(12))
        heads.append(values @ (weights / weights.sum(1, keepdims=True)).T)
    expected = attention.output.weight[:, :, 0, 0].detach().numpy() @ np.concatenate(heads)
    found = (attention(features) - features)[0].flatten(1).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_samples_follow_from_their_numbers_alone(sampler):
    whole = sampler.drawn([(1, 5, position) for position in range(6)])
    parts = [sampler.drawn([(1, 5, p) for p in share]) for share in (range(2), range(2, 6))]
    for each, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat(shares), each)
    for numbers in ((1, 5, 1), (1, 6, 0), (2, 5, 0)):
        other = sampler.drawn([numbers])
        assert not torch.equal(other.noise[0], whole.noise[0])
        assert not torch.equal(other.pictures[0], whole.pictures[0])


def test_a_picture_is_a_window_of_a_photograph(sampler):
    samples = sampler.drawn([(3, index) for index in range(300)])
    seen = set()
    for picture in samples.pictures.numpy():
        pixels = np.rint((picture.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
        places = [
            (owner, flipped, int(top), int(left))
            for owner, image in enumerate(sampler._images)
            for flipped in (False, True)
            for top, left in windows_like(image, pixels[:, ::-1] if flipped else pixels)
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert {place[:2] for place in seen} == {(o, f) for o in (0, 1) for f in (False, True)}
    # 9 x 20 places in one, 15 x 6 in the other, and all the edges are reached.
    for owner, rows, columns in ((0, 9, 20), (1, 15, 6)):
        assert {top for o, _, top, _ in seen if o == owner} == {*range(rows)}
        assert {left for o, _, _, left in seen if o == owner} == {*range(columns)}
    share = np.mean([owner == 0 for owner, *_ in seen])
    assert 0.5 < share < 0.8  # 2 of 3 places are the first one's
    assert samples.times.min() == 1
    assert samples.times.max() == 40
    assert samples.noise.mean() == pytest.approx(0, abs=0.02)
    assert samples.noise.std() == pytest.approx(1, abs=0.02)


def windows_like(image, pixels):
    every = np.lib.stride_tricks.sliding_window_view(image, (12, 12), axis=(0, 1))
    return np.argwhere((every.transpose(0, 1, 3, 4, 2) == pixels).all((2, 3, 4)))


def test_a_photograph_smaller_than_a_crop():
    image = np.zeros((12, 11, 3), np.uint8)
    with pytest.raises(DataError, match=r"small: expected at least 12 x 12 pixels .* 11 x 12; see"):
        CropSampler({"small": image}, crop=12, times=1)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16"])
def test_colours_of_every_mode(mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 5), 257 * 102, np.uint16))
    else:
        image = Image.new("RGB", (5, 4), (102, 102, 102)).convert(mode)
    assert (colours_of(image) == np.full((4, 5, 3), 102)).all()


class Predicts(nn.Module):
    """Always the same."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def forward(self, noisy, times):
        return self.noise.expand_as(noisy)


def test_losses_by_hand(sampler):
    held_out = HeldOutCrops(sampler, SCHEDULE, 20)
    noise = held_out.samples.noise.double().numpy()
    zero = np.square(noise).mean((1, 2, 3))
    np.testing.assert_allclose(held_out.baseline, zero)
    np.testing.assert_allclose(held_out.losses(Predicts(torch.zeros(1))), zero, rtol=1e-5)
    ones = np.square(noise - 1).mean((1, 2, 3))
    np.testing.assert_allclose(held_out.losses(Predicts(torch.ones(1))), ones, rtol=1e-5)
    assert mean_of(held_out.baseline) == pytest.approx(1, abs=0.1)


def test_what_is_judged_by_is_fixed_and_at_all_times(sampler):
    held_out, again = (HeldOutCrops(sampler, SCHEDULE, 20) for _ in range(2))
    for each, other in zip(held_out.samples, again.samples, strict=True):
        assert torch.equal(each, other)
    assert held_out.samples.times.tolist() == [*range(2, 41, 2)]
    assert HeldOutCrops(sampler, SCHEDULE, 80).samples.times.tolist() == [
        time for time in range(1, 41) for _ in range(2)
    ]
    for numbers in ((0, 0, 0), (0, 0, 1)):  # a sample of training is another one
        assert not torch.equal(sampler.drawn([numbers]).noise[0], held_out.samples.noise[0])


def judged(comm, settings):
    torch.set_num_threads(1)
    task = config_from(settings, "settings").build()
    torch.manual_seed(1)
    network = task.new_model()
    nn.init.normal_(network.last.weight)
    return task.evaluate(network, comm)


class OneOf:
    """A rank of several, which notes what it would tell the others and is told `everyones`."""

    def __init__(self, rank, size, everyones):
        self.rank, self.size = rank, size
        self.everyones = everyones

    def allgather_object(self, mine):
        self.everyones[self.rank] = mine
        return self.everyones


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_same_bits_however_it_is_shared_out(sampler, network, size):
    held_out = HeldOutCrops(sampler, SCHEDULE, 3 * GROUP + 5)
    expected = held_out.losses(network)
    whole = {begin: expected[begin : begin + GROUP] for begin in range(0, 3 * GROUP + 5, GROUP)}
    told = []
    for rank in range(size):
        ranks = OneOf(rank, size, [whole] * size)
        held_out.losses(network, ranks)
        told.append(ranks.everyones[rank])
    assert {begin: each for mine in told for begin, each in mine.items()} == whole
    assert sum(map(len, told)) == len(whole)
    assert held_out.losses(network, OneOf(0, size, told)) == expected


@pytest.mark.full
@pytest.mark.parametrize("size", [2, 3])
def test_the_same_bits_on_any_number_of_ranks(diffusion_settings, alone, size):
    assert diffusion_settings["data"]["validation_crops"] > 2 * GROUP
    expected = judged(alone, diffusion_settings)
    assert launch.spawn(judged, size, diffusion_settings) == [expected] * size


def test_losses_are_in_the_order_of_crops(sampler, monkeypatch):
    monkeypatch.setattr(HeldOutCrops, "_group", lambda self, model, begin: [float(begin)])
    held_out = HeldOutCrops(sampler, SCHEDULE, 4 * GROUP)

    class OneOfTwo:
        rank, size = 1, 2

        def allgather_object(self, mine):
            assert mine == {GROUP: [GROUP], 3 * GROUP: [3 * GROUP]}
            return [{0: [0.0], 2 * GROUP: [2.0 * GROUP]}, mine]

    assert held_out.losses(None, OneOfTwo()) == [0, GROUP, 2 * GROUP, 3 * GROUP]
    assert mean_of([1e16, 1.0, -1e16, 1.0]) == 0.25  # added one after the other


def test_the_loss_is_the_mean_over_samples(diffusion_settings):
    task = config_from(diffusion_settings, "settings").build()
    samples = task.samples(4, range(2, 5))
    found = task.loss(Predicts(torch.full((1,), 0.5)), samples)
    assert found.item() == pytest.approx(np.square(samples.noise.numpy() - 0.5).mean(), rel=1e-5)
    halves = [Samples(*(each[part] for each in samples)) for part in (slice(1), slice(1, 3))]
    first, others = (task.loss(Predicts(torch.zeros(1)), half).item() for half in halves)
    whole = task.loss(Predicts(torch.zeros(1)), samples).item()
    assert (first + 2 * others) / 3 == pytest.approx(whole)


def test_a_seed_gives_other_samples_and_the_same_judgement(diffusion_settings):
    tasks = [config_from({**diffusion_settings, "seed": s}, "").build() for s in (3, 4)]
    one, other = (task.samples(0, range(1)).noise for task in tasks)
    assert not torch.equal(one, other)
    one, other = (task._held_out.samples.noise for task in tasks)
    assert torch.equal(one, other)


def test_training_predicts_better_than_the_mean(diffusion_settings, alone, capsys):
    diffusion_settings["train"] |= {"epochs": 1, "steps_per_epoch": 60, "log_every": 60}
    diffusion_settings["optimizer"] = {"kind": "adam", "rate": 1e-2}
    config = config_from(diffusion_settings, "settings")
    trainer = carry_out(config, alone, resume=False)
    result = trainer.task.evaluate(trainer.average.model, alone)
    assert result["of_mean"] < 0.8
    said = capsys.readouterr().out
    mean = result["validation_loss"] / result["of_mean"]
    assert mean == pytest.approx(1, abs=0.1)
    assert f"val {result['validation_loss']:.4f}, predicting the mean {mean:.4f}" in said
    (row,) = (line for line in said.splitlines() if line.startswith("│ network"))
    parts = [float(cell) for cell in row.split("│")[2:-1]]
    assert parts[-1] == pytest.approx(result["validation_loss"], abs=1e-4)
    assert np.mean(parts[:-1]) == pytest.approx(parts[-1], abs=1e-3)
    with Image.open(config.run / "samples.png") as image:
        assert image.size == (ENLARGED * (8 * 9 + 1),) * 2


def test_the_grid(tmp_path):
    pictures = torch.full((5, 3, 2, 4), -1.0)
    pictures[1] = 1.0
    pictures[3, 1, 0, 2] = 0.0
    pictures[4] = 7.0
    draw_grid(pictures, 3, tmp_path / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    assert pixels.shape == (ENLARGED * (2 * 3 + GAP), ENLARGED * (3 * 5 + GAP), 3)
    blocks = pixels.reshape(7, ENLARGED, 16, ENLARGED, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    small = blocks[:, 0, :, 0]
    expected = np.full((7, 16, 3), 255, np.uint8)
    for top, left in ((1, 1), (1, 11), (4, 1)):
        expected[top : top + 2, left : left + 4] = 0
    expected[4, 3, 1] = 128
    assert (small == expected).all()


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("model", {"widths": []}, r"model.widths: expected multiples of model.groups \(4\), found"),
        ("model", {"widths": [8, 18]}, r"multiples of model.groups \(4\), found \[8, 18\]"),
        ("model", {"widths": [8, 0]}, r"multiples of model.groups \(4\), found \[8, 0\]"),
        ("model", {"widths": [3], "groups": 1, "heads": 1}, "widths: expected an even .* found 3"),
        ("model", {"heads": 3}, r"heads: expected a divisor of .* \(16\), found 3"),
        ("model", {"heads": 0}, "model.heads: expected 1 or more, found 0"),
        ("model", {"blocks": 0}, "model.blocks: expected 1 or more, found 0"),
        ("model", {"groups": 0}, "model.groups: expected 1 or more, found 0"),
        ("model", {"times": 19}, "model.times: expected 20 or more, found 19"),
        ("model", {"schedule": "flat"}, "schedule: expected 'cosine' or 'linear', found 'flat'"),
        ("data", {"crop": 9}, "data.crop: expected a multiple of 2, .* 2 levels .*, found 9"),
        ("data", {"crop": 0}, "data.crop: expected 1 or more, found 0"),
        ("data", {"sizes": [2.0]}, "data.sizes: expected numbers from 0.1 to 1, found"),
        ("data", {"held_out_share": 1.0}, "data.held_out_share: expected a number between 0 and 1"),
        ("data", {"validation_crops": 3}, "data.validation_crops: expected 4 or more, found 3"),
        ("sampling", {"steps": 0}, "sampling.steps: expected 1 or more, found 0"),
        ("sampling", {"steps": 51}, r"steps: expected at most model.times \(50\), found 51"),
        ("sampling", {"eta": 1.5}, "sampling.eta: expected 0 to 1, found 1.5"),
    ],
)
def test_settings_that_are_refused(diffusion_settings, section, change, message):
    diffusion_settings[section] |= change
    with pytest.raises(ConfigurationError, match=message):
        config_from(diffusion_settings, "settings")


def test_photographs_too_small_for_a_crop_are_named(diffusion_settings):
    diffusion_settings["data"] |= {"sizes": [0.1]}
    with pytest.raises(DataError, match=r"\.png \(at size 0.1\): expected at least 8 x 8 pixels"):
        config_from(diffusion_settings, "settings").build()


def test_weights_of_another_schedule(diffusion_settings):
    task = config_from(diffusion_settings, "settings").build()
    task.check_attachments(task.attachments(), "here")
    diffusion_settings["model"]["schedule"] = "linear"
    other = config_from(diffusion_settings, "settings").build()
    message = r"here is of another schedule .* 'linear, 50 times', .* found 'cosine, 50 times'"
    with pytest.raises(CheckpointError, match=message):
        other.check_attachments(task.attachments(), "here")
    with pytest.raises(CheckpointError, match="found None"):
        other.check_attachments({}, "here")
