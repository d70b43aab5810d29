"""MMD: pulls the kernel means of the domains' features together.

Gretton et al. 2012, https://jmlr.org/papers/v13/gretton12a.html; as a penalty Li et al. 2018,
https://openaccess.thecvf.com/content_cvpr_2018/html/Li_Domain_Generalization_With_CVPR_2018_paper.html (without its autoencoder)
A sum of Gaussian kernels over seven widths, as in DomainBed. Costs a square of the batch; an unlabelled target counts as one more domain.

>>> import torch
>>> round(mmd_gap([torch.zeros(1, 1), torch.ones(1, 1)], [1.0]).item(), 4)  # 1 + 1 - 2 / e
1.2642
"""

from collections.abc import Iterator
from typing import Annotated, Any

from torch import Tensor

from ...kinds import DomainGeneralization
from ...method import Setting
from ...parts.discrepancy import WIDTHS, mmd_gap


class Mmd(DomainGeneralization):
    """The price of a gap, and the kernel."""

    weight: Annotated[float, Setting("weight of the gap between domains (gamma)", 0)] = 1.0
    widths: Annotated[tuple, Setting("factors g in exp(-g d^2), summed over", 0)] = WIDTHS

    def step(self, learner: Any, domains: Any, target: Any = None) -> Iterator[Tensor]:
        """Loss on the labelled rows + weight x mean gap over pairs of domains."""
        z = learner.features(domains.x)
        parts = [*domains.split(z), *([learner.features(target.x)] if target else [])]
        yield learner.loss(learner.head(z), domains.y) + self.weight * mmd_gap(parts, self.widths)
