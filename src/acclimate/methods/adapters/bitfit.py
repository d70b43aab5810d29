"""BitFit: learns a shift of each layer's output, that is, its bias alone, and one where it had none; the smallest change that folds.

Zaken et al. 2022, section 3, https://arxiv.org/abs/2106.10199; missing biases added as in OpenDelta, https://arxiv.org/abs/2307.03084
Use with few examples, or as the floor that other adapters must beat. Not for knowledge: nothing about the input is learned.
Here the linear layers alone; ``target=["linear", "norm"]`` adds the norms' biases, as in the paper, but a norm's is not folded.
Biases of attention keys change nothing where positions are not in the keys (BERT): the softmax takes them out again.

>>> import torch
>>> from acclimate.model.roles import Site
>>> part = Bitfit().wrap(Site("a", "a", 3, 2, torch.nn.Linear(3, 2, bias=False)))
>>> _ = part.bias.data.copy_(torch.tensor([0.5, -1.0]))
>>> part(torch.ones(1, 3), torch.tensor([[2.0, 2.0]])).tolist(), part.delta(torch.ones(2, 3), torch.zeros(2))[1].tolist()
([[0.5, -1.0]], [0.5, -1.0])
"""

from typing import Annotated

import torch
from torch import Tensor, nn

from ...kinds import Adapter
from ...method import Setting
from ...model.roles import Site
from ...parts.beside import Beside, Change


class Bitfit(Adapter):
    """output + b."""

    target: Annotated[str | list[str], Setting("where: roles, ends of names, [r] and a regular expression")] = "linear"
    layers: Annotated[str, Setting("which layers, as 0-5,11; all if empty")] = ""

    def wrap(self, layer: Site) -> Beside:
        """The shift of one layer."""
        return _Bias(layer.outputs)


class _Bias(Beside):
    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The same for every input [..., width]."""
        return self.bias.to(y.dtype).expand_as(y)

    def delta(self, weight: Tensor, bias: Tensor) -> Change:
        """No change of the weight; the bias."""
        return torch.zeros_like(weight), self.bias
