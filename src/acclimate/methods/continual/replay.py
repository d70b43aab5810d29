"""Replay: learns each task's rows together with a few that are kept of earlier ones.

Chaudhry et al. 2019, algorithm 1 (experience replay), https://arxiv.org/abs/1902.10486
Hard to beat with even a few rows per class, where rows may be kept at all. The memory is the engine's (rows, per_class, choose).

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> batch, kept = (Batch(torch.tensor([[s, 0.0]]), torch.tensor([1]), torch.zeros(1), torch.arange(1), [1]) for s in (0.0, 2.0))
>>> [round(loss.item(), 4) for loss in Replay().step(learner, batch, kept)]  # mean of log 2 and log(1 + e^2)
[1.41]
"""

from collections.abc import Iterator
from typing import Annotated, Any

from torch import Tensor

from ...kinds import Continual
from ...method import Setting


class Replay(Continual):
    """How much the kept rows count."""

    weight: Annotated[float, Setting("share of the loss that the kept rows have", 0, 1)] = 0.5

    def step(self, learner: Any, domains: Any, replay: Any = None) -> Iterator[Tensor]:
        """(1 - weight) x loss on the task + weight x loss on the kept rows; the task alone where nothing is kept yet."""
        own = learner.loss(learner(domains.x), domains.y)
        yield own if replay is None else (1 - self.weight) * own + self.weight * learner.loss(learner(replay.x), replay.y)
