"""Hydra: learns two low-rank branches on a frozen layer, one of its input and one of its output; both fold into the weights.

Kim et al. 2023, section 3.2, equations 4 to 6, https://arxiv.org/abs/2309.06922
Use where LoRA would do and the features that the model has are worth recombining: the branch of the input learns new ones, that of the
output recombines what the layer already makes. As in the paper both have biases and no activation, B and all biases are zero at the
start, and the place is the feed-forward output layer (for images the attention's too: ``target=["ff.out", "attn.out"]``). ``r_seq=0`` or
``r_par=0`` leaves one branch (the paper's ablations). The authors' code folds the attention's branch with another layer's weight; here each
layer is folded with its own.

>>> import torch
>>> from acclimate.model.roles import Site
>>> part = Hydra(r_par=1, r_seq=1).wrap(Site("a", "a", 2, 2, torch.nn.Linear(2, 2)))
>>> for weight in part.parameters():
...     _ = torch.nn.init.ones_(weight)
>>> part(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])).tolist()  # (1 + 2 + 1) + 1, and (3 + 4 + 1) + 1
[14.0, 14.0]
>>> [change.tolist() for change in part.delta(torch.eye(2), torch.tensor([1.0, 0.0]))]
[[[2.0, 2.0], [2.0, 2.0]], [5.0, 5.0]]
"""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import AcclimateError
from ...kinds import Adapter
from ...method import Setting
from ...model.roles import Site
from ...parts.beside import Beside, Change, small_linear


class Hydra(Adapter):
    """W0 x + b0 + s [B_p (A_p x + a_p) + b_p] + s [B_s (A_s f(x) + a_s) + b_s]."""

    r_par: Annotated[int, Setting("rank of the branch that reads the input", 0)] = 4
    r_seq: Annotated[int, Setting("rank of the branch that reads the output", 0)] = 8
    scale: Annotated[float, Setting("size of what both add (the paper's s): 1 for text, tuned for images", 0)] = 1.0
    dropout: Annotated[float, Setting("share of the inner values dropped in training", 0, 1)] = 0.0
    target: Annotated[str | list[str], Setting("where: roles, ends of names, [r] and a regular expression")] = "ff.out"
    layers: Annotated[str, Setting("which layers, as 0-5,11; all if empty")] = ""

    def wrap(self, layer: Site) -> Beside:
        """Both branches beside one layer."""
        if not self.r_par and not self.r_seq:
            raise AcclimateError("Hydra.r_par and Hydra.r_seq are both 0; give one of them a rank")
        return _Branches(layer, self)


class _Branch(nn.Module):
    """B (A h + a) + b."""

    def __init__(self, inputs: int, rank: int, outputs: int, dropout: float):
        super().__init__()
        self.down, self.up, self.dropout = small_linear(inputs, rank), small_linear(rank, outputs, zero=True), dropout

    def forward(self, h: Tensor) -> Tensor:
        return self.up(functional.dropout(self.down(h.to(self.down.weight.dtype)), self.dropout, self.training))


class _Branches(Beside):
    def __init__(self, layer: Site, about: Hydra):
        super().__init__()
        self.scale = about.scale
        self.par = _Branch(layer.inputs, about.r_par, layer.outputs, about.dropout) if about.r_par else None
        self.seq = _Branch(layer.outputs, about.r_seq, layer.outputs, about.dropout) if about.r_seq else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """What both branches add."""
        both = [branch(given) for branch, given in ((self.par, x), (self.seq, y)) if branch is not None]
        return (self.scale * sum(both)).to(y.dtype)

    def delta(self, weight: Tensor, bias: Tensor) -> Change:
        """s (B_p A_p + B_s A_s W0), and s (B_p a_p + b_p + B_s (A_s b0 + a_s) + b_s)."""
        matrix, vector = torch.zeros_like(weight), torch.zeros_like(bias)
        if self.par is not None:
            up, down = self.par.up, self.par.down
            matrix, vector = matrix + up.weight @ down.weight, vector + up(down.bias)
        if self.seq is not None:
            up, down = self.seq.up, self.seq.down
            matrix, vector = matrix + up.weight @ (down.weight @ weight), vector + up(down(bias))
        return self.scale * matrix, self.scale * vector
