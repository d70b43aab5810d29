"""Source: predicts with the model as it is, batch after batch.

The first thing to compare test-time adaptation with, as in Wang et al. 2021, https://arxiv.org/abs/2006.10726

>>> import torch
>>> from acclimate.engines.shift import Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> Source().adapt(learner, torch.tensor([[1.0, 2.0]])).tolist()
[[1.0, 2.0]]
"""

from typing import Any

import torch
from torch import Tensor

from ...kinds import TestTime


class Source(TestTime):
    """Nothing to set."""

    def adapt(self, learner: Any, x: Tensor) -> Tensor:
        """The model's scores."""
        with torch.no_grad():
            return learner(x)
