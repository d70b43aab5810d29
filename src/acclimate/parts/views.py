"""Random views of rows that keep what they show: noise for vectors and series, small changes of light, place and sharpness for images."""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from .mixing import only_numbers


def random_view(x: Tensor, generator: torch.Generator, strength: float = 1.0, flip: bool = False) -> Tensor:
    """A view of each row [row, ...] of the same shape; ``strength`` scales all changes, 0 changes nothing.

    Images [row, channel, h, w] in 0..1: brightness and contrast by up to 20 %, a turn by up to 15 degrees, a shift by up to 1/16, scaling
    by up to 10 %, noise of 0.005, left and right turned round where ``flip`` is on. Other rows: noise of 5 % of each column's deviation.

    >>> rows = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> torch.equal(random_view(rows, torch.Generator(), 0.0), rows), random_view(rows, torch.Generator()).shape
    (True, torch.Size([2, 1, 8, 8]))
    """
    if strength == 0:
        return x
    only_numbers(x)

    def draw(*shape: int) -> Tensor:
        return (2 * torch.rand(*shape, generator=generator) - 1).to(x)

    def noise() -> Tensor:
        return torch.randn(x.shape, generator=generator).to(x)

    if x.ndim != 4:
        return x + strength * 0.05 * x.std(0, unbiased=False) * noise()
    rows = len(x)
    angle, size = draw(rows) * strength * math.pi / 12, 1 + 0.1 * strength * draw(rows)
    side = torch.sign(draw(rows)) if flip else torch.ones(rows).to(x)
    turn = torch.stack([side * size * angle.cos(), -size * angle.sin(), side * size * angle.sin(), size * angle.cos()], 1).view(rows, 2, 2)
    place = torch.cat([turn, strength * draw(rows, 2, 1) / 8], 2)
    moved = grid_sample(x, affine_grid(place, list(x.shape), align_corners=False), padding_mode="border", align_corners=False)
    light, contrast = (1 + 0.2 * strength * draw(rows, 1, 1, 1) for _ in range(2))
    middle = moved.mean((1, 2, 3), keepdim=True)
    return (((moved - middle) * contrast + middle) * light + 0.005 * strength * noise()).clamp(0, 1)
