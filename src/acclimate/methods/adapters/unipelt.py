"""UniPELT: LoRA, a prefix and a bottleneck in one adapter, each with a learned gate that says how much of it an input needs.

Mao et al. 2022, section 3.2, https://arxiv.org/abs/2110.07577; places as in Poth et al. 2023, https://arxiv.org/abs/2311.11077
Use where it is not known which kind of adapter suits the task, most of all with few rows. LoRA stands on queries and values, the bottleneck
behind the feed-forward part, the prefix (10 positions, made by a network of width 512) in attention. A gate is sigmoid(w h + b) of what
its part reads. ``gate="row"`` takes its mean over the positions of a row, padding included, as in the authors' code; the default is each
position's own, since with a mean a decoder would see what is still to come. The prefix is read by all positions, so its gate is the row's
mean, and in decoders a learned number. Gates start at one half.

>>> import torch
>>> from acclimate.model.roles import Site
>>> part = Unipelt(r=1, alpha=1.0).wrap(Site("a.v_proj", "a.v_proj", 2, 1, torch.nn.Linear(2, 1)), torch.nn.ModuleDict())
>>> for weight in part.parameters():
...     _ = torch.nn.init.ones_(weight)
>>> part(torch.tensor([[1.0, 1.0]]), torch.zeros(1, 1)).mul(1000).round().tolist()  # sigmoid(1 + 1 + 1) x (1 + 1)
[[1905.0]]
"""

from dataclasses import field
from typing import Annotated

import torch
from torch import Tensor, nn

from ...kinds import Adapter
from ...method import Setting
from ...model.roles import ROLES, Site, role
from ...parts import beside
from ...parts.prefixes import ATTENTION, Positions, Prefix

LORA = f"[r](?:.*\\.)?(?:{ROLES['attn.q']}|{ROLES['attn.v']}|{ROLES['attn.qkv']})"


class Unipelt(Adapter):
    """W x + g_L B A x, h + g_A W_up f(W_down h), and attention to g_P P besides the layer's own keys and values."""

    exempt = {
        "identity": "extra keys take part of the attention from the first step on",
        "folds": "its gates depend on the input, and a prefix has no weight matrix to be folded into",
    }

    r: Annotated[int, Setting("rank of LoRA", 1)] = 8
    alpha: Annotated[float, Setting("size of LoRA's change; it is multiplied by alpha / r", 0)] = 8.0
    tokens: Annotated[int, Setting("number of positions in the prefix", 1)] = 10
    hidden: Annotated[int, Setting("width of the network that makes the prefix; 0 = none", 0)] = 512
    reduction: Annotated[float, Setting("width of the layer over width of the bottleneck", 1)] = 16.0
    activation: Annotated[str, Setting("nonlinearity of the bottleneck", choices=tuple(beside.ACTIVATIONS))] = "relu"
    gate: Annotated[str, Setting("gates of LoRA and bottleneck: each position's own, or their mean", choices=("token", "row"))] = "token"
    target: Annotated[
        str | list[str], Setting("where: feed-forward outputs get the bottleneck, other layers LoRA, attention as a whole the prefix")
    ] = field(default_factory=lambda: [LORA, "ff.out", ATTENTION])
    layers: Annotated[str, Setting("which layers, as 0-5,11; all if empty")] = ""

    def wrap(self, layer: Site, common: nn.ModuleDict) -> beside.Beside:  # type: ignore[override]
        """The part for this place, with its gate."""
        if role(layer.target) == "ff.out":
            hidden = max(1, round(layer.outputs / self.reduction))
            down, up = beside.small_linear(layer.outputs, hidden), beside.small_linear(hidden, layer.outputs, zero=True)
            return _Gated(beside.Bottleneck(down, up, activation=self.activation), layer.outputs, "y", self.gate)
        if role(layer.target):
            return _Gated(beside.LowRank(layer.inputs, layer.outputs, self.r, self.alpha / self.r), layer.inputs, "x", self.gate)
        if self.hidden and "positions" not in common:
            common["positions"] = Positions(self.tokens, layer.inputs, self.hidden)
        positions: Positions | None = common["positions"] if self.hidden else None  # type: ignore[assignment]
        return Prefix(layer.layer, layer.inputs, self.tokens, positions=positions, gate=True)


class _Gated(beside.Beside):
    """sigmoid(w h + b) times a part, h the layer's input x or output y."""

    def __init__(self, part: beside.Beside, width: int, reads: str, over: str):
        super().__init__()
        self.part, self.gate, self.reads, self.over = part, beside.small_linear(width, 1), reads, over

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The part's change, as far as the gate is open."""
        share = torch.sigmoid(self.gate((x if self.reads == "x" else y).to(self.gate.weight.dtype)))
        if self.over == "row" and share.ndim > 2:
            share = share.mean(-2, keepdim=True)
        return share.to(y.dtype) * self.part(x, y)
