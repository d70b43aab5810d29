"""Optimal transport of rows to prototypes by Sinkhorn's scalings: with both marginals kept, or with both only nearly kept.

Cuturi 2013, https://arxiv.org/abs/1306.0895; Chizat et al. 2018 (marginals relaxed by Kullback-Leibler divergences),
https://arxiv.org/abs/1607.05816; Caron et al. 2020, section 3.1 (few rounds, as soft labels), https://arxiv.org/abs/2006.09882"""

import numpy as np
import torch
from torch import Tensor


def balanced(similarity: Tensor, smooth: float = 0.05, rounds: int = 3) -> Tensor:
    """Shares [row, prototype], each row summing to 1, that spread the rows evenly over prototypes; few rounds leave that rough.

    >>> balanced(torch.tensor([[1.0, 0.9], [1.0, 0.0]]), rounds=200).round(decimals=2).tolist()  # the second is surer of the first
    [[0.0, 1.0], [1.0, 0.0]]
    """
    plan = (similarity.double() / smooth).exp()
    for _ in range(rounds):
        plan = plan / plan.sum(0)
        plan = plan / plan.sum(1, keepdim=True)
    return plan.to(similarity)


def kernel(similarity: Tensor, smooth: float) -> Tensor:
    """exp((similarity - 1) / smooth) in double precision: costs are 1 - similarity [row, prototype]."""
    return ((similarity.double() - 1) / smooth).exp()


def column_scaling(similarity: Tensor, wanted: Tensor, smooth: float, relaxed: float, rounds: int = 1000, enough: float = 1e-4) -> Tensor:
    """The scaling of each prototype [prototype] in the plan with marginals nearly 1 / rows and ``wanted``: relaxed by ``relaxed`` KL.

    Rows follow from it one by one (:func:`row_plan`). The rounds, many and small, run in numpy; they end where the scalings, up to a
    factor of all of them, change by less than a share ``enough``: such a factor changes the mass of the plan, and nothing else.
    """
    weights, aim = kernel(similarity, smooth).detach().cpu().numpy(), wanted.detach().double().cpu().numpy()
    power = relaxed / (relaxed + smooth)
    v = np.ones(weights.shape[1])
    for _ in range(rounds):
        u = (1 / len(weights) / (weights @ v)) ** power
        ratio = (aim / (u @ weights)) ** power / v
        v = v * ratio
        if ratio.max() / ratio.min() - 1 < enough:
            break
    return torch.from_numpy(v).to(similarity.device)


def row_plan(similarity: Tensor, v: Tensor, rows: int, smooth: float, relaxed: float) -> Tensor:
    """Mass that goes from each of some rows, out of ``rows`` in all, to each prototype, given the prototypes' scalings [row, prototype].

    >>> similarity = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])  # the last belongs nowhere
    >>> v = column_scaling(similarity, torch.tensor([0.5, 0.5]), smooth=0.1, relaxed=0.5)
    >>> plan = row_plan(similarity, v, 4, smooth=0.1, relaxed=0.5)
    >>> (4 * plan / plan.sum()).sum(1).round(decimals=2).tolist()
    [1.13, 1.13, 1.46, 0.28]
    """
    weights = kernel(similarity, smooth) * v
    total = weights.sum(1, keepdim=True)
    return (1 / rows / total) ** (relaxed / (relaxed + smooth)) * weights
