"""TIES: trims small changes, elects one sign per weight, and averages those that agree.

Yadav et al. 2023, Algorithm 1, https://arxiv.org/abs/2306.01708
Use for three or more tunes of one base; tunes of different bases share no axes. The paper ranks the changes of a model over all its
tensors; ``scope="tensor"`` ranks each tensor by itself, as most tools do. All that ties with the last kept change is kept; changes
between 16-bit checkpoints tie where their upper 16 bits are alike.

>>> from torch import tensor, zeros
>>> Ties(keep=[1.0]).whole(zeros(3), tensor([[1.0, 3.0, 0.0], [3.0, -1.0, 0.0]]))
tensor([2., 3., 0.])
>>> Ties(keep=[0.5]).whole(zeros(4), tensor([[1.0, -3.0, 2.0, 0.5], [0.1, -1.0, 4.0, 3.0]]))
tensor([ 0., -3.,  3.,  3.])
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

from ...kinds import Merge
from ...method import Setting
from ...parts import thresholds
from ...parts.checkpoints import combine, each, per_model
from ...parts.fused import Fused

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Ties(Merge):
    """Trim, elect sign, disjoint mean."""

    keep: Annotated[list[float], Setting("share of each model's changes kept, largest first, or one for all", 0, 1)] = dataclasses.field(
        default_factory=lambda: [0.2]
    )
    scale: Annotated[float, Setting("length of the merged change (the paper's lambda)", 0)] = 1.0
    weights: Annotated[list[float], Setting("weight of each model's change, or one for all")] = dataclasses.field(
        default_factory=lambda: [1.0]
    )
    scope: Annotated[str, Setting("what changes are ranked among", choices=("model", "tensor"))] = "model"
    sign: Annotated[str, Setting("how the sign is elected: by the sum of changes or by their number", choices=("sum", "count"))] = "sum"
    normalize: Annotated[bool, Setting("average the changes that agree instead of adding them")] = True

    def look(self, base: Tensor | None, tuned: Tensor, seen: list[Tensor], bits: int = 32) -> Tensor | None:
        """Counts of magnitudes."""
        if min(self.keep) >= 1 or base is None:
            return None
        return thresholds.look(tuned - base, seen, self._shares(len(tuned)), bits)

    def settle(self, seen: list[Tensor], models: int) -> np.ndarray | None:
        """The least magnitude that is kept [model], or None if all are."""
        return thresholds.magnitudes(seen, self._shares(models))[:, 0] if seen else None

    def merge(self, base: Tensor, tuned: Tensor, seen: np.ndarray | None) -> Tensor:
        """base [*shape], tuned [model, *shape] -> [*shape]."""
        changes = tuned - base
        if seen is not None:
            changes = thresholds.trim(changes, seen)
        merged = combine(changes, per_model(self.weights, tuned), elect=self.sign, mean=self.normalize)
        return (merged if self.scale == 1 else merged.mul_(self.scale)).add_(base)

    def fused(self, models: int) -> Fused:
        """The same as numbers."""
        look = "counts" if min(self.keep) < 1 else ""
        weights, shares = each(self.weights, models), self._shares(models)
        return Fused(weights, look=look, shares=shares, elect=self.sign, mean=self.normalize, scale=self.scale)

    def _shares(self, models: int) -> np.ndarray:
        return each(self.keep, models, "keep")[:, None]
