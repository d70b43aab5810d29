"""Vectors that tell a transformer where a token stands."""

import math

import torch
from torch import Tensor


def sinusoids(length: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of falling frequency in turn [place, width]. Vaswani et al. 2017, section 3.5, https://arxiv.org/abs/1706.03762

    >>> [round(x, 3) for x in sinusoids(2, 4)[1].tolist()]
    [0.841, 0.54, 0.01, 1.0]
    """
    place = torch.arange(length, device=device)[:, None]
    wave = place * torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000.0) / width))
    return torch.stack([wave.sin(), wave.cos()], -1).flatten(1)[:, :width]
