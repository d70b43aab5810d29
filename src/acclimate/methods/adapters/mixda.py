"""MixDA: mixes domain adapters with the feed-forward layer they stand beside, by a gate that reads the whole text.

Diao et al. 2023, section 3, https://arxiv.org/abs/2306.05406
Use to hold knowledge of several domains beside a frozen encoder and let a task choose among it; ``adapters.mixda_stages`` trains it. With
one domain and one task a plain bottleneck is cheaper. As in the authors' code an adapter reads the inner activation u of the feed-forward
part, its V is zero at the start, and the gate (one vector of the text, an MLP, a softmax) weighs all adapters and the layer itself; so a
fresh gate scales the layer to about 1 / (K + 1), which stage 1 mends. ``original=0.9`` starts it at nine tenths instead.
``gate_reads="last"`` is the last position as in the code (here the last that is no padding; packed texts each have their own), "mean" the
mean of all. Both let a token see what comes after it: for next-token prediction take "token", which gates each position by itself.

>>> import torch
>>> from acclimate.model.roles import Site
>>> part = Mixda(domains="law, medicine", reduction=2, original=0.5).wrap(Site("a", "a", 4, 2, torch.nn.Linear(4, 2))).eval()
>>> part.shares(torch.ones(1, 3, 4))[0, 0].tolist()  # the layer, law, medicine
[0.5, 0.25, 0.25]
>>> part(torch.ones(1, 1, 4), torch.tensor([[[3.0, -8.0]]])).tolist()  # half the output, and adapters that are still zero
[[[-1.5, 4.0]]]
"""

import math
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import AcclimateError
from ...kinds import Adapter
from ...method import Setting
from ...model.roles import Site
from ...parts import beside


class Mixda(Adapter):
    """g_0 f(u) + sum_k g_k V_k gelu(U_k u), given as its difference from f(u)."""

    exempt = {
        "identity": "a fresh gate gives the layer a share below 1, as in the authors' code; stage 1 brings its output back",
        "folds": "the gate depends on the text",
        "frozen": "the check's learning rate of 0.05 drives a gate of this width to 0 or 1, and then nothing reaches U; tested by itself",
    }

    domains: Annotated[str | list[str], Setting("names of the domain adapters, in order")] = "domain"
    reduction: Annotated[float, Setting("width of the inner activation over width of an adapter", 1)] = 16.0
    gate_hidden: Annotated[int, Setting("width of the gate's hidden layers", 1)] = 768
    gate_layers: Annotated[int, Setting("hidden layers of the gate", 1)] = 3
    gate_dropout: Annotated[float, Setting("share of what enters each layer of the gate dropped in training", 0, 1)] = 0.2
    gate_reads: Annotated[
        str,
        Setting(
            "what the gate reads: a text's last position, the mean of its positions, or each by itself", choices=("last", "mean", "token")
        ),
    ] = "last"
    original: Annotated[
        float, Setting("share of the layer itself (g_0) at the start; 0 = as the gate is drawn, about 1 / (K + 1)", 0, 0.999)
    ] = 0.0
    target: Annotated[str | list[str], Setting("where: roles, ends of names, [r] and a regular expression")] = "ff.out"
    layers: Annotated[str, Setting("which layers, as 7,11 (the paper's, of 24); all if empty")] = ""

    def wrap(self, layer: Site) -> beside.Beside:
        """The mixture beside one layer."""
        return Mixture(layer, self)

    def names(self) -> list[str]:
        """The domains in order. Raises AcclimateError where none is named, one twice, or one with a dot."""
        given = self.domains.split(",") if isinstance(self.domains, str) else self.domains
        found = [name.strip() for name in given if name.strip()]
        if not found or len(set(found)) < len(found) or any("." in name for name in found):
            raise AcclimateError(f"Mixda.domains = {self.domains!r}, but must be different names without dots, one at least")
        return found


class Mixture(beside.Beside):
    """Adapters of several domains and the gate that weighs them against the layer."""

    def __init__(self, layer: Site, about: Mixda):
        super().__init__()
        self.reads = about.gate_reads
        self.segments: Tensor | None = None  # which text a token belongs to, 0 for padding [row, token]; set by who runs the network
        hidden = max(1, int(layer.inputs // about.reduction))
        self.domains = nn.ModuleDict({name: _adapter(layer.inputs, hidden, layer.outputs) for name in about.names()})
        self.gate = _gate(layer.inputs, len(self.domains) + 1, about)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x = u [..., inner width], y = f(u) [..., width] -> what the mixture is above f(u)."""
        u = x.to(next(self.gate.parameters()).dtype)
        shares = self.shares(u)
        mixed = sum(shares[..., k : k + 1] * adapter(u, y) for k, adapter in enumerate(self.domains.values(), 1))
        return (mixed - shares[..., 1:].sum(-1, keepdim=True) * y.to(u.dtype)).to(y.dtype)

    def shares(self, u: Tensor) -> Tensor:
        """What the layer and each domain have of the output [..., 1 + domain], one sum to all positions of a text."""
        if self.reads == "token" or u.ndim < 3:
            return self.gate(u).softmax(-1)
        segments = self.segments
        if segments is None or segments.shape != u.shape[:2]:
            segments = torch.ones(u.shape[:2], dtype=torch.long, device=u.device)
        own = functional.one_hot(segments).to(u.dtype)  # [row, token, text]
        if self.reads == "mean":
            read = torch.einsum("bts,btd->bsd", own, u) / own.sum(1).clamp(min=1)[..., None]
        else:
            place = torch.arange(1, u.shape[1] + 1, device=u.device, dtype=u.dtype)
            last = (own * place[:, None]).argmax(1)  # [row, text]
            read = u.gather(1, last[..., None].expand(-1, -1, u.shape[2]))
        return torch.einsum("bts,bsk->btk", own, self.gate(read).softmax(-1))


def _adapter(inputs: int, hidden: int, outputs: int) -> beside.Bottleneck:
    """V gelu(U u) with torch's own draw for U."""
    down = nn.Linear(inputs, hidden)
    nn.init.zeros_(down.bias)
    return beside.Bottleneck(down, beside.small_linear(hidden, outputs, zero=True), activation="gelu", parallel=True)


def _gate(inputs: int, outputs: int, about: Mixda) -> nn.Sequential:
    """Dropout before every linear layer, ReLU between them; the first output is the layer's own."""
    layers: list[nn.Module] = []
    for width, wider in zip([inputs] + [about.gate_hidden] * (about.gate_layers - 1), [about.gate_hidden] * about.gate_layers, strict=True):
        layers += [nn.Dropout(about.gate_dropout), nn.Linear(width, wider), nn.ReLU()]
    last = nn.Linear(about.gate_hidden, outputs)
    if about.original:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        with torch.no_grad():
            last.bias[0] = math.log(about.original * (outputs - 1) / (1 - about.original))
    return nn.Sequential(*layers, nn.Dropout(about.gate_dropout), last)
