"""SCE: selects the weights on which the tunes differ most, weights the models by the energy left there, and elects signs.

Wan et al. 2024 (FuseChat 3), section 3.3, https://arxiv.org/abs/2408.07990
Use for tunes of one base of which some moved much and others little; the weights come from the changes, so nothing is to be set by hand.

>>> from torch import tensor, zeros
>>> Sce(select=0.7).whole(zeros(4), tensor([[4.0, 1.0, 1.0, 0.0], [0.0, 1.0, 3.0, 0.2]]))
tensor([4.0000, 0.0000, 1.6923, 0.0000])
"""

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from ...kinds import Merge
from ...method import Setting
from ...parts import thresholds
from ...parts.checkpoints import elected, positive


class Sce(Merge):
    """Select by variance, calculate weights, erase minority signs."""

    select: Annotated[float, Setting("share of the weights selected, by variance between the models (the paper's tau)", 0, 1)] = 0.1

    def look(self, base: Tensor | None, tuned: Tensor, seen: list[Tensor], bits: int = 32) -> Tensor | None:
        """Counts of variances, then the energies of the selected changes [model]."""
        if base is None or len(seen) > 2:
            return None
        changes = tuned - base
        if self.select < 1 and len(seen) < 2:
            return thresholds.look(self._variance(changes), seen, self._shares(seen))
        if self.select >= 1 and seen:
            return None
        return self._selected(changes, self._least(seen)).square().flatten(1).sum(1).double()

    def settle(self, seen: list[Tensor], models: int) -> tuple[Tensor, float | None]:
        """The models' weights [model], and the least variance that is selected, None if all are."""
        energy = seen[-1]
        shares = energy / energy.sum() if energy.sum() > 0 else torch.full_like(energy, 1 / len(energy))
        return shares, self._least(seen)

    def merge(self, base: Tensor, tuned: Tensor, seen: tuple[Tensor, float | None]) -> Tensor:
        """base [*shape], tuned [model, *shape] -> [*shape]."""
        shares, least = seen
        changes = self._selected(tuned - base, least)
        taken = positive(changes * elected(changes)).mul_(shares.to(base.dtype).view(-1, *[1] * base.ndim))
        return base + changes.mul_(taken).sum(0) / taken.sum(0).clamp(min=1e-6)

    def _least(self, seen: list[Tensor]) -> float | None:
        return None if self.select >= 1 else max(thresholds.magnitudes(seen[:2], self._shares(seen))[0, 0].item(), 1e-38)

    def _selected(self, changes: Tensor, least: float | None) -> Tensor:
        return changes if least is None else changes * (self._variance(changes)[0] >= least)

    @staticmethod
    def _variance(changes: Tensor) -> Tensor:
        return changes.float().var(0, unbiased=False)[None]

    def _shares(self, seen: list[Tensor]) -> np.ndarray:
        """The share is of the weights on which the models differ at all."""
        size, equal = (int(seen[0].sum()), int(seen[0][0, 0])) if seen else (1, 0)
        count = int(self.select * (size - equal))
        return np.array([[(count + 0.5) / size if count else 0.0]])
