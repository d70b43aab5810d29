"""GRADE: a network on graphs whose every layer looks the same in both domains, by a domain head on all of them at once.

Wu et al. 2023, Non-IID transfer learning on graphs, https://ojs.aaai.org/index.php/AAAI/article/view/26231; weights and forms as in PyGDA
(https://github.com/pygda-team/pygda, pygda/models/grade.py). For nodes of graphs, or small graphs; DANN where only the last layer is to
look alike. ``gap``: the domain head (js), kernel means (mmd), or a domain head that sees labels and predicted classes as well (classes).

>>> import torch
>>> joined([torch.zeros(1, 2), torch.ones(1, 2)], torch.tensor([[4.0]])).tolist()
[[0.0, 0.0, 1.0, 1.0, 4.0]]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.discrepancy import drawn_mmd
from ...parts.heads import reverse, rising

TOLD = 8.0  # how much larger classes are written than features, as in the authors' code


class Grade(DomainAdaptation):
    """How layers are compared, and how much that counts."""

    gap: Annotated[str, Setting("domain head, kernel means, or domain head with classes", choices=("js", "mmd", "classes"))] = "js"
    weight: Annotated[float, Setting("weight of the discrepancy", 0)] = 0.01
    gamma: Annotated[float, Setting("how fast the reversal's strength rises; 0 = 1 from the start", 0)] = 10.0
    rows: Annotated[int, Setting("nodes of each domain whose kernel means are compared at a step", 2)] = 1000
    form: ClassVar[str] = "graph"
    exempt: ClassVar[dict[str, str]] = {
        "beats_source_only": "the paper's weight of 0.01 moves nothing on a toy of four columns; with 1 it does "
        "(tests/test_shift_graphs.py)"
    }
    training: ClassVar[dict[str, Any]] = {"lr": 0.001, "weight_decay": 0.01, "steps": 200, "batch": 0}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The domain head, a linear one, on all layers and the scores."""
        width = sum(len(bias) for bias in learner.featurizer.biases) + learner.classes * (2 if self.gap == "classes" else 1)
        return {} if self.gap == "mmd" else {"domain": nn.Linear(width, 2)}

    def step(self, learner: Any, source: Any, target: Any) -> Iterator[Tensor]:
        """Class loss on the source + discrepancy of all layers."""
        layers_s, layers_t = (learner.featurizer.layers(batch.x) for batch in (source, target))
        scores_s, scores_t = (learner.head(learner.dropout(layers[-1])) for layers in (layers_s, layers_t))
        told = self._gap(learner, joined(layers_s, scores_s), joined(layers_t, scores_t), source.y, scores_t)
        yield learner.loss(scores_s, source.y) + self.weight * told

    def _gap(self, learner: Any, s: Tensor, t: Tensor, y: Tensor, scores: Tensor) -> Tensor:
        if self.gap == "mmd":
            return drawn_mmd(s, t, self.rows, learner.generator)
        if self.gap == "classes":
            s = torch.cat([s, TOLD * one_hot(y, learner.classes).to(s)], 1)
            t = torch.cat([t, TOLD * scores.softmax(1)], 1)
        domain = torch.cat([y.new_zeros(len(s)), y.new_ones(len(t))])
        return cross_entropy(learner.parts["domain"](reverse(torch.cat([s, t]), rising(learner.progress, self.gamma))), domain)


def joined(layers: list[Tensor], scores: Tensor) -> Tensor:
    """All layers' features and the scores side by side [row, sum of widths]."""
    return torch.cat([*layers, scores], 1)
