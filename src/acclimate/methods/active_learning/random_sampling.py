"""Random sampling: asks for rows by lot.

The control that every query strategy is compared with; Settles 2009, section 4, https://burrsettles.com/pub/settles.activelearning.pdf

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2)
>>> pool = Batch(torch.zeros(5, 2), None, torch.zeros(5), torch.arange(5), [5])
>>> len(set(RandomSampling().query(learner, pool, 3).tolist()))
3
"""

from typing import Any

import numpy as np
import torch

from ...kinds import ActiveLearning


class RandomSampling(ActiveLearning):
    """Nothing to set."""

    def query(self, learner: Any, pool: Any, budget: int) -> np.ndarray:
        """The first of a random order."""
        return torch.randperm(len(pool), generator=learner.generator)[:budget].numpy()
