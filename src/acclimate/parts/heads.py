"""Heads on features, discriminators, and the reversal of gradients.

Ganin et al. 2016, equations 13 to 18, https://arxiv.org/abs/1505.07818 (reversal); Liang et al. 2020, section 3.1,
https://arxiv.org/abs/2002.08546 (weight-normalised head); Wang et al. 2018, https://arxiv.org/abs/1801.09414 (cosine head)"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Reversed(torch.autograd.Function):
    """Identity forwards; backwards the gradient times -strength."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        """Keeps the strength."""
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Turns the gradient round."""
        return -ctx.strength * gradients[0], None


def reverse(x: Tensor, strength: float = 1.0) -> Tensor:
    """The same values, whose gradient comes back turned round.

    >>> x = torch.tensor([2.0], requires_grad=True)
    >>> (3 * reverse(x, 0.5)).sum().backward(); x.grad.item()
    -1.5
    """
    return Reversed.apply(x, strength)


def rising(progress: float, gamma: float = 10.0) -> float:
    """How strongly a gradient is reversed at a share of the run: 2 / (1 + exp(-gamma p)) - 1, from 0 to nearly 1; 1 where gamma is 0.

    >>> [round(rising(p), 3) for p in (0, 0.1, 0.5, 1)]
    [0.0, 0.462, 0.987, 1.0]
    """
    return 2 / (1 + math.exp(-gamma * progress)) - 1 if gamma else 1.0


def mlp(inputs: int, hidden: list[int], outputs: int) -> nn.Sequential:
    """Linear layers with ReLU between: [row, inputs] -> [row, outputs]."""
    widths = [inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


class Cosine(nn.Module):
    """Scores that are cosines of features and class vectors, times a learned scale."""

    def __init__(self, inputs: int, outputs: int, scale: float = 10.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, z: Tensor) -> Tensor:
        """[row, width] -> [row, class]."""
        return self.scale * functional.normalize(z, dim=-1) @ functional.normalize(self.weight, dim=-1).T


def weight_normed(inputs: int, outputs: int) -> nn.Module:
    """A linear head whose class vectors have a length of their own (weight normalisation)."""
    return nn.utils.parametrizations.weight_norm(nn.Linear(inputs, outputs))


def per_pixel(inputs: int, outputs: int) -> nn.Module:
    """A linear head on every pixel: [row, inputs, high, wide] -> [row, outputs, high, wide]."""
    return nn.Conv2d(inputs, outputs, 1)


HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": nn.Linear, "cosine": Cosine, "weight_norm": weight_normed, "pixels": per_pixel
}  # fmt: skip
