"""Model Breadcrumbs: leaves out each tune's largest and smallest changes, tensor by tensor, and adds the rest.

Davari & Belilovsky 2024, Algorithm 1, https://arxiv.org/abs/2312.06795
Use for many tunes of one base, where outliers of one would drown the others. ``elect`` adds TIES' signs, as some tools do.

>>> from torch import tensor, zeros
>>> Breadcrumbs(keep=[0.5], outliers=[0.25], scale=1.0).whole(zeros(4), tensor([[9.0, 1.0, -3.0, 2.0]]))
tensor([ 0.,  0., -3.,  2.])
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
from ...parts.checkpoints import combine, each, per_model, positive
from ...parts.fused import Fused

if TYPE_CHECKING:
    from torch import Tensor


class Breadcrumbs(Merge):
    """Mask both tails, then task arithmetic."""

    keep: Annotated[list[float], Setting("share of each model's changes kept (beta - gamma of the paper), or one for all", 0, 1)] = (
        dataclasses.field(default_factory=lambda: [0.1])
    )
    outliers: Annotated[list[float], Setting("share left out from the top (1 - the paper's gamma), or one for all", 0, 1)] = (
        dataclasses.field(default_factory=lambda: [0.01])
    )
    scale: Annotated[float, Setting("length of the merged change (the paper's alpha)", 0)] = 0.3
    weights: Annotated[list[float], Setting("weight of each model's change, or one for all")] = dataclasses.field(
        default_factory=lambda: [1.0]
    )
    elect: Annotated[str, Setting("none: the paper's sum; sum or count: TIES' signs", choices=("none", "sum", "count"))] = "none"
    normalize: Annotated[bool, Setting("divide by the weights that took part")] = False

    def look(self, base: Tensor | None, tuned: Tensor, seen: list[Tensor], bits: int = 32) -> Tensor | None:
        """Counts of magnitudes."""
        if base is None or min(self.keep) >= 1:
            return None
        return thresholds.look(tuned - base, seen, self._shares(len(tuned)), bits)

    def settle(self, seen: list[Tensor], models: int) -> np.ndarray | None:
        """Least magnitude of the outliers and of what is kept below them [model, 2], or None if all are kept."""
        return thresholds.magnitudes(seen, self._shares(models)) if seen else None

    def merge(self, base: Tensor, tuned: Tensor, seen: np.ndarray | None) -> Tensor:
        """base [*shape], tuned [model, *shape] -> [*shape]."""
        changes = tuned - base
        if seen is not None:
            top, least = torch.from_numpy(seen[:, 0]).view(-1, *[1] * base.ndim), seen[:, 1]
            inside = positive(top - changes.abs())
            changes = thresholds.trim(changes, least).mul_(inside)
        merged = combine(changes, per_model(self.weights, tuned), elect=self.elect, mean=self.normalize)
        return merged.mul_(self.scale).add_(base)

    def fused(self, models: int) -> Fused:
        """The same as numbers."""
        look = "counts" if min(self.keep) < 1 else ""
        weights, shares = each(self.weights, models), self._shares(models)
        return Fused(weights, look=look, shares=shares, elect=self.elect, mean=self.normalize, scale=self.scale)

    def _shares(self, models: int) -> np.ndarray:
        """Share of the outliers, and of those kept below them [model, 2]."""
        top, keep = each(self.outliers, models, "outliers"), each(self.keep, models, "keep")
        if (top + keep > 1 + 1e-6).any():
            raise AcclimateError(f"keep = {self.keep} and outliers = {self.outliers} add up to more than 1; lower one of them")
        return np.stack([top, keep], 1)
