"""Model Stock: moves from the base towards the mean of a few tunes, as far as the angle between them says.

Jang et al. 2024, equations 4 to 6, https://arxiv.org/abs/2403.19522
Use for two or more tunes of one base on the same task with different seeds; it needs no data. Each tensor has its own angle.

>>> from torch import tensor, zeros
>>> ModelStock().whole(zeros(2), tensor([[2.0, 0.0], [1.0, 1.7320508]]))  # 60 degrees: t = 2 cos / (1 + cos) = 2/3
tensor([1.0000, 0.5774])
"""

import torch
from torch import Tensor

from ...kinds import Merge
from ...parts.checkpoints import gram


class ModelStock(Merge):
    """Interpolation between the base and the mean of the tunes."""

    takes = (2, 1000)

    def look(self, base: Tensor | None, tuned: Tensor, seen: list[Tensor], bits: int = 32) -> Tensor | None:
        """Inner products of the changes."""
        return None if seen or base is None else gram(tuned - base)

    def settle(self, seen: list[Tensor], models: int) -> Tensor:
        """How far the merged tensor lies from the base towards the mean of the tunes: scalar."""
        count, products = models, seen[0]
        lengths = products.diagonal().sqrt().clamp(min=1e-12)
        cosines = (products / lengths[:, None] / lengths)[~torch.eye(count, dtype=torch.bool)].clamp(-1, 1)
        cosine = cosines.mean()
        bottom = 1 + (count - 1) * cosine
        return count * cosine / bottom if bottom.abs() > 1e-6 else cosine.new_zeros(())  # opposed changes: stay at the base

    def merge(self, base: Tensor, tuned: Tensor, seen: Tensor) -> Tensor:
        """base [*shape], tuned [model, *shape] -> [*shape]."""
        return torch.lerp(base, tuned.mean(0), seen.to(base.dtype))
