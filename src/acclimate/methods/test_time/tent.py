"""TENT: makes predictions surer by moving the scales and shifts of the normalisation layers, batch after batch.

Wang et al. 2021, equation 1 and section 3.2, https://arxiv.org/abs/2006.10726
Batch-norm normalises by the batch. It breaks with single rows, with batches of one class, and on long streams, where sureness runs away.
Predictions are those before the update, as in the authors' code. ``loss`` = ratio puts the soft likelihood ratio in the entropy's place
(SLR), whose gradient does not vanish for sure rows: Mummadi et al. 2021, https://arxiv.org/abs/2106.14999 ; its other parts are
left out.

>>> import torch
>>> from acclimate.engines.shift import Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> loss, who = next(Tent().adapt(learner, torch.zeros(1, 2)))
>>> round(loss.item(), 4), who  # log 2
(0.6931, 'norms')
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from torch import Tensor

from ...kinds import TestTime
from ...method import Setting
from ...parts.certainty import entropy, likelihood_ratio
from ...parts.norms import batch_statistics


class Tent(TestTime):
    """How often it steps, and on what."""

    steps: Annotated[int, Setting("updates per batch", 1)] = 1
    loss: Annotated[str, Setting("what falls: entropy, or the soft likelihood ratio", choices=("entropy", "ratio"))] = "entropy"
    online: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 1e-3}

    def adapt(self, learner: Any, x: Tensor) -> Iterator[tuple[Tensor, str]]:
        """Entropy (or likelihood ratio) of the predictions; the normalisation layers learn."""
        for _ in range(self.steps):
            with batch_statistics(learner):
                scores = learner(x)
            yield (entropy if self.loss == "entropy" else likelihood_ratio)(scores).mean(), "norms"
        return scores
