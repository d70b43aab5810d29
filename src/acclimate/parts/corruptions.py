"""Common corruptions of images in five severities, for measuring and learning under shift.

Hendrycks & Dietterich 2019, https://arxiv.org/abs/1903.12261 . Noise, contrast, brightness and JPEG quality have the strengths of the
paper's set for images of 224 pixels; lengths (blur, streaks, distortion) are shares of the image's shorter side, somewhat larger than
the paper's, so that they do something to 28 pixels. Frost and snow, which need photographs, are left out; rain and darkness stand in.
Figures therefore do not compare with those of the published files. Images are x [row, channel, high, wide] in fp32 from 0 to 1, and so
is what comes back; all randomness comes from the generator, each row on its own; severity 0 changes nothing.

>>> x = np.full((1, 1, 2, 2), 0.5, np.float32)
>>> corrupt(x, "brightness", 3, np.random.default_rng(0)).astype(float).round(2).tolist()
[[[[0.8, 0.8], [0.8, 0.8]]]]
>>> corrupt(x, "blur", 3, np.random.default_rng(0))
Traceback (most recent call last):
acclimate.errors.AcclimateError: no corruption 'blur'; they are: gaussian_noise, shot_noise, impulse_noise, defocus_blur, ..., jpeg
"""

import io
from collections.abc import Callable

import numpy as np

from ..errors import AcclimateError

Images = np.ndarray


def corrupt(x: Images, name: str, severity: int, generator: np.random.Generator) -> Images:
    """The images under one of :data:`CORRUPTIONS` at severity 1 (weak) to 5, or as they are at 0.

    >>> x = np.zeros((2, 3, 8, 8), np.float32)
    >>> all(corrupt(x, name, 5, np.random.default_rng(0)).shape == x.shape for name in CORRUPTIONS)
    True
    """
    if name not in CORRUPTIONS:
        raise AcclimateError(f"no corruption {name!r}; they are: {', '.join(CORRUPTIONS)}")
    if severity not in range(6):
        raise AcclimateError(f"severity = {severity!r}, but must be a whole number from 0 (unchanged) to 5")
    if x.ndim != 4 or (x.size and not 0 <= float(x.min()) <= float(x.max()) <= 1):
        low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
        raise AcclimateError(
            f"corruptions take images [row, channel, high, wide] from 0 to 1, but got shape {x.shape} from {low:g} to {high:g}; scale them"
        )
    x = np.ascontiguousarray(x, np.float32)
    if severity == 0 or not x.size:
        return x
    changed = CORRUPTIONS[name](x, severity - 1, generator)
    return np.ascontiguousarray(changed.clip(0, 1), np.float32)


def gaussian_noise(x: Images, level: int, generator: np.random.Generator) -> Images:
    """Normal noise on every number."""
    return x + (0.08, 0.12, 0.18, 0.26, 0.38)[level] * generator.standard_normal(x.shape, np.float32)


def shot_noise(x: Images, level: int, generator: np.random.Generator) -> Images:
    """Poisson noise, as of few photons: none where it is black."""
    photons = (60, 25, 12, 5, 3)[level]
    return generator.poisson(x * photons) / photons


def impulse_noise(x: Images, level: int, generator: np.random.Generator) -> Images:
    """Salt and pepper: some numbers become 0 or 1."""
    share, drawn = (0.03, 0.06, 0.09, 0.17, 0.27)[level], generator.random(x.shape, np.float32)
    return np.where(drawn < share / 2, 0, np.where(drawn < share, 1, x))


def defocus_blur(x: Images, level: int, generator: np.random.Generator) -> Images:
    """The mean over a disc."""
    radius = (0.028, 0.036, 0.048, 0.062, 0.08)[level] * min(x.shape[2:])
    reach = int(np.ceil(radius))
    fine = (np.arange((2 * reach + 1) * 8) + 0.5) / 8 - reach - 0.5
    inside = (fine[:, None] ** 2 + fine**2 <= max(radius, 0.5) ** 2).astype(np.float64)
    disc = inside.reshape(2 * reach + 1, 8, 2 * reach + 1, 8).mean((1, 3))
    return _filtered(x, np.repeat(disc[None] / disc.sum(), len(x), 0))


