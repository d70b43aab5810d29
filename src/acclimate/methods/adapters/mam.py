"""MAM: a prefix in attention together with a parallel adapter beside the feed-forward part, trained as one adapter.

He et al. 2022, section 4.6, https://arxiv.org/abs/2110.04366; sizes as in Poth et al. 2023, https://arxiv.org/abs/2311.11077
Use where one kind of adapter stays behind full training and a few percent of the weights are no worry. Not with gradient to save: the
network that makes the prefix (width 800) is most of what is trained; it is stored too. ``hidden=0`` learns keys and values themselves.
Here the paper's prefix is 30 positions long; the parallel adapter halves the width and counts fourfold.

>>> from acclimate.checks.tiny import decoder
>>> from acclimate.model.injected import Injected
>>> made = Injected(decoder()).add("a", Mam(tokens=5, hidden=0))
>>> sum(weight.numel() for weight in made.adapters.parameters())  # 2 layers x (5 x (8 + 8) + 16 x 8 + 8 + 8 x 16 + 16)
720
"""

from dataclasses import field
from typing import Annotated

from torch import nn

from ...kinds import Adapter
from ...method import Setting
from ...model.roles import Site
from ...parts import beside
from ...parts.prefixes import ATTENTION, Positions, Prefix


class Mam(Adapter):
    """softmax over the layer's own keys and P_k, and mlp(x) + scale * W_up f(W_down x)."""

    exempt = {
        "identity": "extra keys take part of the attention from the first step on",
        "folds": "a prefix has no weight matrix to be folded into",
    }

    tokens: Annotated[int, Setting("number of positions in the prefix", 1)] = 30
    hidden: Annotated[int, Setting("width of the network that makes the prefix; 0 = none", 0)] = 800
    reduction: Annotated[float, Setting("width of the layer over width of the parallel adapter", 1)] = 2.0
    activation: Annotated[str, Setting("nonlinearity of the parallel adapter", choices=tuple(beside.ACTIVATIONS))] = "relu"
    scale: Annotated[float, Setting("size of what the parallel adapter adds", 0)] = 4.0
    target: Annotated[str | list[str], Setting("where: attention layers get a prefix, a pair such as ff a parallel adapter")] = field(
        default_factory=lambda: ["ff", ATTENTION]
    )
    layers: Annotated[str, Setting("which layers, as 0-5,11; all if empty")] = ""

    def wrap(self, layer: Site, common: nn.ModuleDict) -> beside.Beside:  # type: ignore[override]
        """The one or the other, by place."""
        if layer.source == layer.target:
            if self.hidden and "positions" not in common:
                common["positions"] = Positions(self.tokens, layer.inputs, self.hidden)
            positions: Positions | None = common["positions"] if self.hidden else None  # type: ignore[assignment]
            return Prefix(layer.layer, layer.inputs, self.tokens, positions=positions)
        hidden = max(1, round(layer.inputs / self.reduction))
        down, up = beside.small_linear(layer.inputs, hidden), beside.small_linear(hidden, layer.outputs, zero=True)
        return beside.Bottleneck(down, up, activation=self.activation, scale=self.scale, parallel=True)
