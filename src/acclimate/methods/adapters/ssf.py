"""SSF: learns a factor and a shift for every output of chosen layers, and folds them into the weights afterwards.

Lian et al. 2022, section 3.2, equation 2, https://arxiv.org/abs/2210.08823
Use for small domains that are near what the model knows: features are rescaled and moved, not mixed. Two numbers per output cost nothing
once folded. The authors also put it behind norms and the patch embedding; name these in ``target``. Factor and shift start at 1 and 0
exactly (the authors: drawn within 0.02 of them), so that the adapted model is the model.

>>> from acclimate.checks.tiny import decoder
>>> from acclimate.model.injected import Injected
>>> made = Injected(decoder()).add("a", Ssf(target="ff.out"))
>>> sum(weight.numel() for weight in made.adapters.parameters())  # 2 layers x (16 factors + 16 shifts)
64
"""

from typing import Annotated

import torch
from torch import Tensor, nn

from ...kinds import Adapter
from ...method import Setting
from ...model.roles import Site
from ...parts.beside import Beside, Change


class Ssf(Adapter):
    """gamma * output + beta."""

    target: Annotated[str | list[str], Setting("where: roles, ends of names, [r] and a regular expression")] = "linear"
    layers: Annotated[str, Setting("which layers, as 0-5,11; all if empty")] = ""

    def wrap(self, layer: Site) -> Beside:
        """Factor and shift of one layer."""
        return _ScaleShift(layer.outputs)


class _ScaleShift(Beside):
    def __init__(self, width: int):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))  # gamma - 1, beta

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(gamma - 1) * y + beta [..., width]."""
        return self.scale.to(y.dtype) * y + self.shift.to(y.dtype)

    def delta(self, weight: Tensor, bias: Tensor) -> Change:
        """(gamma - 1) times weight and bias, and beta."""
        return self.scale[:, None] * weight, self.scale * bias + self.shift
