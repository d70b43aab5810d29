"""Ranks by magnitude within rows."""

import numpy as np
import torch
from torch import Tensor


def row_ranks(values: Tensor) -> Tensor:
    """Rank of each entry's magnitude within its row, 0 for the smallest, as fp32; equal ones rank by column.

    The magnitude's bits and the column are packed into one 64-bit key, so that a plain sort (much faster than an argsort) orders them.

    >>> row_ranks(torch.tensor([[0.5, -0.1, 0.5], [-9.0, 2.0, 3.0]]))
    tensor([[1., 0., 2.],
            [2., 0., 1.]])
    """
    width = values.shape[-1]
    bits = values.float().abs().contiguous().view(torch.int32).reshape(-1, width).numpy().astype(np.int64)
    keys = (bits << 32) | np.arange(width)
    keys.sort(axis=1)
    found = np.empty(keys.shape, np.float32)
    np.put_along_axis(found, keys & 0xFFFFFFFF, np.arange(width, dtype=np.float32)[None], 1)
    return torch.from_numpy(found).reshape(values.shape)
