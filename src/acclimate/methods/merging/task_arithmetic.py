"""Task arithmetic: adds the sum of the tunes' changes to the base, scaled.

Ilharco et al. 2023, section 2, https://arxiv.org/abs/2212.04089
Use for a few tunes of one base whose changes hardly meet; negative weights make a model forget a task. The scale is chosen on held-out
data; without any, 0.4 is what Yadav et al. 2023 (https://arxiv.org/abs/2306.01708) recommend for eight tasks.

>>> from torch import tensor
>>> TaskArithmetic(scale=0.5, weights=[1.0, -1.0]).whole(tensor([1.0, 1.0]), tensor([[3.0, 1.0], [1.0, 2.0]]))
tensor([2.0000, 0.5000])
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


class TaskArithmetic(Merge):
    """Sum of task vectors."""

    scale: Annotated[float, Setting("length of the summed change (the paper's lambda)")] = 0.4
    weights: Annotated[list[float], Setting("weight of each model's change, or one for all")] = dataclasses.field(
        default_factory=lambda: [1.0]
    )
    normalize: Annotated[bool, Setting("divide by the sum of the weights")] = False

    def merge(self, base: Tensor, tuned: Tensor) -> Tensor:
        """base [*shape], tuned [model, *shape] -> [*shape]."""
        changes = combine(tuned - base, per_model(self.weights, tuned), elect="none", mean=self.normalize)
        return base + self.scale * changes

    def fused(self, models: int) -> Fused:
        """The same as numbers."""
        return Fused(each(self.weights, models), mean=self.normalize, scale=self.scale)
