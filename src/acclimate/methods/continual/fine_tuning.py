"""Fine-tuning: learns each task's rows and does nothing against forgetting.

The lower bound of continual learning, as in Chaudhry et al. 2018, https://arxiv.org/abs/1801.10112

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> batch = Batch(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1), torch.arange(1), [1])
>>> [round(loss.item(), 4) for loss in FineTuning().step(learner, batch)]  # log 2
[0.6931]
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ...kinds import Continual


class FineTuning(Continual):
    """Nothing to set."""

    def step(self, learner: Any, domains: Any) -> Iterator[Tensor]:
        """Loss on the task's rows."""
        yield learner.loss(learner(domains.x), domains.y)
