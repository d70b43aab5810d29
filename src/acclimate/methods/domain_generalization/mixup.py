"""Mixup: trains on sums of rows of two domains, with the sum of their losses.

Zhang et al. 2018, equation 1, https://arxiv.org/abs/1710.09412; between domains as in Yan et al. 2020, https://arxiv.org/abs/2001.00677
Rows are mixed as numbers, so for images, tables, series and features; for token ids give it features of a frozen encoder. The rows of each
domain meet those of the next in an order drawn anew, with one share per pair of domains.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> batch = Batch(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]), torch.tensor([0, 1]), torch.arange(2), [1, 1])
>>> method = Mixup(alpha=1e9)  # the share is 1/2: both rows become [1, 1], whose loss is log 2 for either label
>>> [round(loss.item(), 4) for loss in method.step(learner, batch)]
[0.6931]
"""

from collections.abc import Iterator
from typing import Annotated, Any

from torch import Tensor

from ...kinds import DomainGeneralization
from ...method import Setting
from ...parts.mixing import beta, blend, paired


class Mixup(DomainGeneralization):
    """One number: how even the mixtures are."""

    alpha: Annotated[float, Setting("both parameters of the Beta distribution that the share is drawn from", 0)] = 0.2

    def step(self, learner: Any, domains: Any) -> Iterator[Tensor]:
        """Share x loss on the one label + rest x loss on the other, of the mixed rows."""
        other, starts = paired(domains.sizes, learner.generator)
        share = beta(self.alpha, len(domains.sizes), learner.generator)[starts].to(domains.x)  # [row]
        scores = learner(blend(domains.x, domains.x[other], share))
        one, two = (learner.loss(scores, y, each=True) for y in (domains.y, domains.y[other]))
        yield blend(one, two, share).mean()
