"""CORAL as a map: source rows are whitened and given the target's correlations, and a head learns from them.

Sun, Feng & Saenko 2016, algorithm 1, https://arxiv.org/abs/1511.05547
A baseline on given features, in four lines of linear algebra: no network learns, only the head. The penalty on a network that learns, Deep
CORAL, is ``domain_generalization.coral``. Standardise the columns of each domain before (``scale`` = each), as the paper does: the map
moves no means. The paper's linear support vector machine is a linear head here.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2)
>>> rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # covariance 2/3 x I
>>> source, target = (Batch(x, None, torch.zeros(4).long(), torch.arange(4), [4]) for x in (rows, 2 * rows))
>>> method = CorrelationAlignment(regulariser=0.0); method.begin(learner, source, target)
>>> learner.memory["map"].round(decimals=4).tolist()
[[2.0, 0.0], [0.0, 2.0]]
"""

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from torch import Tensor

from ...kinds import DomainAdaptation
from ...method import Setting


class CorrelationAlignment(DomainAdaptation):
    """One number: what is added to the diagonal of both covariances."""

    regulariser: Annotated[float, Setting("added to each variance, so that the source can be whitened", 0)] = 1.0

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """The map C_S^-1/2 C_T^1/2, from all rows [width, width]."""
        white, colour = (self._root(learner.outputs(batch.x)[0], power) for batch, power in ((source, -0.5), (target, 0.5)))
        learner.memory["map"] = white @ colour

    def step(self, learner: Any, source: Any, target: Any) -> Iterator[tuple[Tensor, str]]:
        """The head alone learns, from source rows with the target's correlations."""
        yield learner.loss(learner.head(learner.outputs(source.x)[0] @ learner.memory["map"]), source.y), "head"

    def predict(self, learner: Any, x: Tensor, where: Any = None) -> Tensor:
        """Rows of the target as they are; those of the source through the map."""
        z = learner.features(x)
        return learner.head(z @ learner.memory["map"] if learner.is_source(where) else z)

    def _root(self, z: Tensor, power: float) -> Tensor:
        """A power of the covariance; directions without variance stay out of it."""
        values, vectors = torch.linalg.eigh(torch.cov(z.T.double()) + self.regulariser * torch.eye(z.shape[1], dtype=torch.double))
        kept = values > 1e-10
        return ((vectors[:, kept] * values[kept] ** power) @ vectors[:, kept].T).to(z)
