"""T3A: predicts by centroids that grow from the sure rows of the stream, started at the head's class vectors.

Iwasawa & Matsuo 2021, algorithm 1, https://openreview.net/forum?id=e_yvNqkJKAW
No gradient and no weight changes; any featurizer with a linear head. Each class keeps the ``keep`` rows of least entropy.

>>> import torch
>>> from acclimate.engines.shift import Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2)
>>> _ = learner.head.weight.data.copy_(torch.eye(2)), learner.head.bias.data.zero_()
>>> method = T3a(); method.begin(learner, None, None)
>>> method.adapt(learner, torch.tensor([[0.0, 4.0], [3.0, 0.0]])).round(decimals=2).tolist()  # class vectors [1, 0] and [0, 1] stay
[[0.0, 4.0], [3.0, 0.0]]
"""

from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from ...kinds import TestTime
from ...method import Setting
from ...parts.certainty import entropy


class T3a(TestTime):
    """How many rows a class keeps."""

    keep: Annotated[int, Setting("rows of least entropy that each class keeps (M); 0 = all", 0)] = 100

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """The class vectors of the head are the first members of their classes."""
        weight = learner.head.weight.detach()
        learner.memory["support"] = {"z": weight.clone(), "y": torch.arange(len(weight)), "h": entropy(learner.head(weight)).detach()}

    @torch.no_grad()
    def adapt(self, learner: Any, x: Tensor) -> Tensor:
        """Product of each row's features with the centroids of normalised members."""
        z = learner.features(x)
        scores, held = learner.head(z), learner.memory["support"]
        held = {
            "z": torch.cat([held["z"], z]), "y": torch.cat([held["y"], scores.argmax(1)]), "h": torch.cat([held["h"], entropy(scores)])
        }  # fmt: skip
        if self.keep:
            kept = torch.cat(
                [(rows := (held["y"] == c).nonzero()[:, 0])[held["h"][rows].argsort()[: self.keep]] for c in range(learner.classes)]
            )
            held = {name: value[kept] for name, value in held.items()}
        learner.memory["support"] = held
        centroids = one_hot(held["y"], learner.classes).to(z).T @ normalize(held["z"], dim=1)
        return z @ normalize(centroids, dim=1).T
