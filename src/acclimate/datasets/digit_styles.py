"""Digit styles: MNIST digits over photographs, turned and coloured, and digits drawn in printers' fonts, made anew from fixed seeds.

Made from ``digits/mnist_test`` (10,000 images; LeCun et al. 1998), the photographs of ``pacs`` (64 x 64, over which see there) and the
fonts that matplotlib ships (DejaVu, STIX, Computer Modern; all free). Each domain loads as ``acclimate.domain.arrays.Arrays``: x [row,
channel, 28, 28] in fp32 from 0 to 1, y [row].

``mnist_m``: 10,000 images of 3 channels, the absolute difference, channel by channel, of a digit and of a random crop of a photograph,
as Ganin & Lempitsky 2015 make theirs (https://arxiv.org/abs/1409.7495). Row for row the digits of ``digits/mnist_test``.

``rotated_0`` to ``rotated_90`` in steps of 15: digits turned anticlockwise by so many degrees (bilinear), as in Ghifary et al. 2015
(https://arxiv.org/abs/1508.07680); 1,428 images of 1 channel each, no digit in two domains.

``coloured_90``, ``coloured_80``, ``coloured_10``: Arjovsky et al. 2019 (https://arxiv.org/abs/1907.02893). Two classes, digits under 5
and from 5, whose label is false for a quarter of the rows; red or green ink agrees with the label in 90, 80 and 10 % of the rows
(channels red, green, blue; agreement: low is red). 3,333 images each, no digit in two domains. Who goes by the shape gets 75 %
everywhere; who goes by the colour gets 90, 80 and 10 %.

``fonts``: 3,000 images of 1 channel, 300 of each digit, in 19 fonts with random size, weight, slant, turn and place. No handwriting at
all.

What for: domain adaptation from MNIST; domain generalization over turns; shortcuts that fail; sources that cost nothing.

Traps. Not the published files: mnist_m has photographs of PACS behind it instead of BSDS500's, the coloured images have 28 x 28 pixels
instead of 14 x 14, and all come from MNIST's test part, so figures compare only roughly. All but fonts hold the same 10,000 digits:
whoever learns on ``digits/mnist_test`` and tests here must take other rows. Fonts are drawn by FreeType: another version of Pillow may
move single pixels.
"""

import io
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..domain.arrays import Arrays
from . import digits, known_domain, locate

SIDE = 28
ANGLES = tuple(range(0, 91, 15))
AGREEMENT = (90, 80, 10)  # percent
NOISE = 0.25
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold",
    "DejaVuSansMono-BoldOblique", "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic",
    "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "STIXGeneralItalic", "cmr10", "cmb10", "cmss10",
)  # fmt: skip
CARD: dict[str, Any] = {
    "source": "made from MNIST's test part (github.com/kelas/mnist), PACS' photographs and matplotlib's fonts",
    "licence": "not stated (MNIST, PACS); fonts are free",
    "size": "10,000 over photographs, 7 x 1,428 turned, 3 x 3,333 coloured, 3,000 in fonts; nothing to download beyond digits and pacs",
    "columns": {"x": "image [1 or 3, 28, 28], 0 to 1", "y": "the digit; of coloured: low or high"},
    "form": "arrays",
    "hub": None,
}


def domains() -> list[str]:
    """The styles."""
    return ["mnist_m", *(f"rotated_{angle}" for angle in ANGLES), *(f"coloured_{share}" for share in AGREEMENT), "fonts"]


def load(domain: str) -> Arrays:
    """The images of one style."""
    known_domain("digit_styles", domain, domains())
    kind, _, number = domain.partition("_")
    classes = [str(digit) for digit in range(10)]
    generator = np.random.default_rng([2026, domains().index(domain)])
    if domain == "fonts":
        x, y = drawn(300, generator)
        return Arrays(f"digit_styles/{domain}", x, y, classes, CARD["source"], CARD["licence"])
    given = digits.load("mnist_test")
    if domain == "mnist_m":
        rows, x, y = np.arange(len(given)), blended(given.x, photographs(), generator), given.y
    else:
        parts: tuple[int, ...] = ANGLES if kind == "rotated" else AGREEMENT
        rows = np.random.default_rng(2026).permutation(len(given))[parts.index(int(number)) :: len(parts)][: len(given) // len(parts)]
        x, y = given.x[rows], given.y[rows]
        if kind == "rotated":
            x = turned(x, int(number))
        else:
            x, y = coloured(x, y, int(number) / 100, generator)
            classes = ["low", "high"]
    origins = [f"digits/mnist_test:{row + 1}" for row in rows]
    return Arrays(f"digit_styles/{domain}", x, y, classes, CARD["source"], CARD["licence"], origins)


def photographs() -> np.ndarray:
    """PACS' photographs: [image, 3, 64, 64] in fp32, 0 to 1."""
    from PIL import Image

    found = []
    with zipfile.ZipFile(locate("other/pacs6/photo_64jpg.zip")) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".jpg"):
                with Image.open(io.BytesIO(archive.read(name))) as image:
                    found.append(np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1) / np.float32(255))
    return np.stack(found)


