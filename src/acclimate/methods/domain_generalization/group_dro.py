"""GroupDRO: gives the domains with the largest losses the most weight.

Sagawa et al. 2020, algorithm 1, https://arxiv.org/abs/1911.08731
For the worst domain's sake. It needs strong regularisation (weight decay, early stop) where a network can fit every row.

>>> import torch
>>> weights = torch.tensor([0.5, 0.5])
>>> [round(w, 4) for w in raised(weights, torch.tensor([1.0, 0.0]), 0.1).tolist()]  # e^0.1 : 1
[0.525, 0.475]
"""

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from torch import Tensor

from ...kinds import DomainGeneralization
from ...method import Setting


class GroupDro(DomainGeneralization):
    """One number: how fast the weights move."""

    eta: Annotated[float, Setting("rate at which the domains' weights rise with their losses", 0)] = 0.01
    least = 2

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """All domains alike."""
        learner.memory["weights"] = torch.full((len(source.sizes),), 1 / len(source.sizes), device=learner.device)

    def step(self, learner: Any, domains: Any) -> Iterator[Tensor]:
        """Weighted sum of the domains' losses."""
        losses = torch.stack([part.mean() for part in domains.split(learner.loss(learner(domains.x), domains.y, each=True))])
        learner.memory["weights"] = raised(learner.memory["weights"], losses.detach(), self.eta)
        yield (losses * learner.memory["weights"]).sum()


def raised(weights: Tensor, losses: Tensor, eta: float) -> Tensor:
    """Weights [domain] times exp(eta x loss), summing to 1."""
    new = weights * (eta * losses).exp()
    return new / new.sum()
