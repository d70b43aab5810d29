"""BN-adapt: normalises by the statistics of the batch at hand, mixed with those of the source.

Schneider et al. 2020, equation 1, https://arxiv.org/abs/2006.16971 ; with ``prior`` = 0 AdaBN, Li et al. 2016, https://arxiv.org/abs/1603.04779
For networks with batch-norm; nothing else changes. With small batches give the source statistics more rows. Without batch-norm it is the
source model.

>>> import torch
>>> from acclimate.engines.shift import Learner
>>> learner = Learner(torch.nn.BatchNorm1d(1), 1, width=1, head=torch.nn.Identity()).eval()
>>> rows = torch.tensor([[1.0], [3.0]])  # mean 2, variance 1; source mean 0, variance 1
>>> [round(v, 3) for v in BnAdapt(prior=2).adapt(learner, rows).flatten().tolist()]  # half and half: mean 1, variance 1
[0.0, 2.0]
"""

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ...kinds import TestTime
from ...method import Setting
from ...parts.norms import batch_norms


class BnAdapt(TestTime):
    """How much the source statistics count."""

    prior: Annotated[float, Setting("how many rows the source statistics count as (N); the batch counts its own", 0)] = 0.0

    def adapt(self, learner: Any, x: Tensor) -> Tensor:
        """Scores with mixed statistics."""
        share = self.prior / (self.prior + len(x))
        hooks = [layer.register_forward_hook(lambda layer, given, _: mixed(layer, given[0], share)) for layer in batch_norms(learner)]
        try:
            with torch.no_grad():
                return learner(x)
        finally:
            for hook in hooks:
                hook.remove()


def mixed(layer: Any, x: Tensor, share: float) -> Tensor:
    """A batch-norm layer whose statistics are ``share`` x the source's + the rest of the batch's [row, channel, ...]."""
    over = [0, *range(2, x.ndim)]
    mean = share * layer.running_mean + (1 - share) * x.mean(over)
    variance = share * layer.running_var + (1 - share) * x.var(over, unbiased=False)
    return nn.functional.batch_norm(x, mean, variance, layer.weight, layer.bias, False, 0.0, layer.eps)
