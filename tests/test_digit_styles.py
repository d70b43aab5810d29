"""Digits in other styles: made alike every time, and with the shares that their card promises."""

import numpy as np
import pytest

from acclimate import datasets
from acclimate.datasets import digit_styles
from acclimate.errors import AcclimateError
from worlds import needs_data


def test_a_style_that_is_misspelt_is_one_line():
    with pytest.raises(AcclimateError, match=r"no domain 'rotated_10' in dataset digit_styles; nearest: rotated_"):
        datasets.load("digit_styles/rotated_10")


def test_fonts_draw_every_digit_alike_each_time_and_within_the_border():
    first, again = (digit_styles.drawn(6, np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(first[0], again[0])
    assert np.bincount(first[1]).tolist() == [6] * 10
    x = first[0]
    assert (x.shape, x.dtype, float(x.min())) == ((60, 1, 28, 28), np.float32, 0.0)
    assert x.max() <= 1
    assert (x.max((1, 2, 3)) > 0.8).all()
    assert ((x > 0.5).mean((1, 2, 3)) > 0.02).all()
    assert max(x[:, :, edge].max() for edge in (0, -1)) < 0.5
    assert not np.array_equal(digit_styles.drawn(6, np.random.default_rng(2))[0], x)


def test_every_font_has_every_digit():
    for name in digit_styles.FONTS:
        x, y = digit_styles.drawn(1, np.random.default_rng(0), fonts=(name,))
        assert len({row.tobytes() for row in x}) == 10 == len(set(y.tolist()))


def test_a_quarter_turn_is_exact():
    images = np.random.default_rng(0).random((2, 3, 5, 5)).astype(np.float32)
    assert np.allclose(digit_styles.turned(images, 90), np.rot90(images, axes=(2, 3)), atol=1e-6)
    assert np.array_equal(digit_styles.turned(images, 0), images)


def test_where_a_digit_has_no_ink_the_photograph_stays():
    generator = np.random.default_rng(0)
    backgrounds = generator.random((1, 3, 4, 4)).astype(np.float32)
    images = np.zeros((1, 1, 4, 4), np.float32)
    images[..., 2] = 1
    found = digit_styles.blended(images, backgrounds, generator)
    assert np.array_equal(found[..., [0, 1, 3]], backgrounds[..., [0, 1, 3]])
    assert np.allclose(found[..., 2], 1 - backgrounds[..., 2])


@needs_data
@pytest.mark.parametrize(("share", "ours"), [(90, 0.9), (80, 0.8), (10, 0.1)])
def test_colours_agree_with_labels_as_often_as_named(share, ours):
    rows = datasets.load(f"digit_styles/coloured_{share}")
    assert rows.x.shape == (3333, 3, 28, 28)
    assert not rows.x[:, 2].any()
    ink = rows.x.sum((2, 3)).argmax(1)
    assert (ink == rows.y).mean() == pytest.approx(ours, abs=0.015)
    digits = datasets.load("digits/mnist_test").y[[int(origin.rpartition(":")[2]) - 1 for origin in rows.origins]]
    assert ((digits >= 5) == rows.y).mean() == pytest.approx(0.75, abs=0.02)


@needs_data
@pytest.mark.parametrize("kind", ["rotated", "coloured"])
def test_no_digit_stands_in_two_domains(kind):
    origins = [
        origin
        for name in datasets.domains("digit_styles")
        if name.startswith(kind)
        for origin in datasets.load(f"digit_styles/{name}").origins
    ]
    assert len(origins) == len(set(origins)) == {"rotated": 9996, "coloured": 9999}[kind]


@needs_data
def test_digits_over_photographs_are_those_of_mnist_row_by_row():
    rows, plain = datasets.load("digit_styles/mnist_m"), datasets.load("digits/mnist_test")
    assert rows.x.shape == (10000, 3, 28, 28)
    assert np.array_equal(rows.y, plain.y)
    assert rows.fingerprint == datasets.load("digit_styles/mnist_m").fingerprint
    images = digit_styles.photographs()
    assert images.shape == (720, 3, 64, 64)
    inverted = np.abs(rows.x[:500] - plain.x[:500])  # the crop again where the digit is pure black or white
    pure = (plain.x[:500] == 0) | (plain.x[:500] == 1)
    assert np.allclose(np.where(plain.x[:500] == 1, 1 - rows.x[:500], rows.x[:500])[np.repeat(pure, 3, 1)], inverted[np.repeat(pure, 3, 1)])


@needs_data
def test_fonts_are_told_by_their_neighbours_among_handwriting():
    fonts, hand = datasets.load("digit_styles/fonts"), datasets.load("digits/mnist_test")
    assert len(fonts) == 3000
    x, tested = fonts.x.reshape(3000, -1), hand.x[:1000].reshape(1000, -1)
    nearest = ((x**2).sum(1) - 2 * tested @ x.T).argmin(1)
    assert 0.45 < (fonts.y[nearest] == hand.y[:1000]).mean() < 0.9
