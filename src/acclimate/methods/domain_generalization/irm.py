"""IRM: asks for features on which one and the same head is best in every domain.

Arjovsky et al. 2019, equation 3 (IRMv1), https://arxiv.org/abs/1907.02893
The penalty is the squared gradient of a domain's loss with respect to a factor on the scores, estimated without bias from two halves of the
batch (appendix D). Useful where a feature's meaning changes between domains; few domains can meet it without being invariant.
The optimizer is not started anew when the penalty sets in, which DomainBed does.

>>> import torch
>>> scores, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
>>> round(penalty(scores, y).item(), 4)  # (p - 1) x 1 for the first row, p' x 1 for the second: -0.2689 x 0.7311
-0.1966
"""

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...kinds import DomainGeneralization
from ...method import Setting


class Irm(DomainGeneralization):
    """Risk plus penalty, which is weak for a start."""

    weight: Annotated[float, Setting("weight of the penalty once it has set in (lambda)", 0)] = 100.0
    anneal: Annotated[int, Setting("steps at weight 1 before the penalty sets in", 0)] = 500
    least = 2

    def step(self, learner: Any, domains: Any) -> Iterator[Tensor]:
        """Mean over domains of risk + weight x penalty."""
        scores = learner(domains.x)
        pairs = list(zip(domains.split(scores), domains.split(domains.y), strict=True))
        risk = torch.stack([learner.loss(*pair) for pair in pairs]).mean()
        weight = self.weight if learner.step >= self.anneal else 1.0
        yield risk + weight * torch.stack([penalty(*pair) for pair in pairs]).mean()


def penalty(scores: Tensor, y: Tensor) -> Tensor:
    """Product of the gradients of two halves' losses with respect to a factor 1 on the scores [row, class]: scalar."""
    factor = torch.ones((), device=scores.device, requires_grad=True)
    halves = [cross_entropy(scores[start::2] * factor, y[start::2]) for start in (0, 1)]
    one, two = (torch.autograd.grad(loss, factor, create_graph=True)[0] for loss in halves)
    return one * two
