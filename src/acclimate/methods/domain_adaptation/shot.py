"""SHOT: adapts a source model without source rows, by sure and varied predictions and labels from class centroids.

Liang et al. 2020, equations 3 to 7, https://arxiv.org/abs/2002.08546
Source-free. The head stays as it is and the encoder moves target features to where the head is sure. Train the source model with label
smoothing 0.1 and a weight-normalised head. Wrong where the target has fewer classes: then lower ``varied`` to 0.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> target = Batch(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), None, torch.zeros(2), torch.arange(2), [2])
>>> Shot().refresh(learner, None, target)
>>> [(round(loss.item(), 3), who) for loss, who in Shot().step(learner, target)]  # nearly 0 - log 2
[(-0.692, 'featurizer')]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.certainty import entropy, prototype_labels, spread


class Shot(DomainAdaptation):
    """The weights of its three terms."""

    sure: Annotated[float, Setting("weight of each row's entropy", 0)] = 1.0
    varied: Annotated[float, Setting("weight of the spread over classes", 0)] = 1.0
    pseudo: Annotated[float, Setting("weight of the loss on pseudo-labels (beta)", 0)] = 0.3
    training: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "schedule": "inverse", "batch": 64,
    }  # fmt: skip

    def refresh(self, learner: Any, source: Any, target: Any) -> None:
        """Pseudo-labels of all target rows, from centroids in feature space."""
        learner.memory["labels"] = prototype_labels(*learner.outputs(target.x))

    def step(self, learner: Any, target: Any) -> Iterator[tuple[Tensor, str]]:
        """Information maximisation + loss on pseudo-labels; the encoder alone learns."""
        scores = learner(target.x)
        loss = self.sure * entropy(scores).mean() - self.varied * spread(scores)
        yield loss + self.pseudo * cross_entropy(scores, learner.memory["labels"][target.rows]), "featurizer"