def motion_blur(x: Images, level: int, generator: np.random.Generator) -> Images:
    """The mean along a line, within 45 degrees of level, another direction for each row."""
    length = (0.10, 0.14, 0.18, 0.22, 0.28)[level] * min(x.shape[2:])
    return _filtered(x, _lines(length, np.deg2rad(generator.uniform(-45, 45, len(x)))))


def zoom_blur(x: Images, level: int, generator: np.random.Generator) -> Images:
    """The mean over growing enlargements about the middle."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    images, most = torch.from_numpy(x), (1.11, 1.16, 1.21, 1.26, 1.33)[level]
    total = torch.zeros_like(images)
    for zoom in np.linspace(1, most, 8):
        turn = torch.tensor([[1 / zoom, 0, 0], [0, 1 / zoom, 0]], dtype=torch.float32).expand(len(x), 2, 3)
        total += grid_sample(images, affine_grid(turn, list(x.shape), align_corners=False), padding_mode="border", align_corners=False)
    return (total / 8).numpy()


def fog(x: Images, level: int, generator: np.random.Generator) -> Images:
    """Bright cloud, of noise whose amplitude falls with its frequency, mixed in."""
    strength, (rows, _, high, wide) = (0.3, 0.5, 0.75, 1.0, 1.5)[level], x.shape
    frequency = np.hypot(np.fft.fftfreq(high)[:, None], np.fft.rfftfreq(wide))
    frequency[0, 0] = np.inf
    waves = np.fft.rfft2(generator.standard_normal((rows, high, wide)))
    cloud = np.fft.irfft2(waves / frequency**1.5, (high, wide))
    cloud -= cloud.min((1, 2), keepdims=True)
    cloud /= np.maximum(cloud.max((1, 2), keepdims=True), 1e-9)
    brightest = np.maximum(x.max((1, 2, 3), keepdims=True), 1e-3)
    return (x + strength * cloud[:, None]) * brightest / (brightest + strength)


def rain(x: Images, level: int, generator: np.random.Generator) -> Images:
    """Slanted bright streaks over a slightly darker image; the slant is the row's own."""
    share, side = (0.004, 0.008, 0.015, 0.025, 0.04)[level], min(x.shape[2:])
    length = max(3.0, 0.25 * side)
    drops = (generator.random((len(x), 1, *x.shape[2:])) < share).astype(np.float32)
    streaks = _filtered(drops, _lines(length, np.deg2rad(generator.uniform(60, 80, len(x))))) * length
    return x * (1 - 0.06 * (level + 1)) + 0.5 * streaks.clip(0, 1)


def brightness(x: Images, level: int, generator: np.random.Generator) -> Images:
    """More value (of hue, saturation and value): the strongest channel grows by so much, the others in proportion."""
    most = x.max(1, keepdims=True)
    more = (most + (0.1, 0.2, 0.3, 0.4, 0.5)[level]).clip(0, 1)
    return np.where(most > 0, x * more / np.maximum(most, 1e-6), more)


def darkness(x: Images, level: int, generator: np.random.Generator) -> Images:
    """Less light: every number is multiplied."""
    return x * (0.8, 0.65, 0.5, 0.35, 0.2)[level]


def contrast(x: Images, level: int, generator: np.random.Generator) -> Images:
    """Nearer to each channel's mean."""
    middle = x.mean((2, 3), keepdims=True)
    return (x - middle) * (0.4, 0.3, 0.2, 0.1, 0.05)[level] + middle