def blended(images: np.ndarray, backgrounds: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Absolute difference of grey images [row, 1, side, side] and random crops of backgrounds [image, 3, high, wide], 0 to 1.

    >>> blended(np.ones((1, 1, 2, 2)), np.full((1, 3, 4, 4), 0.25), np.random.default_rng(0)).tolist()[0][0]
    [[0.75, 0.75], [0.75, 0.75]]
    """
    side, (_, _, high, wide) = images.shape[-1], backgrounds.shape
    which = generator.integers(len(backgrounds), size=len(images))
    tops, lefts = generator.integers(high - side + 1, size=len(images)), generator.integers(wide - side + 1, size=len(images))
    within = np.arange(side)
    crops = backgrounds[which[:, None, None], :, (tops[:, None] + within)[:, :, None], (lefts[:, None] + within)[:, None]]
    return np.ascontiguousarray(np.abs(crops.transpose(0, 3, 1, 2) - images), np.float32)


def turned(images: np.ndarray, degrees: float) -> np.ndarray:
    """Images [row, channel, high, wide] turned anticlockwise about their middle, black beyond the border.

    >>> turned(np.array([[[[1, 2], [3, 4]]]]), 90).round(3).tolist()
    [[[[2.0, 4.0], [1.0, 3.0]]]]
    """
    from scipy.ndimage import rotate

    return rotate(np.asarray(images, np.float32), degrees, axes=(3, 2), reshape=False, order=1) if degrees else images.astype(np.float32)


def coloured(
    images: np.ndarray, y: np.ndarray, agreement: float, generator: np.random.Generator, noise: float = NOISE
) -> tuple[np.ndarray, np.ndarray]:
    """Grey digits [row, 1, high, wide] in red or green [row, 3, high, wide], and labels 0 (digit under 5) or 1, a share ``noise`` false.

    ``agreement`` is the share of rows where the colour (red 0, green 1) is that of the label.

    >>> x, y = coloured(np.ones((2, 1, 1, 1)), np.array([3, 8]), 1.0, np.random.default_rng(0), noise=0.0)
    >>> x.reshape(2, 3).tolist(), y.tolist()
    ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [0, 1])
    """
    labels = (np.asarray(y) >= 5).astype(np.int64) ^ (generator.random(len(y)) < noise)
    ink = labels ^ (generator.random(len(y)) >= agreement)
    x = np.zeros((len(images), 3, *images.shape[2:]), np.float32)
    x[np.arange(len(images)), ink] = images[:, 0]
    return x, labels


def drawn(count: int, generator: np.random.Generator, side: int = SIDE, fonts: tuple[str, ...] = FONTS) -> tuple[np.ndarray, np.ndarray]:
    """``count`` images of each digit in printers' fonts: x [row, 1, side, side], white on black, and y, in random order.

    Drawn evenly: height (50 to 68 % of the side), weight (strokes widened by up to 3 % of the side on each hand), slant (to 0.3), turn
    (to 15 degrees) and place (to 6 % off the middle). Drawn four times as large, then averaged.
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    large = 4 * side
    y = generator.permutation(np.repeat(np.arange(10), count))
    x = np.zeros((len(y), 1, side, side), np.float32)
    font = cache(lambda name, size: ImageFont.truetype(str(folder / f"{name}.ttf"), size))
    for row, digit in enumerate(y.tolist()):
        name = fonts[int(generator.integers(len(fonts)))]
        size = round(float(generator.uniform(0.5, 0.68)) * large / 0.7 / 4) * 4  # a digit is about 0.7 of its font's size
        weight = int(generator.integers(0, large // 28))
        page = Image.new("L", (large, large))
        write = ImageDraw.Draw(page).text
        write((large / 2, large / 2), str(digit), fill=255, font=font(name, size), anchor="mm", stroke_width=weight)
        angle, slant = np.deg2rad(generator.uniform(-15, 15)), generator.uniform(-0.3, 0.3)
        shift = generator.uniform(-0.06, 0.06, 2) * large
        left, top, right, bottom = page.getbbox() or (0, 0, large, large)
        middle = np.array([(left + right) / 2, (top + bottom) / 2])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.array([[1, slant], [0, 1]])
        start = middle - turn @ (large / 2 + shift)  # where the output's corner lies in the page that was drawn
        rows = (turn[0, 0], turn[0, 1], start[0], turn[1, 0], turn[1, 1], start[1])
        page = page.transform((large, large), Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
        x[row, 0] = np.asarray(page, np.float32).reshape(side, 4, side, 4).mean((1, 3)) / 255
    return x, y.astype(np.int64)
