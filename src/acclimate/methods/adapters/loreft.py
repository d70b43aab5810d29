"""LoReFT: edits the hidden states of a few positions inside a small learned subspace; the weights stay as they are.

Wu et al. 2024, equation 2, https://arxiv.org/abs/2404.03592; positions as in Poth et al. 2023, https://arxiv.org/abs/2311.11077
Use with very few weights on tasks that read a whole text (classification, instructions). As in the paper it stands on the outputs of
blocks and R has orthonormal rows; here they are the Gram-Schmidt rows of a free matrix. W starts as R, so that nothing changes at first
(the authors start W at random). Positions are counted in the row as it is: pad on the right for the first ones, on the left for the last;
0 and 0 is every position, and what generation with a cache and packed rows need. Outputs without positions [row, width] are edited whole.

>>> import torch
>>> from acclimate.model.roles import Site
>>> part = Loreft(prefix_positions=1).wrap(Site("a", "a", 2, 2, torch.nn.Identity())).eval()
>>> with torch.no_grad():
...     for name, value in {"free": [[3.0, 4.0]], "w": [[1.0, 0.0]], "b": [1.0]}.items():
...         _ = getattr(part, name).copy_(torch.tensor(value))
>>> part(None, torch.tensor([[[5.0, 0.0], [5.0, 0.0]]])).mul(100).round().tolist()  # R = (.6, .8): (5 + 1 - 3) R, and nothing
[[[180.0, 240.0], [0.0, 0.0]]]
"""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...kinds import Adapter
from ...method import Setting
from ...model.roles import Site
from ...parts.beside import Beside


class Loreft(Adapter):
    """h + R^T (W h + b - R h) at the chosen positions."""

    exempt = {"folds": "it acts on some positions, behind a whole block"}

    r: Annotated[int, Setting("width of the subspace", 1)] = 1
    prefix_positions: Annotated[int, Setting("how many of the first positions are edited", 0)] = 3
    suffix_positions: Annotated[int, Setting("how many of the last positions are edited; both 0 = all positions", 0)] = 0
    dropout: Annotated[float, Setting("share of the edit dropped in training", 0, 1)] = 0.05
    target: Annotated[str | list[str], Setting("where: roles, ends of names, [r] and a regular expression")] = "block"
    layers: Annotated[str, Setting("which layers, as 0-5,11; all if empty")] = ""

    def wrap(self, layer: Site) -> Beside:
        """The edit of one layer's output."""
        return _Edit(layer.outputs, self)


class _Edit(Beside):
    def __init__(self, width: int, about: Loreft):
        super().__init__()
        self.first, self.last, self.dropout = about.prefix_positions, about.suffix_positions, about.dropout
        self.free = nn.Parameter(torch.randn(min(about.r, width), width))
        self.w = nn.Parameter(self.rotation().detach().clone())
        self.b = nn.Parameter(torch.zeros(len(self.free)))

    def rotation(self) -> Tensor:
        """R [r, width]: the rows of the free matrix made orthonormal, one after the other."""
        columns, upper = torch.linalg.qr(self.free.T)
        return (columns * upper.diagonal().sign()).T

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """R^T (W h + b - R h) where it is wanted, 0 elsewhere."""
        rotation = self.rotation()
        h = y.to(self.free.dtype)
        inner = functional.linear(h, self.w - rotation, self.b)
        change = functional.dropout(inner @ rotation, self.dropout, self.training).to(y.dtype)
        if y.ndim < 3 or not (self.first or self.last):
            return change
        place = torch.arange(y.shape[-2], device=y.device)
        return change * ((place < self.first) | (place >= y.shape[-2] - self.last))[:, None]
