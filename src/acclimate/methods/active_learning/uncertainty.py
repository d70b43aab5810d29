"""Uncertainty sampling: asks for the rows whose predictions are least sure, by entropy, margin or confidence.

Lewis & Gale 1994, https://arxiv.org/abs/cmp-lg/9407020; Scheffer et al. 2001 (margin); Settles 2009, section 3.1,
https://burrsettles.com/pub/settles.activelearning.pdf
Cheap and hard to beat with a calibrated model. Under a shift it also asks for rows that are wrong for good, and for many that are alike.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> pool = Batch(torch.tensor([[3.0, 0.0], [0.1, 0.0], [1.0, 0.0]]), None, torch.zeros(3), torch.arange(3), [3])
>>> Uncertainty(by="margin").query(learner, pool, 2).tolist()
[1, 2]
"""

from typing import Annotated, Any

import numpy as np

from ...kinds import ActiveLearning
from ...method import Setting
from ...parts.certainty import sureness


class Uncertainty(ActiveLearning):
    """What sureness is."""

    by: Annotated[str, Setting("what is taken for sureness", choices=("entropy", "margin", "confidence"))] = "entropy"

    def query(self, learner: Any, pool: Any, budget: int) -> np.ndarray:
        """The least sure first."""
        return sureness(learner.outputs(pool.x)[1], self.by).argsort(stable=True)[:budget].cpu().numpy()
