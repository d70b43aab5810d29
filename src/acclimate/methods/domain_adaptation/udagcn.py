"""UDAGCN: two views of each graph, edges and random walks, joined by attention, that look the same in both domains.

Wu et al. 2020, https://doi.org/10.1145/3366423.3380219; settings as in PyGDA (https://github.com/pygda-team/pygda).
For nodes of graphs, or small graphs. Both views share their weights; the second spreads by positive pointwise mutual information of nodes
on walks, drawn once. With few nodes or edges the second view adds little: ``walks`` = "none" leaves it out. The library divides the
information's argument by the length of a walk and counts returns to the start; here it is the textbook's, with a loop of weight 1.

>>> import torch
>>> attended(torch.nn.Linear(1, 1), [torch.tensor([[2.0]]), torch.tensor([[2.0]])]).item()  # shares sum to 1
2.0
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.certainty import entropy
from ...parts.graphs import ppmi
from ...parts.heads import mlp, reverse


class Udagcn(DomainAdaptation):
    """The second view, and the weights of the domain loss and of the target's entropy."""

    walks: Annotated[
        str, Setting("how the second view is made: drawn, exact (small graphs), or none", choices=("drawn", "exact", "none"))
    ] = "drawn"
    length: Annotated[int, Setting("longest walk", 1)] = 10
    repeats: Annotated[int, Setting("walks from each node", 1)] = 40
    peak: Annotated[float, Setting("largest strength of the reversal; it rises by the share of the run", 0)] = 0.05
    sure: Annotated[float, Setting("weight of the target's entropy at the end of the run", 0)] = 0.01
    hidden: Annotated[int, Setting("width of the domain head's layer", 1)] = 40
    form: ClassVar[str] = "graph"
    exempt: ClassVar[dict[str, str]] = {
        "beats_source_only": "at most 0.05 of the domain head's gradient reaches features, too little for the toy; with 1 it does "
        "(tests/test_shift_graphs.py)"
    }
    training: ClassVar[dict[str, Any]] = {"lr": 0.004, "weight_decay": 0.003, "steps": 300, "batch": 0}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """Domain head, attention, and what each graph's second view spreads by."""
        domain = mlp(learner.width, [self.hidden], 2)
        if self.walks == "none":
            return {"domain": domain}
        repeats = self.repeats if self.walks == "drawn" else 0
        views = [ppmi(graph.edges, graph.count, self.length, repeats, learner.generator) for graph in learner.featurizer.graphs]
        return {"domain": domain, "attention": nn.Linear(learner.width, 1), "views": nn.ModuleList(views)}

    def step(self, learner: Any, source: Any, target: Any) -> Iterator[Tensor]:
        """Class loss on the source + domain losses of both + entropy of the target, which counts more and more."""
        z_s, z_t = self._features(learner, source.x), self._features(learner, target.x)
        strength = min(learner.progress, self.peak)
        told_s, told_t = (learner.parts["domain"](reverse(z, strength)) for z in (z_s, z_t))
        of_s, of_t = told_s.new_zeros(len(z_s), dtype=torch.long), told_t.new_ones(len(z_t), dtype=torch.long)
        loss = learner.loss(learner.head(z_s), source.y) + cross_entropy(told_s, of_s) + cross_entropy(told_t, of_t)
        yield loss + self.sure * learner.progress * entropy(learner.head(z_t)).mean()

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """Scores of both views, joined."""
        return learner.head(self._features(learner, x))

    def _features(self, learner: Any, x: Tensor) -> Tensor:
        near = learner.features(x)
        if self.walks == "none":
            return near
        far = learner.features(x, through=dict(enumerate(learner.parts["views"])))
        return attended(learner.parts["attention"], [near, far])


def attended(scorer: nn.Module, views: list[Tensor]) -> Tensor:
    """Views [row, width] weighted by the softmax of their scores, row by row: [row, width]."""
    stacked = torch.stack(views, 1)
    return (stacked * scorer(stacked).softmax(1)).sum(1)
