"""Core-set sampling: asks for rows so that none of the others is far from one that was asked for.

Sener & Savarese 2018, algorithm 1 (greedy k-centre), https://arxiv.org/abs/1708.00489
By distance in feature space, whatever the predictions. Costs pool x budget distances. Rows asked for in earlier rounds count as centres.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=1)
>>> pool = Batch(torch.tensor([[0.0], [0.1], [5.0], [9.0]]), None, torch.zeros(4), torch.arange(4), [4])
>>> CoreSet().query(learner, pool, 2).tolist()  # the farthest from the mean, 3.5, then the farthest from that
[3, 0]
"""

from typing import Any

import numpy as np
import torch

from ...kinds import ActiveLearning
from ...parts.discrepancy import squared_distances


class CoreSet(ActiveLearning):
    """Nothing to set."""

    def query(self, learner: Any, pool: Any, budget: int, labelled: Any = None) -> np.ndarray:
        """Row after row the one farthest from all centres; the very first is farthest from the mean of the pool."""
        z = learner.outputs(pool.x)[0]
        centres = z.mean(0, keepdim=True) if labelled is None else learner.outputs(labelled.x)[0]
        nearest = squared_distances(z, centres).amin(1)
        taken: list[int] = []
        for _ in range(budget):
            taken.append(int(nearest.argmax()))
            own = squared_distances(z, z[taken[-1:]])[:, 0]
            nearest = own if labelled is None and len(taken) == 1 else torch.minimum(nearest, own)
            nearest[taken] = -1.0  # never twice, where rows are alike
        return np.array(taken)
