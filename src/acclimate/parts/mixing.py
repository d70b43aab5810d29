"""Which rows are mixed with which, and in what shares.

Zhang et al. 2018 (mixup), https://arxiv.org/abs/1710.09412"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import AcclimateError


def beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """Shares drawn from Beta(alpha, alpha) [count]; 1 everywhere at alpha = 0 (nothing is mixed).

    >>> beta(1e9, 2, torch.Generator().manual_seed(0)).round(decimals=3).tolist()
    [0.5, 0.5]
    """
    if alpha <= 0:
        return torch.ones(count)
    seed = int(torch.randint(2**31, (1,), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count)).float()


def only_numbers(x: Tensor, does: str = "changes") -> None:
    """Raise AcclimateError for rows of whole numbers, such as token ids or nodes of graphs: there is nothing between two of them."""
    if not x.is_floating_point():
        raise AcclimateError(
            f"this method {does} rows, but rows of whole numbers (token ids, nodes of graphs) have nothing in between; "
            "use vectors of a frozen encoder, or another method"
        )


def blend(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """share x one + (1 - share) x other, row by row: [row, *shape] and share [row].

    >>> blend(torch.ones(2, 1), torch.zeros(2, 1), torch.tensor([0.25, 1.0])).flatten().tolist()
    [0.25, 1.0]

    Raises AcclimateError for rows of whole numbers, such as token ids: there is nothing between two of them.
    """
    only_numbers(one, "mixes")
    wide = share.view(-1, *[1] * (one.ndim - 1)).to(one)
    return wide * one + (1 - wide) * other


def paired(sizes: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each row a row of the next domain, domains and rows in an order drawn anew: (other row, number of the domain) [row] each.

    Domains of one size meet without remainder; a smaller one's rows are used again. A single domain meets itself.

    >>> other, domain = paired([2, 2], torch.Generator().manual_seed(0))
    >>> sorted(other[:2].tolist()), domain.tolist()
    ([2, 3], [0, 0, 1, 1])
    """
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    order = torch.randperm(len(sizes), generator=generator).tolist()
    after = {domain: order[(place + 1) % len(order)] for place, domain in enumerate(order)}
    other = []
    for domain, size in enumerate(sizes):
        partner = after[domain]
        rows = torch.randperm(sizes[partner], generator=generator)
        other.append(starts[partner] + rows[torch.arange(size) % sizes[partner]])
    return torch.cat(other), torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
