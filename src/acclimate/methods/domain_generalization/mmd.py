"""MMD: pulls the kernel means of the domains' features together.

Gretton et al. 2012, https://jmlr.org/papers/v13/gretton12a.html; as a penalty Li et al. 2018,
https://openaccess.thecvf.com/content_cvpr_2018/html/Li_Domain_Generalization_With_CVPR_2018_paper.html (without its autoencoder)
A sum of Gaussian kernels over seven widths, as in DomainBed. Costs a square of the batch; an unlabelled target counts as one more domain.

>>> import torch
>>> round(gap([torch.zeros(1, 1), torch.ones(1, 1)], [1.0]).item(), 4)  # 1 + 1 - 2 / e
1.2642
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Annotated, Any

import torch
from torch import Tensor

from ...kinds import DomainGeneralization
from ...method import Setting
from ...parts.discrepancy import WIDTHS, mmd


class Mmd(DomainGeneralization):
    """The price of a gap, and the kernel."""

    weight: Annotated[float, Setting("weight of the gap between domains (gamma)", 0)] = 1.0
    widths: Annotated[tuple, Setting("factors g in exp(-g d^2), summed over", 0)] = WIDTHS

    def step(self, learner: Any, domains: Any, target: Any = None) -> Iterator[Tensor]:
        """Loss on the labelled rows + weight x mean gap over pairs of domains."""
        z = learner.features(domains.x)
        parts = [*domains.split(z), *([learner.features(target.x)] if target else [])]
        yield learner.loss(learner.head(z), domains.y) + self.weight * gap(parts, self.widths)


def gap(parts: Sequence[Tensor], widths: Sequence[float]) -> Tensor:
    """Mean squared kernel distance over pairs of domains; 0 for a single domain."""
    gaps = [mmd(a, b, widths) for a, b in combinations(parts, 2)]
    return torch.stack(gaps).mean() if gaps else parts[0].new_zeros(())
