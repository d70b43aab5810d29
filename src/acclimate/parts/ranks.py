"""Ranks by magnitude within rows."""

import numpy as np
import torch
from torch import Tensor

from .thresholds import upper


def row_ranks(values: Tensor) -> Tensor:
    """Rank of each entry's magnitude within its row, 0 for the smallest, as fp32.

    Magnitudes are told apart by their upper 16 bits (as if they were bf16), which a radix sort orders; those alike rank by column.

    >>> row_ranks(torch.tensor([[0.5, -0.1, 0.5], [-9.0, 2.0, 3.0]]))
    tensor([[1., 0., 2.],
            [2., 0., 1.]])
    """
    width = values.shape[-1]
    keys = upper(values).reshape(-1, width).numpy().view(np.uint16)
    places = torch.from_numpy(np.argsort(keys, axis=1, kind="stable"))
    found = torch.empty(places.shape)
    found.scatter_(1, places, torch.arange(width, dtype=torch.float32).expand(places.shape))
    return found.reshape(values.shape)
