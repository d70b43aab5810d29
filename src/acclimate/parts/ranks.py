"""Ranks by magnitude within rows."""

import numpy as np
import torch
from torch import Tensor

from .thresholds import magnitude_bits, upper

COLUMN = 0xFFFF  # the lower half of 32 bits


def row_ranks(values: Tensor) -> Tensor:
    """Rank of each entry's magnitude within its row, 0 for the smallest, as fp32.

    Magnitudes are told apart by their upper 16 bits (as if they were bf16); those alike rank by column. In rows of up to 65,536 entries
    these bits and the column are one number of 32 bits, which is sorted faster than an order of 16 bits is found.

    >>> row_ranks(torch.tensor([[0.5, -0.1, 0.5], [-9.0, 2.0, 3.0]]))
    tensor([[1., 0., 2.],
            [2., 0., 1.]])
    """
    width = values.shape[-1]
    if width <= COLUMN + 1:
        keys = magnitude_bits(values).bitwise_and_(~COLUMN).reshape(-1, width)
        keys |= torch.arange(width, dtype=torch.int32)
        keys.numpy().sort(axis=1)
        places = (keys & COLUMN).long()
    else:
        places = torch.from_numpy(np.argsort(upper(values).reshape(-1, width).numpy().view(np.uint16), axis=1, kind="stable"))
    found = torch.empty(places.shape)
    found.scatter_(1, places, torch.arange(width, dtype=torch.float32).expand(places.shape))
    return found.reshape(values.shape)
