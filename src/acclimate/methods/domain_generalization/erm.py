"""ERM: trains on the rows of all labelled domains as if they were one.

Vapnik 1998; the baseline of Gulrajani & Lopez-Paz 2021, https://arxiv.org/abs/2007.01434
The first thing to compare with, in generalization (all sources pooled) and adaptation (source only): often nothing clearly beats it.

>>> from torch import nn, tensor
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(nn.Identity(), 2, width=2, head=nn.Identity())
>>> batch = Batch(tensor([[2.0, 0.0], [0.0, 0.0]]), tensor([0, 1]), tensor([0, 1]), tensor([0, 1]), [1, 1])
>>> [round(loss.item(), 4) for loss in Erm().step(learner, batch)]  # mean of log(1 + e^-2) and log 2
[0.41]
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ...kinds import DomainGeneralization


class Erm(DomainGeneralization):
    """Nothing to set."""

    def step(self, learner: Any, domains: Any) -> Iterator[Tensor]:
        """Mean loss over all rows."""
        yield learner.loss(learner(domains.x), domains.y)