def elastic(x: Images, level: int, generator: np.random.Generator) -> Images:
    """Every pixel is fetched from elsewhere, by smooth random displacements."""
    import torch
    from scipy.ndimage import gaussian_filter
    from torch.nn.functional import affine_grid, grid_sample

    share, (rows, _, high, wide) = (0.015, 0.025, 0.035, 0.045, 0.06)[level], x.shape
    side = min(high, wide)
    moves = gaussian_filter(generator.standard_normal((rows, 2, high, wide)), (0, 0, 0.08 * side, 0.08 * side), mode="reflect")
    moves *= share * side / np.maximum(moves.std((2, 3), keepdims=True), 1e-9)  # standard deviation in pixels
    grid = affine_grid(torch.eye(2, 3).expand(rows, 2, 3), list(x.shape), align_corners=False)
    grid = grid + torch.from_numpy(np.float32(moves.transpose(0, 2, 3, 1) * (2 / np.array([wide, high]))))
    return grid_sample(torch.from_numpy(x), grid, padding_mode="border", align_corners=False).numpy()


def pixelate(x: Images, level: int, generator: np.random.Generator) -> Images:
    """Fewer, larger pixels."""
    import torch
    from torch.nn.functional import interpolate

    share, (high, wide) = (0.7, 0.5, 0.4, 0.3, 0.25)[level], x.shape[2:]
    small = interpolate(torch.from_numpy(x), (max(1, round(high * share)), max(1, round(wide * share))), mode="area")
    return interpolate(small, (high, wide), mode="nearest-exact").numpy()


def jpeg(x: Images, level: int, generator: np.random.Generator) -> Images:
    """Saved as JPEG of low quality and read again; other than 3 channels each by itself."""
    from PIL import Image

    def again(page: np.ndarray) -> np.ndarray:
        with io.BytesIO() as file:
            Image.fromarray(page).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[level])
            file.seek(0)
            return np.asarray(Image.open(file))

    pages = np.round(x * 255).astype(np.uint8)
    if x.shape[1] == 3:
        return np.stack([again(page.transpose(1, 2, 0)).transpose(2, 0, 1) for page in pages]) / 255
    return np.stack([again(page) for page in pages.reshape(-1, *x.shape[2:])]).reshape(x.shape) / 255


CORRUPTIONS: dict[str, Callable[[Images, int, np.random.Generator], Images]] = {
    each.__name__: each
    for each in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, motion_blur, zoom_blur, fog, rain, brightness, darkness, contrast, elastic,
        pixelate, jpeg,
    )
}  # fmt: skip


def _lines(length: float, angles: np.ndarray) -> np.ndarray:
    """[row, size, size]: a line of so many pixels through the middle at each angle (radians from level), summing to 1."""
    reach = int(np.ceil(length / 2))
    points = max(2, int(4 * length))
    along = ((np.arange(points) + 0.5) / points - 0.5) * length
    down, right = reach + np.sin(angles)[:, None] * along, reach + np.cos(angles)[:, None] * along
    lines = np.zeros((len(angles), 2 * reach + 2, 2 * reach + 2))
    row = np.arange(len(angles))[:, None]
    for dy in (0, 1):
        for dx in (0, 1):
            y, x = np.floor(down).astype(int), np.floor(right).astype(int)
            weight = np.abs(1 - dy - (down - y)) * np.abs(1 - dx - (right - x))
            np.add.at(lines, (np.broadcast_to(row, y.shape), y + dy, x + dx), weight)
    lines = lines[:, :-1, :-1]
    return lines / lines.sum((1, 2), keepdims=True)


def _filtered(x: Images, kernels: np.ndarray) -> Images:
    """Each row under its own kernel [row, size, size] (size odd), its border repeated outwards."""
    import torch
    from torch.nn.functional import conv2d, pad

    rows, channels, reach = len(x), x.shape[1], kernels.shape[-1] // 2
    images = pad(torch.from_numpy(x), (reach,) * 4, mode="replicate").flatten(0, 1)[None]
    weights = torch.from_numpy(np.repeat(np.float32(kernels), channels, 0))[:, None]
    return conv2d(images, weights, groups=rows * channels)[0].view(x.shape).numpy()
