"""Adversarial examples: the change of a row, no entry by more than a radius, that a loss dislikes most.

Madry et al. 2018, section 2.1 (projected gradient descent), https://arxiv.org/abs/1706.06083
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .mixing import only_numbers


def pgd(
    loss: Callable[[Tensor], Tensor], x: Tensor, radius: float, steps: int, stride: float, bounds: tuple[float, float] | None = (0.0, 1.0)
) -> Tensor:
    """x [row, *shape] moved ``steps`` times by ``stride`` along the signs of the gradient of ``loss`` [row], never further than ``radius``.

    Of each row the iterate with the largest loss is kept, x itself among them. No entry leaves ``bounds`` unless it lies outside in x.

    >>> pgd(lambda a: a.square().sum(1), torch.tensor([[0.5, -0.2]]), radius=0.3, steps=2, stride=0.2).tolist()
    [[0.800000011920929, -0.20000000298023224]]
    """
    only_numbers(x)
    low, high = x - radius, x + radius
    if bounds:
        low, high = low.maximum(x.clamp(max=bounds[0])), high.minimum(x.clamp(min=bounds[1]))
    now = best = x.detach()
    worst: Tensor | None = None
    for step in range(steps + 1):
        now = now.detach().requires_grad_(step < steps)
        found = loss(now)
        if worst is None:
            worst = found.detach()
        else:
            better = found.detach() > worst
            worst = torch.where(better, found.detach(), worst)
            best = torch.where(better.view(-1, *[1] * (x.ndim - 1)), now.detach(), best)
        if step < steps:
            (slope,) = torch.autograd.grad(found.sum(), now)
            now = (now.detach() + stride * slope.sign()).clamp(low, high)
    return best
