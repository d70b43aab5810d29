"""DELLA: drops changes at random, small ones more likely, scales up what stays, elects signs and averages.

Deep et al. 2024, sections 3.1 to 3.3 (MagPrune, Elect, Fuse), https://arxiv.org/abs/2406.11617
Use for tunes of one base when many changes have to go: it keeps the large ones that DARE loses and the mean that TIES loses. Changes
are ranked within each row, told apart by the upper 16 bits of their magnitude; the probability to keep runs linearly from
1 - drop - window/2 (smallest) to 1 - drop + window/2 (largest), and each survivor is divided by its own probability. A tensor of one
dimension is one row. Over a whole tensor (``scope="tensor"``) changes that share their upper 16 bits share a rank.
``rescale="norm"`` scales as mergekit does, which is not the paper's way.

>>> from torch import tensor, zeros
>>> changes = tensor([[[0.1, -0.2, 0.3, 0.4, -0.5]]])
>>> Della(drop=[0.5], window=[0.2]).chances(changes, None)
tensor([[[0.4000, 0.4500, 0.5000, 0.5500, 0.6000]]])
>>> Della(drop=[0.0], window=[0.0], scale=1.0).whole(zeros(1, 3), tensor([[[1.0, 3.0, 0.0]], [[3.0, -1.0, 0.0]]]))
tensor([[2., 3., 0.]])
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import numpy as np

from ...errors import AcclimateError
from ...kinds import Merge
from ...lazy import torch
from ...method import Setting
from ...parts import thresholds
from ...parts.checkpoints import combine, each, elected, per_model, positive, thinned
from ...parts.fused import Fused
from ...parts.ranks import row_order

if TYPE_CHECKING:
    from torch import Tensor


class Della(Merge):
    """MagPrune, elect, fuse."""

    rows = True

    drop: Annotated[list[float], Setting("mean probability that a change is dropped (the paper's p), or one for all", 0, 1)] = (
        dataclasses.field(default_factory=lambda: [0.3])
    )
    window: Annotated[list[float], Setting("by how much the probability differs from smallest to largest change", 0, 1)] = (
        dataclasses.field(default_factory=lambda: [0.14])
    )
    scale: Annotated[float, Setting("length of the merged change (the paper's lambda)", 0)] = 1.1
    weights: Annotated[list[float], Setting("weight of each model's change, or one for all")] = dataclasses.field(
        default_factory=lambda: [1.0]
    )
    scope: Annotated[str, Setting("what changes are ranked among", choices=("row", "tensor"))] = "row"
    by: Annotated[
        str, Setting("what the probability follows: rank, or magnitude over the row's largest", choices=("rank", "magnitude"))
    ] = "rank"
    rescale: Annotated[
        str, Setting("divide survivors by their own probability, or to the old norm of the tensor", choices=("probability", "norm", "none"))
    ] = "probability"
    elect: Annotated[str, Setting("sum or count: elect signs; none: keep all", choices=("sum", "count", "none"))] = "sum"
    adaptive: Annotated[bool, Setting("scale each row by its changes before over those after the election, instead of scale")] = False
    normalize: Annotated[bool, Setting("divide by the weights that took part")] = True

    def __post_init__(self):
        super().__post_init__()
        models = max(len(self.drop), len(self.window))
        for i in range(models):
            drop, window = (values[i % len(values)] for values in (self.drop, self.window))
            if window > 0 and not window / 2 < drop < 1 - window / 2:
                widest = 2 * min(drop, 1 - drop)
                raise AcclimateError(f"drop = {drop} and window = {window} leave (0, 1); the window must be under {widest:g}")

    def look(self, base: Tensor | None, tuned: Tensor, seen: list[Tensor], bits: int = 32) -> Tensor | None:
        """Counts of magnitudes, for ranks over a whole tensor."""
        if base is None or seen or self.scope != "tensor" or self.by != "rank":
            return None
        return thresholds.look(tuned - base, [], np.ones((len(tuned), 1)))

    def settle(self, seen: list[Tensor], models: int) -> Tensor | None:
        """Mean rank of the entries of each bucket of magnitudes, over the last rank [model, bucket]; None for ranks within rows."""
        return (seen[0].cumsum(1) - (seen[0] + 1) / 2) / (seen[0].sum(1, keepdim=True) - 1).clamp(min=1) if seen else None

    def chances(self, changes: Tensor, seen: Tensor | None) -> Tensor:
        """Probability that each change is kept [model, *shape]; of ranks within rows, for each rank [model, 1, column]."""
        if self.by == "magnitude":
            size = changes.abs()
            place = size / size.amax(-1, keepdim=True).clamp(min=1e-30)
        elif seen is not None:
            place = torch.stack([row[b] for row, b in zip(seen, thresholds.upper(changes).long(), strict=True)])
        else:
            place = torch.arange(changes.shape[-1]).expand(1, 1, -1) / max(1, changes.shape[-1] - 1)
        window, drop = per_model(self.window, changes, "window"), per_model(self.drop, changes, "drop")
        return (1 - drop - window / 2) + place.to(changes.dtype) * window

    def merge(self, base: Tensor, tuned: Tensor, seen: Tensor | None, generator: np.random.Generator) -> Tensor:
        """base [row, column], tuned [model, row, column] -> [row, column]."""
        changes = tuned - base
        order = row_order(changes) if self.by == "rank" and seen is None else None
        thinned(changes, generator, self.chances(changes, seen), self.rescale, order)
        weights = per_model(self.weights, tuned)
        scale: float | Tensor = self.scale
        if self.adaptive:
            weighted = changes * weights
            after = positive(weighted * elected(weighted, self.elect)) if self.elect != "none" else (changes != 0).float()
            scale = (changes != 0).sum((0, -1)) / after.sum((0, -1)).clamp(min=1)
            scale = scale[..., None] if changes.ndim > 2 else scale
        return combine(changes, weights, elect=self.elect, mean=self.normalize).mul_(scale).add_(base)

    def fused(self, models: int) -> Fused | None:
        """The same as numbers, where ranks are those of rows."""
        if self.by != "rank" or self.scope != "row" or self.adaptive:
            return None
        drop, window = each(self.drop, models, "drop"), each(self.window, models, "window")
        return Fused(
            each(self.weights, models),
            chances=1 - drop - window / 2,
            window=window,
            rescale=self.rescale,
            elect=self.elect,
            mean=self.normalize,
            scale=self.scale,
        )
