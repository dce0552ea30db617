"""Noise is put into pictures as the definition says, and taken out of them again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.diffusion.schedule import NoiseSchedule

RANDOM = np.random.default_rng(2)
KINDS = ("cosine", "linear")


def normal(*shape):
    return torch.from_numpy(RANDOM.standard_normal(shape).astype(np.float32))


def factors(schedule, time):
    return np.sqrt(schedule.kept[time]), np.sqrt(1 - schedule.kept[time])


@pytest.mark.parametrize("times", [20, 50, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_from_the_whole_picture_to_nearly_nothing(kind, times):
    kept = NoiseSchedule(kind, times).kept
    assert kept.shape == (times + 1,)
    assert kept[0] == 1
    assert (np.diff(kept) < 0).all()
    assert 0 < kept[-1] < 1e-4
    if times == 1000:
        assert kept[1] > 0.9998


def test_the_linear_one_by_definition():
    added = [1e-4 + (0.02 - 1e-4) * index / 999 for index in range(1000)]
    expected = np.cumprod([1 - each for each in added])
    np.testing.assert_allclose(NoiseSchedule("linear", 1000).kept[1:], expected)
    half = NoiseSchedule("linear", 500).kept
    np.testing.assert_allclose(half[250], expected[499], rtol=0.02)


def test_the_cosine_by_definition():
    def part(done):
        return np.cos((done + 0.008) / 1.008 * np.pi / 2) ** 2

    kept = NoiseSchedule("cosine", 1000).kept
    expected = part(np.arange(1000) / 1000) / part(0)
    np.testing.assert_allclose(kept[:1000], expected, rtol=1e-9)
    assert kept[1000] == pytest.approx(kept[999] / 1000)  # not 0: a time adds 0.999 at most


@pytest.mark.parametrize("kind", KINDS)
def test_noising_by_definition(kind):
    schedule = NoiseSchedule(kind, 20)
    pictures, noise = normal(4, 3, 2, 5), normal(4, 3, 2, 5)
    times = [0, 1, 7, 20]
    found = schedule.noised(pictures, noise, torch.tensor(times)).numpy()
    for index, time in enumerate(times):
        picture, spread = factors(schedule, time)
        expected = picture * pictures[index].numpy() + spread * noise[index].numpy()
        np.testing.assert_allclose(found[index], expected, rtol=1e-5, atol=1e-6)


def test_the_variance_stays():
    schedule = NoiseSchedule("cosine", 20)
    pictures, noise = normal(21, 1, 200, 200), normal(21, 1, 200, 200)
    variances = schedule.noised(pictures, noise, torch.arange(21)).var((1, 2, 3))
    assert variances.numpy() == pytest.approx(np.ones(21), abs=0.03)


@pytest.mark.parametrize(
    ("steps", "stops"), [(1, [99]), (4, [99, 74, 50, 25]), (99, range(99, 0, -1))]
)
def test_without_fresh_noise_the_way_is_that_of_one_noise(steps, stops):
    """A picture noised by `noise` to the end comes back by the same points, at even times."""
    schedule = NoiseSchedule("linear", 99)
    picture, noise = normal(2, 3, 4, 4).clamp(-1, 1), normal(2, 3, 4, 4)
    last = torch.full((2,), 99)
    passed = []

    def predict(current, times):
        passed.append((int(times[0]), current))
        assert times.tolist() == [passed[-1][0]] * 2
        return noise

    found = schedule.sampled(predict, schedule.noised(picture, noise, last), steps=steps)
    assert [time for time, _ in passed] == list(stops)
    for time, current in passed:
        kept, spread = factors(schedule, time)
        expected = kept * picture.numpy() + spread * noise.numpy()
        np.testing.assert_allclose(current.numpy(), expected, atol=1e-3)
    torch.testing.assert_close(found, picture, rtol=0, atol=1e-3)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("steps", "kind"), [(1, "linear"), (7, "cosine"), (100, "cosine")])
def test_what_is_always_one_picture_comes_out_of_any_noise(eta, steps, kind):
    """Of data that is a constant the exact noise is known."""
    schedule = NoiseSchedule(kind, 100)
    constant = normal(3, 4, 4).clamp(-1, 1)

    def predict(current, times):
        kept, spread = factors(schedule, int(times[0]))
        return (current - kept * constant) / spread

    random = torch.Generator().manual_seed(1)
    noise = torch.randn(5, 3, 4, 4, generator=random)
    found = schedule.sampled(predict, noise, steps=steps, eta=eta, random=random)
    torch.testing.assert_close(found, constant.expand(5, 3, 4, 4), rtol=0, atol=2e-3)


def test_ancestral_sampling_is_that_of_ho_and_others():
    """Their posterior mean and variance (equation 7), written out."""
    schedule = NoiseSchedule("cosine", 6)
    kept = schedule.kept
    noise = normal(2, 3, 4, 4)
    found = schedule.sampled(
        lambda current, times: 0.9 * torch.sin(current),
        noise,
        steps=6,
        eta=1.0,
        random=torch.Generator().manual_seed(4),
    )
    random = torch.Generator().manual_seed(4)
    current = noise.numpy().astype(np.float64)
    for time in range(6, 0, -1):
        predicted = 0.9 * np.sin(current)
        picture = (current - np.sqrt(1 - kept[time]) * predicted) / np.sqrt(kept[time])
        picture = picture.clip(-1, 1)
        alpha = kept[time] / kept[time - 1]
        beta = 1 - alpha
        rest = 1 - kept[time]
        current = (
            np.sqrt(kept[time - 1]) * beta / rest * picture
            + np.sqrt(alpha) * (1 - kept[time - 1]) / rest * current
        )
        if time > 1:
            fresh = torch.randn(2, 3, 4, 4, generator=random).numpy()
            current += np.sqrt((1 - kept[time - 1]) / rest * beta) * fresh
    np.testing.assert_allclose(found.numpy(), current, atol=1e-3)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_fresh_noise_is_as_much_as_song_and_others_have(eta):
    """Their sigma (equation 16), in a step from time 40 to 20."""
    schedule = NoiseSchedule("linear", 40)
    picture, noise = normal(2, 3, 4, 4).clamp(-1, 1), normal(2, 3, 4, 4)
    passed = []

    def predict(current, times):
        passed.append(current.numpy())
        return noise

    start = schedule.noised(picture, noise, torch.tensor([40, 40]))
    random = torch.Generator().manual_seed(4)
    schedule.sampled(predict, start, steps=2, eta=eta, random=random)
    (_, spread), (part, left) = (factors(schedule, time) for time in (40, 20))
    sigma = eta * left / spread * np.sqrt(1 - schedule.kept[40] / schedule.kept[20])
    fresh = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(4)).numpy()
    expected = part * picture.numpy() + np.sqrt(left**2 - sigma**2) * noise.numpy() + sigma * fresh
    np.testing.assert_allclose(passed[1], expected, atol=2e-3)


def test_no_picture_leaves_the_range():
    schedule = NoiseSchedule("cosine", 9)
    found = schedule.sampled(lambda current, times: 0 * current, 5 * normal(2, 3, 4, 4), steps=9)
    assert found.abs().max() <= 1.0
