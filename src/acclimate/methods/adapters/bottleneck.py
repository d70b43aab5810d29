"""Bottleneck: learns a small two-layer network behind (or beside) sublayers of a frozen model.

Houlsby et al. 2019, section 2.1, https://arxiv.org/abs/1902.00751; places and sizes as in Poth et al. 2023, https://arxiv.org/abs/2311.11077
Use where a low-rank change of weights (LoRA) is too stiff, and where adapters are to be stacked or fused; it stays a part of its own and
cannot be folded into the weights. The default is Pfeiffer's: one behind each feed-forward part. ``target=["attn.out", "ff.out"]`` with
``activation="silu"`` gives Houlsby's; ``target="ff"``, ``parallel=True``, ``reduction=2``, ``scale=4`` He et al.'s (2021) parallel adapter;
``target="block"``, ``norm=True`` one behind each block, as speech models use. W_up is zero at the start (some authors: near zero).

>>> from acclimate.checks.tiny import decoder
>>> from acclimate.model.injected import Injected
>>> made = Injected(decoder()).add("a", Bottleneck(reduction=4))
>>> sum(weight.numel() for weight in made.adapters.parameters())  # 2 layers x (16 x 4 + 4 + 4 x 16 + 16)
296
"""

from typing import Annotated

from ...kinds import Adapter
from ...method import Setting
from ...model.roles import Site
from ...parts import beside


class Bottleneck(Adapter):
    """output + scale * W_up f(W_down output)."""

    exempt = {"folds": "there is a nonlinearity between its two matrices"}

    reduction: Annotated[float, Setting("width of the layer over width of the bottleneck", 1)] = 16.0
    activation: Annotated[str, Setting("nonlinearity in the middle", choices=tuple(beside.ACTIVATIONS))] = "relu"
    scale: Annotated[float, Setting("size of what is added", 0)] = 1.0
    parallel: Annotated[bool, Setting("read the layer's input instead of its output")] = False
    norm: Annotated[bool, Setting("normalise what the adapter reads")] = False
    dropout: Annotated[float, Setting("share of the bottleneck dropped in training", 0, 1)] = 0.0
    skip: Annotated[float, Setting("chance that the whole adapter is left out in a training step (stochastic depth)", 0, 0.99)] = 0.0
    target: Annotated[str | list[str], Setting("where: roles, ends of names, [r] and a regular expression")] = "ff.out"
    layers: Annotated[str, Setting("which layers, as 0-5,11; all if empty")] = ""

    def wrap(self, layer: Site) -> beside.Beside:
        """The network beside one layer."""
        width = layer.inputs if self.parallel else layer.outputs
        hidden = max(1, round(width / self.reduction))
        return beside.Bottleneck(
            beside.small_linear(width, hidden),
            beside.small_linear(hidden, layer.outputs, zero=True),
            activation=self.activation,
            scale=self.scale,
            parallel=self.parallel,
            norm=width if self.norm else 0,
            dropout=self.dropout,
            skip=self.skip,
        )
