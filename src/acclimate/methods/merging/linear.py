"""Linear: averages the weights of several models, each with a weight of its own.

Wortsman et al. 2022 (uniform soup), section 2, https://arxiv.org/abs/2203.05482
Use for tunes of one base, or checkpoints of one run; models trained apart from the start share no axes and average to noise.
The greedy soup is merging.soup.

>>> from torch import tensor
>>> Linear(weights=[3.0, 1.0]).whole(None, tensor([[2.0, 4.0], [6.0, 0.0]]))
tensor([3., 3.])
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

from ...kinds import Merge
from ...method import Setting
from ...parts.checkpoints import combine, each, per_model
from ...parts.fused import Fused

if TYPE_CHECKING:
    from torch import Tensor


class Linear(Merge):
    """Weighted mean, or weighted sum."""

    weights: Annotated[list[float], Setting("weight of each model, or one for all")] = dataclasses.field(default_factory=lambda: [1.0])
    normalize: Annotated[bool, Setting("divide by the sum of the weights")] = True

    def merge(self, tuned: Tensor) -> Tensor:
        """tuned [model, *shape] -> [*shape]."""
        return combine(tuned, per_model(self.weights, tuned), elect="none", mean=self.normalize)

    def fused(self, models: int) -> Fused:
        """The same as numbers."""
        return Fused(each(self.weights, models), changes=False, mean=self.normalize)
