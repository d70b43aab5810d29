"""Low-rank adapter: a bottleneck both of whose matrices are products of thin ones; smaller than any plain bottleneck.

Ding et al. 2023 (OpenDelta), section 3, https://arxiv.org/abs/2307.03084
Use where a module must cost next to nothing; Compacter spends about as much. Not to be confused with lora, which changes the weights and
can be folded. Defaults as in OpenDelta: reduction 32, rank 1, Glorot's start, GELU, one behind attention and one behind the
feed-forward part. The up matrix is zero at the start through its second factor.

>>> from acclimate.checks.tiny import decoder
>>> from acclimate.model.injected import Injected
>>> made = Injected(decoder()).add("a", LowRank(reduction=4))
>>> sum(weight.numel() for weight in made.adapters.parameters())  # 2 layers x 2 places x (16 + 4 + 4 and 4 + 16 + 16)
240
"""

from dataclasses import field
from typing import Annotated

import torch
from torch import Tensor, nn

from ...kinds import Adapter
from ...method import Setting
from ...model.roles import Site
from ...parts import beside
from ...parts.phm import glorot


class LowRank(Adapter):
    """output + W_up f(W_down output), both W = L R of the given rank, with biases."""

    exempt = {"folds": "there is a nonlinearity between its two matrices"}

    reduction: Annotated[float, Setting("width of the layer over width of the bottleneck", 1)] = 32.0
    rank: Annotated[int, Setting("rank of both matrices", 1)] = 1
    activation: Annotated[str, Setting("nonlinearity in the middle", choices=tuple(beside.ACTIVATIONS))] = "gelu"
    scale: Annotated[float, Setting("size of what is added", 0)] = 1.0
    target: Annotated[str | list[str], Setting("where: roles, ends of names, [r] and a regular expression")] = field(
        default_factory=lambda: ["attn.out", "ff.out"]
    )
    layers: Annotated[str, Setting("which layers, as 0-5,11; all if empty")] = ""

    def wrap(self, layer: Site) -> beside.Beside:
        """The network beside one layer."""
        hidden = max(1, round(layer.outputs / self.reduction))
        down, up = _Thin(layer.outputs, hidden, self.rank), _Thin(hidden, layer.outputs, self.rank, zero=True)
        return beside.Bottleneck(down, up, activation=self.activation, scale=self.scale)


class _Thin(nn.Module):
    """L R x + b: L [output, rank], R [rank, input]; R = 0 if ``zero``."""

    def __init__(self, inputs: int, outputs: int, rank: int, *, zero: bool = False):
        super().__init__()
        self.left = nn.Parameter(glorot(outputs, rank))
        self.right = nn.Parameter(torch.zeros(rank, inputs) if zero else glorot(rank, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.right), self.left, self.bias)
