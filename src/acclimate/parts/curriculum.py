"""How hard a row is for a network that is still learning: its loss against a bank of the losses of all rows.

Jiang et al. 2023 (MoDify), section 3, https://arxiv.org/abs/2309.00844"""

import torch
from torch import Tensor


def difficulty(bank: Tensor, losses: Tensor) -> Tensor:
    """The share of the bank's entries below each loss, from 0 to 1 [loss]; entries that are nan were never seen and do not count.

    >>> difficulty(torch.tensor([1.0, 2.0, torch.nan, 3.0, 4.0]), torch.tensor([0.5, 2.0, 3.5, 9.0])).tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    seen = bank[~bank.isnan()].sort().values
    return torch.searchsorted(seen, losses.to(seen)) / max(1, len(seen))


def remembered(bank: Tensor, rows: Tensor, losses: Tensor, momentum: float) -> Tensor:
    """The bank with momentum x entry + (1 - momentum) x loss at some rows; the first loss of a row stands as it is.

    >>> remembered(torch.tensor([1.0, torch.nan, 5.0]), torch.tensor([0, 1]), torch.tensor([2.0, 3.0]), 0.9).tolist()
    [1.100000023841858, 3.0, 5.0]
    """
    old, losses, moved = bank[rows], losses.to(bank), bank.clone()
    moved[rows] = torch.where(old.isnan(), losses, momentum * old + (1 - momentum) * losses)
    return moved
