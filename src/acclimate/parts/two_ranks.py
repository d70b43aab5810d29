"""Two low-rank branches beside a layer, each with a strength of its own that may change from pass to pass.

Liu et al. 2024, equation 2, https://arxiv.org/abs/2306.04344"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .places import adding

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


class TwoRanks(nn.Module):
    """s_l U1 D1 x + s_h U2 D2 x beside a linear layer or a convolution; D normal, deviation 1 / rank^2, U = 0. Rank 0 leaves one out."""

    def __init__(self, layer: nn.Module, low: int, high: int):
        super().__init__()
        self.down = nn.ModuleList(_down(layer, rank) for rank in (low, high) if rank)
        self.up = nn.ModuleList(_up(layer, rank) for rank in (low, high) if rank)
        self.kinds = [kind for kind, rank in ((0, low), (1, high)) if rank]
        for down, up, rank in zip(self.down, self.up, filter(None, (low, high)), strict=True):
            nn.init.normal_(next(down.parameters()), std=rank**-2)
            nn.init.zeros_(next(up.parameters()))

    def forward(self, x: Tensor, scales: Sequence[float]) -> Tensor:
        """What is added to the layer's output, given its input and (s_l, s_h).

        >>> made = TwoRanks(nn.Linear(1, 1), 1, 2)
        >>> for weight in made.parameters():
        ...     _ = nn.init.ones_(weight)
        >>> made(torch.ones(1, 1), (0.5, 2.0)).item()  # 0.5 x 1 + 2 x 2
        4.5
        """
        parts = [scales[kind] * up(down(x)) for kind, down, up in zip(self.kinds, self.down, self.up, strict=True)]
        return torch.stack(parts).sum(0)


def _down(layer: nn.Module, rank: int) -> Any:
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, rank, bias=False)
    assert isinstance(layer, CONVOLUTIONS)
    made: Any = type(layer)
    return made(layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=False)


def _up(layer: nn.Module, rank: int) -> Any:
    if isinstance(layer, nn.Linear):
        return nn.Linear(rank, layer.out_features, bias=False)
    assert isinstance(layer, CONVOLUTIONS)
    return type(layer)(rank, layer.out_channels, 1, bias=False)


def adaptable(net: nn.Module) -> list[str]:
    """Layers by name: linear ones inside attention, or else all linear ones, or else all convolutions.

    >>> adaptable(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
    ['0', '2']
    """
    linear = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    within = [name for name, layer in net.named_modules() if "attention" in type(layer).__name__.lower()]
    attending = [name for name in linear if any(name.startswith(f"{outer}.") for outer in within)]
    return attending or linear or [name for name, layer in net.named_modules() if isinstance(layer, CONVOLUTIONS)]


def adapted(net: nn.Module, names: Sequence[str], adapters: Sequence[nn.Module], scales: Sequence[float]) -> AbstractContextManager[None]:
    """Inside, each of these layers gives what its adapter adds as well."""

    def added(adapter: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
        return adapter(x, scales)

    return adding(net, {name: partial(added, adapter) for name, adapter in zip(names, adapters, strict=True)})
