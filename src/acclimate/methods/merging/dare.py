"""DARE: drops changes at random and scales up the rest, so that the mean of a change stays the same.

Yu et al. 2024, section 3, https://arxiv.org/abs/2311.03099
Use before merging tunes of one base whose changes are small; where changes are large (long further pretraining) dropping most of them
hurts. ``elect="sum"`` merges by TIES' signs afterwards, ``"none"`` by task arithmetic.

>>> from torch import ones, tensor, zeros
>>> base, tuned = zeros(10000), ones(1, 10000)
>>> found = Dare(keep=[0.25], elect="none").whole(base, tuned)
>>> found.unique().tolist(), abs(found.mean().item() - 1) < 0.06
([0.0, 4.0], True)
>>> Dare(keep=[1.0], scale=0.5).whole(zeros(2), tensor([[2.0, 1.0], [4.0, -3.0]]))
tensor([ 1.5000, -1.5000])
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import numpy as np

from ...kinds import Merge
from ...method import Setting
from ...parts.checkpoints import combine, each, per_model, thinned
from ...parts.fused import Fused

if TYPE_CHECKING:
    from torch import Tensor


class Dare(Merge):
    """Drop and rescale, then merge."""

    keep: Annotated[list[float], Setting("probability that a change is kept (1 - the paper's p), or one for all", 0, 1)] = (
        dataclasses.field(default_factory=lambda: [0.1])
    )
    scale: Annotated[float, Setting("length of the merged change", 0)] = 1.0
    weights: Annotated[list[float], Setting("weight of each model's change, or one for all")] = dataclasses.field(
        default_factory=lambda: [1.0]
    )
    elect: Annotated[str, Setting("sum or count: TIES' signs; none: plain sum", choices=("sum", "count", "none"))] = "sum"
    normalize: Annotated[bool, Setting("divide by the weights that took part")] = True
    rescale: Annotated[
        str, Setting("divide what is kept by its probability, or to the old norm of the tensor", choices=("probability", "norm", "none"))
    ] = "probability"

    def merge(self, base: Tensor, tuned: Tensor, generator: np.random.Generator) -> Tensor:
        """base [*shape], tuned [model, *shape] -> [*shape]."""
        changes, keep = tuned - base, per_model(self.keep, tuned, "keep")
        if min(self.keep) < 1:
            thinned(changes, generator, keep, self.rescale)
        merged = combine(changes, per_model(self.weights, tuned), elect=self.elect, mean=self.normalize)
        return merged.mul_(self.scale).add_(base)

    def fused(self, models: int) -> Fused:
        """The same as numbers."""
        return Fused(
            each(self.weights, models),
            chances=each(self.keep, models, "keep") if min(self.keep) < 1 else None,
            rescale=self.rescale,
            elect=self.elect,
            mean=self.normalize,
            scale=self.scale,
        )
