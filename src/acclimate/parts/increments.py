"""A pool of low-rank increments of a network's weights, picked by keys and mixed for each row by weights of its own.

Peng et al. 2024, section 3, https://arxiv.org/abs/2404.07470"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from .places import adding


class Increments(nn.Module):
    """Slots of A_n^T B_n for some layers of a network (linear or convolution): A = 0 and B from N(0, 1) at the start.

    >>> net = nn.Sequential(nn.Linear(2, 1, bias=False)); net[0].weight.data.zero_()
    tensor([[0., 0.]])
    >>> pool = Increments(net, ["0"], slots=2, rank=1)
    >>> for side, value in ((pool.a, [[[2.0]], [[1.0]]]), (pool.b, [[[1.0, 0.0]], [[0.0, 1.0]]])): side[0].data = torch.tensor(value)
    >>> with pool.applied(net, torch.tensor([[1.0, 0.0], [0.25, 0.75]])):  # W = [2, 0] and [0.5, 0.75]
    ...     net(torch.tensor([[1.0, 1.0], [1.0, 1.0]])).flatten().tolist()
    [2.0, 1.25]
    """

    def __init__(self, net: nn.Module, layers: Sequence[str], slots: int, rank: int, generator: torch.Generator | None = None):
        super().__init__()
        self.layers = list(layers)
        known: dict[str, Any] = dict(net.named_modules())
        shapes = [known[name].weight.shape for name in layers]
        self.a = nn.ParameterList(torch.zeros(slots, rank, shape[0]) for shape in shapes)
        self.b = nn.ParameterList(torch.randn(slots, rank, *shape[1:], generator=generator) for shape in shapes)

    def applied(self, net: nn.Module, weight: Tensor) -> AbstractContextManager[None]:
        """Inside, each layer works with W + sum of weight [row, slot] x A_n^T B_n, row by row; rows come first in what passes."""
        return adding(net, {name: _mixed(a, b, weight) for name, a, b in zip(self.layers, self.a, self.b, strict=True)})


def _mixed(a: Tensor, b: Tensor, weight: Tensor) -> Callable[[Any, Tensor], Tensor]:
    shares = weight.repeat_interleave(a.shape[1], 1)  # [row, slot x rank]

    def made(layer: Any, x: Tensor) -> Tensor:
        up, down = a.flatten(0, 1), b.flatten(0, 1)
        if isinstance(layer, nn.Linear):
            return (x @ down.T * shares.view(len(x), *[1] * (x.ndim - 2), -1)) @ up
        thin = layer._conv_forward(x, down, None)
        return torch.einsum("ns...,so->no...", thin * shares.view(len(x), -1, *[1] * (x.ndim - 2)), up)

    return made


class Keys(nn.Module):
    """weight [group, slot, column]: in each group orthogonal rows, as many at a time as there are columns."""

    def __init__(self, groups: int, slots: int, wide: int, generator: torch.Generator):
        super().__init__()
        blocks = [[nn.init.orthogonal_(some, generator=generator) for some in torch.empty(slots, wide).split(wide)] for _ in range(groups)]
        self.weight = nn.Parameter(torch.stack([torch.cat(each) for each in blocks]))


def likeness(q: Tensor, keys: Tensor) -> Tensor:
    """Cosine of each part of a vector [row, width] with the keys [group, slot, column]: [row, group, slot]."""
    groups, _, wide = keys.shape
    parts = pad(q, (0, groups * wide - q.shape[1])).view(len(q), groups, wide)
    return torch.einsum("bgc,gnc->bgn", normalize(parts, dim=2, eps=1e-6), normalize(keys, dim=2, eps=1e-6))


def mixture(s: Tensor, top: int) -> Tensor:
    """Scores [row, slot] of the ``top`` slots over their sum, 0 elsewhere.

    >>> mixture(torch.tensor([[0.6, 0.1, 0.2]]), 2).round(decimals=3)
    tensor([[0.7500, 0.0000, 0.2500]])
    """
    found = s.topk(min(top, s.shape[1]), 1)
    return torch.zeros_like(s).scatter(1, found.indices, found.values / (found.values.sum(1, keepdim=True) + 1e-9))
