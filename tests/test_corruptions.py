"""Corruptions of images: bounded, alike from the same generator, stronger with severity, and each what it says."""

import numpy as np
import pytest

from acclimate.errors import AcclimateError
from acclimate.parts.corruptions import CORRUPTIONS, corrupt


def images(rows=6, channels=3, high=24, wide=32):
    """Smooth random images, 0 to 1."""
    from scipy.ndimage import gaussian_filter

    x = gaussian_filter(np.random.default_rng(3).standard_normal((rows, channels, high, wide)), (0, 0, 2, 2))
    x -= x.min((2, 3), keepdims=True)
    return np.float32(x / x.max((2, 3), keepdims=True))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_is_bounded_alike_and_grows(name, channels):
    x = images(channels=channels)
    before = x.copy()
    found = [corrupt(x, name, severity, np.random.default_rng(1)) for severity in range(6)]
    assert np.array_equal(x, before), "the images that were given are changed"
    assert np.array_equal(found[0], x)
    for each in found:
        assert (each.shape, each.dtype) == (x.shape, np.float32)
        assert 0 <= each.min() <= each.max() <= 1
    assert np.array_equal(found[3], corrupt(x, name, 3, np.random.default_rng(1)))
    change = [float(((each - x) ** 2).mean()) for each in found]
    assert change == sorted(change)
    assert change[5] > 1.5 * change[1] > 1e-5
    assert not len(corrupt(x[:0], name, 3, np.random.default_rng(1)))


@pytest.mark.parametrize("name", ["motion_blur", "rain", "fog", "elastic", "gaussian_noise"])
def test_every_row_has_its_own_draw(name):
    same = np.repeat(images(rows=1), 2, 0)
    first, second = corrupt(same, name, 4, np.random.default_rng(0))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "zoom_blur", "elastic", "pixelate", "contrast", "jpeg"])
def test_an_even_image_stays_even(name):
    x = np.full((2, 3, 16, 16), 0.4, np.float32)
    assert np.allclose(corrupt(x, name, 5, np.random.default_rng(0)), 0.4, atol=0.01)


def test_noise_has_its_strength():
    grey = np.full((50, 1, 32, 32), 0.5, np.float32)
    generator = np.random.default_rng(0)
    assert corrupt(grey, "gaussian_noise", 1, generator).std() == pytest.approx(0.08, rel=0.02)
    assert corrupt(grey, "shot_noise", 1, generator).std() == pytest.approx((0.5 / 60) ** 0.5, rel=0.02)
    changed = corrupt(grey, "impulse_noise", 5, generator) != 0.5
    assert changed.mean() == pytest.approx(0.27, abs=0.01)
    assert not corrupt(np.zeros_like(grey), "shot_noise", 5, generator).any()


def test_colours_keep_their_hue_in_the_light():
    x = np.float32([0.2, 0.4, 0.1]).reshape(1, 3, 1, 1)
    assert np.allclose(corrupt(x, "brightness", 2, np.random.default_rng(0)).ravel(), [0.3, 0.6, 0.15])
    assert np.allclose(corrupt(x, "darkness", 3, np.random.default_rng(0)).ravel(), [0.1, 0.2, 0.05])


def test_a_blurred_point_is_a_disc_and_a_line():
    point = np.zeros((1, 1, 33, 33), np.float32)
    point[..., 16, 16] = 1
    rows, columns = np.nonzero(corrupt(point, "defocus_blur", 5, np.random.default_rng(0))[0, 0])
    assert np.hypot(rows - 16, columns - 16).max() < 0.08 * 33 + 0.8
    line = corrupt(point, "motion_blur", 5, np.random.default_rng(0))[0, 0]
    assert line.sum() == pytest.approx(1, abs=1e-4)
    spread = np.linalg.eigvalsh(np.cov(np.array(np.nonzero(line)), aweights=line[np.nonzero(line)], ddof=0))
    assert spread[1] == pytest.approx((0.28 * 33) ** 2 / 12, rel=0.05)
    assert spread[0] < 0.4


@pytest.mark.parametrize(
    ("x", "name", "severity", "line"),
    [
        (images(), "blur", 1, "no corruption 'blur'; they are: gaussian_noise"),
        (images(), "fog", 6, "severity = 6, but must be a whole number from 0 (unchanged) to 5"),
        (images() * 255, "fog", 1, "got shape (6, 3, 24, 32) from 0 to 255; scale them"),
        (images()[0], "fog", 1, "got shape (3, 24, 32) from 0 to 1; scale them"),
    ],
)
def test_what_cannot_be_corrupted_is_one_line(x, name, severity, line):
    with pytest.raises(AcclimateError) as caught:
        corrupt(x, name, severity, np.random.default_rng(0))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
