"""NearSwap: takes the other model's weight where both are close, and stays with the base where they are far apart.

A community method without a paper (alchemonaut 2024), https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001
Use to give a model some of another's manner; it averages nothing and has no theory behind it.

>>> from torch import tensor
>>> NearSwap(t=0.5).whole(tensor([1.0, 1.0, 1.0]), tensor([[1.25, 2.0, 6.0]]))
tensor([1.2500, 1.5000, 1.5000])
"""

from typing import Annotated

import torch
from torch import Tensor

from ...kinds import Merge
from ...method import Setting


class NearSwap(Merge):
    """A step towards the other model of at most ``t`` per weight."""

    takes = (1, 1)

    t: Annotated[float, Setting("distance up to which a weight is swapped; farther ones move by as much", 0)] = 1e-4

    def merge(self, base: Tensor, tuned: Tensor) -> Tensor:
        """base [*shape], tuned [1, *shape] -> [*shape]."""
        share = (self.t / (tuned[0] - base).abs().clamp(min=1e-6)).clamp(max=1)
        return torch.lerp(base, tuned[0], share)
