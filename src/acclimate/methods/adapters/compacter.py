"""Compacter: bottlenecks whose matrices are sums of Kronecker products, with the small factors shared by all layers.

Karimi Mahabadi et al. 2021, equations 4 and 5, https://arxiv.org/abs/2106.04647
Use where an adapter must be very small: a tenth of a bottleneck's weights and less. Not where speed counts: each step builds the matrices.
As in the paper one behind attention and one behind the feed-forward part, W = sum_i A_i kron (s_i t_i^T) with n = 4, the matrices A shared
by all layers; ``target="ff.out"`` gives Compacter++, ``shared=False`` gives each matrix an A of its own. The up matrix is zero at the
start (in the authors' code near zero), through its t. Left out: training the model's layer norms along with it.

>>> from acclimate.checks.tiny import decoder
>>> from acclimate.model.injected import Injected
>>> made = Injected(decoder()).add("a", Compacter())
>>> sum(weight.numel() for held in (made.common, made.adapters) for weight in held.parameters())  # 64 + 4 places x (24 + 36)
304
"""

from dataclasses import field
from typing import Annotated

from torch import nn

from ...kinds import Adapter
from ...method import Setting
from ...model.roles import Site
from ...parts import beside
from ...parts.phm import PhmLinear, Rule


class Compacter(Adapter):
    """output + scale * W_up f(W_down output), both W = sum_i A_i kron (s_i t_i^T)."""

    exempt = {"folds": "there is a nonlinearity between its two matrices"}

    reduction: Annotated[float, Setting("width of the layer over width of the bottleneck, which is rounded to a multiple of n", 1)] = 32.0
    n: Annotated[int, Setting("number of Kronecker products (the paper's n); it divides the layer's width", 1)] = 4
    rank: Annotated[int, Setting("rank of the second factors", 1)] = 1
    shared: Annotated[bool, Setting("one set of matrices A for all layers instead of one for each")] = True
    std: Annotated[float, Setting("spread of A at the start", 0)] = 0.01
    activation: Annotated[str, Setting("nonlinearity in the middle", choices=tuple(beside.ACTIVATIONS))] = "gelu"
    scale: Annotated[float, Setting("size of what is added", 0)] = 1.0
    target: Annotated[str | list[str], Setting("where: roles, ends of names, [r] and a regular expression")] = field(
        default_factory=lambda: ["attn.out", "ff.out"]
    )
    layers: Annotated[str, Setting("which layers, as 0-5,11; all if empty")] = ""

    def wrap(self, layer: Site, common: nn.ModuleDict) -> beside.Beside:  # type: ignore[override]
        """The network beside one layer."""
        if self.shared and "rule" not in common:
            common["rule"] = Rule(self.n, self.std)
        rule = common["rule"] if self.shared else None
        hidden = self.n * max(1, round(layer.outputs / self.reduction / self.n))
        given = {"n": self.n, "rule": rule, "std": self.std, "rank": self.rank}
        return beside.Bottleneck(
            PhmLinear(layer.outputs, hidden, **given),  # type: ignore[arg-type]
            PhmLinear(hidden, layer.outputs, zero=True, **given),  # type: ignore[arg-type]
            activation=self.activation,
            scale=self.scale,
        )
