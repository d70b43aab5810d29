"""Order by magnitude within rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..lazy import torch
from .thresholds import magnitude_bits, upper

if TYPE_CHECKING:
    from torch import Tensor

COLUMN = 0xFFFF  # the lower half of 32 bits


def row_order(values: Tensor) -> Tensor:
    """The columns of each row from the smallest magnitude to the largest [*shape].

    Magnitudes are told apart by their upper 16 bits (as if they were bf16); those alike stand by column. In rows of up to 65,536 entries
    these bits and the column are one number of 32 bits, which is sorted faster than an order of 16 bits is found.

    >>> row_order(torch.tensor([[0.5, -0.1, 0.5], [-9.0, 2.0, 3.0]]))
    tensor([[1, 0, 2],
            [1, 2, 0]])
    """
    width = values.shape[-1]
    if width > COLUMN + 1:
        bits = upper(values).reshape(-1, width).numpy().view(np.uint16)
        return torch.from_numpy(np.argsort(bits, axis=1, kind="stable")).view(values.shape)
    keys = magnitude_bits(values).bitwise_and_(~COLUMN).reshape(-1, width)
    keys |= torch.arange(width, dtype=torch.int32)
    keys.numpy().sort(axis=1)
    return torch.from_numpy(keys.numpy().view(np.uint16)[:, ::2].astype(np.int64)).view(values.shape)
