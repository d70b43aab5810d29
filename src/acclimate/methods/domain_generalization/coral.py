"""CORAL: pulls means and covariances of the domains' features together.

Sun & Saenko 2016, equations 1 to 6, https://arxiv.org/abs/1607.01719, between all pairs of domains as in DomainBed,
https://arxiv.org/abs/2007.01434 (which adds the means, and averages squared differences over the entries)
A strong and cheap baseline for several domains; an unlabelled target counts as one more domain where there is one.

>>> import torch
>>> z = torch.tensor([[0.0], [2.0], [1.0], [1.0]])
>>> mean_and_covariance_gap([z[:2], z[2:]]).item()  # equal means, variances 2 and 0
4.0
"""

from collections.abc import Iterator
from typing import Annotated, Any

from torch import Tensor

from ...kinds import DomainGeneralization
from ...method import Setting
from ...parts.discrepancy import mean_and_covariance_gap


class Coral(DomainGeneralization):
    """One number: the price of a gap."""

    weight: Annotated[float, Setting("weight of the gap between domains (gamma)", 0)] = 1.0

    def step(self, learner: Any, domains: Any, target: Any = None) -> Iterator[Tensor]:
        """Loss on the labelled rows + weight x mean gap over pairs of domains."""
        z = learner.features(domains.x)
        parts = [*domains.split(z), *([learner.features(target.x)] if target else [])]
        yield learner.loss(learner.head(z), domains.y) + self.weight * mean_and_covariance_gap(parts)
