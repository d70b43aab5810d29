"""Subspace alignment: the leading directions of the source are turned onto those of the target, and a classifier learns in between.

Fernando et al. 2013, section 3, algorithm 1, https://doi.org/10.1109/ICCV.2013.368
The plain baseline of adaptation on given features: no network learns, only the head on the aligned rows, or nothing but the nearest source
row votes (``classifier`` = "nearest", for which one training step is enough). Features are those of the learner's featurizer as it stands:
fixed vectors, or a network that was trained on the source before. Each domain is centred by itself; aligned rows are told in the features'
own coordinates, which changes neither distances nor what a linear head can say. Of no use where the shift is no turn of the features. The
paper's bound that chooses the dimension, and its support vector machine, are left out.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2)
>>> source = Batch(torch.tensor([[5.0, 0.0], [-5.0, 0.0]]), torch.tensor([0, 1]), torch.zeros(2).long(), torch.arange(2), [2])
>>> target = Batch(torch.tensor([[4.0, 4.0], [-2.0, -4.0]]), None, torch.ones(2).long(), torch.arange(2), [2])  # turned and moved
>>> method = SubspaceAlignment(dimension=1, classifier="nearest"); method.begin(learner, source, target)
>>> learner.memory["rows"].mul(10).round().tolist()  # 5 times the cosine 3 / 5 of the directions, along that of the target
[[18.0, 24.0], [-18.0, -24.0]]
>>> method.predict(learner, target.x).round(decimals=4).tolist()  # target rows at 5 and -5, source rows at 3 and -3
[[-2.0, -8.0], [-8.0, -2.0]]
"""

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from torch import Tensor

from ...errors import AcclimateError
from ...kinds import DomainAdaptation
from ...method import Setting


class SubspaceAlignment(DomainAdaptation):
    """How many directions are kept, and who classifies the aligned rows."""

    dimension: Annotated[int, Setting("leading directions of each domain (d)", 1)] = 20
    classifier: Annotated[str, Setting("a linear head, or the label of the nearest source row", choices=("linear", "nearest"))] = "linear"

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """Both maps, from all rows: X_S X_S^T X_T of the source and X_T of the target, each followed by X_T^T, back to the features."""
        z_s, z_t = (learner.outputs(batch.x)[0] for batch in (source, target))
        size = min(self.dimension, learner.width)
        if size >= (fewest := min(len(z_s), len(z_t))):
            raise AcclimateError(f"{size} directions cannot be found in {fewest} rows; set dimension to {fewest - 1} or less")
        x_s, x_t = leading(z_s, size), leading(z_t, size)
        learner.memory |= {"source": [z_s.mean(0), x_s @ x_s.T @ x_t @ x_t.T], "target": [z_t.mean(0), x_t @ x_t.T]}
        if self.classifier == "nearest":
            learner.memory |= {"rows": self._aligned(learner, z_s, "source"), "labels": source.y}

    def step(self, learner: Any, source: Any, target: Any) -> Iterator[tuple[Tensor, str]]:
        """The head alone learns, from aligned source rows; the nearest row needs no learning."""
        if self.classifier == "linear":
            z = self._aligned(learner, learner.outputs(source.x)[0], "source")
            yield learner.loss(learner.head(z), source.y), "head"

    def predict(self, learner: Any, x: Tensor, where: Any = None) -> Tensor:
        """Scores of the source's rows by its map, of all other rows by the target's."""
        z = self._aligned(learner, learner.features(x), "source" if learner.is_source(where) else "target")
        if self.classifier == "linear":
            return learner.head(z)
        near, labels = -torch.cdist(z, learner.memory["rows"]), learner.memory["labels"]  # [row, source row]
        return z.new_full((len(z), learner.classes), -torch.inf).scatter_reduce(1, labels.expand(len(z), -1), near, "amax")

    def _aligned(self, learner: Any, z: Tensor, domain: str) -> Tensor:
        mean, turn = learner.memory[domain]
        return (z - mean) @ turn


def leading(z: Tensor, dimension: int) -> Tensor:
    """Unit directions of largest variance of rows [row, width] -> [width, dimension], the largest first.

    >>> leading(torch.tensor([[3.0, 1.0], [-3.0, 1.0], [0.0, 1.0]]), 1).abs().flatten().tolist()
    [1.0, 0.0]
    """
    return torch.linalg.svd((z - z.mean(0)).float(), full_matrices=False).Vh[:dimension].T.to(z)
