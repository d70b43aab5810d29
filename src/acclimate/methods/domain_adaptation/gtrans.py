"""GTrans: leaves the model as it is and learns a small change of the target's features and edges that makes it fit.

Jin et al. 2023, https://arxiv.org/abs/2210.03561; numbers as in PyGDA
(https://github.com/pygda-team/pygda). Source-free, for nodes of graphs; for models that may not be changed. Costs as many numbers as the
graph has features. Each node is to look the same when some edges are dropped, and not like a node with shuffled features. Edges are only
taken away, at most ``ratio`` of them, as in the library; of 20 draws of them the one of least loss is kept.

>>> import torch
>>> project(torch.tensor([0.9, 0.8, 0.0]), 1.0).round(decimals=2).tolist()
[0.550000011920929, 0.44999998807907104, 0.0]
"""

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.graphs import normalised


class Gtrans(DomainAdaptation):
    """How much of the graph may change."""

    ratio: Annotated[float, Setting("largest share of edges that is taken away", 0, 1)] = 0.1
    dropped: Annotated[float, Setting("share of edges that is dropped to compare", 0, 1)] = 0.05
    on_features: Annotated[int, Setting("updates of the features per step", 0)] = 4
    on_edges: Annotated[int, Setting("updates of the edges per step", 0)] = 1
    draws: Annotated[int, Setting("draws of the edges at the end", 1)] = 20
    form: ClassVar[str] = "graph"
    exempt: ClassVar[dict[str, str]] = {"modalities": "the network stays as it is; only what the target's graph is changed by learns"}
    training: ClassVar[dict[str, Any]] = {"lr": 1e-4, "steps": 100, "batch": 0}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """What each graph's features are moved by, and how much each of its edges is taken away."""
        net, kept = learner.featurizer, nn.ParameterDict
        graphs = {str(number): net.graphs[number] for number in net.owners(learner.sample)}
        moved = {n: nn.Parameter(torch.zeros(graph.count, net.inputs[0])) for n, graph in graphs.items()}
        taken = {n: nn.Parameter(torch.zeros(graph.edges.shape[1] // 2)) for n, graph in graphs.items()}
        return {"moved": kept(moved), "taken": kept(taken)}

    def step(self, learner: Any, target: Any) -> Iterator[tuple[Tensor, str]]:
        """Features first, then edges, whose change is brought back to what is allowed."""
        for _ in range(self.on_features):
            yield self._loss(learner, target.x), "moved"
        for _ in range(self.on_edges):
            yield self._loss(learner, target.x), "taken"
            for share in learner.parts["taken"].values():
                share.data = project(share.data, self.ratio * len(share))

    def end(self, learner: Any, source: Any, target: Any) -> None:
        """Edges that are taken away for good."""
        shares = {n: share.detach().clone() for n, share in learner.parts["taken"].items()}
        best, least = shares, torch.inf
        for _ in range(self.draws):
            drawn = {n: torch.bernoulli(share, generator=learner.generator) for n, share in shares.items()}
            few = all(float(each.sum()) <= self.ratio * len(each) for each in drawn.values())
            self._set(learner, drawn)
            with torch.no_grad():
                loss = float(self._loss(learner, target.x))
            if few and loss < least:
                best, least = drawn, loss
        self._set(learner, best)

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """Scores on the changed graph."""
        return learner.head(self._features(learner, x))

    def _set(self, learner: Any, shares: dict[str, Tensor]) -> None:
        for n, share in shares.items():
            learner.parts["taken"][n].data = share

    def _features(self, learner: Any, x: Tensor, dropped: float = 0.0, shuffled: bool = False) -> Tensor:
        """Features over the changed graphs, some edges dropped or the nodes' features shuffled."""
        how: dict[str, dict[int, Any]] = {"through": {}, "moved": {}, "order": {}}
        for n, taken in learner.parts["taken"].items():
            graph, change, number = learner.featurizer.graphs[int(n)], learner.parts["moved"][n], int(n)
            one, other = graph.matrix.places
            upper, lower = (one < other).nonzero()[:, 0], (one > other).nonzero()[:, 0]
            back = (other[lower] * graph.count + one[lower]).argsort()  # lower entries in the order of the upper ones they mirror
            weight = torch.ones(len(one)).to(taken).index_put((torch.cat([upper, lower[back]]),), (1 - taken).repeat(2))
            if dropped:
                stay = torch.rand(len(weight), generator=learner.generator).to(weight) >= dropped
                weight = weight * (stay | (one == other))
            how["through"][number] = partial(graph.matrix, values=normalised(graph.matrix.places, weight, graph.count))
            how["moved"][number] = change
            if shuffled:
                how["order"][number] = torch.randperm(len(change), generator=learner.generator)
        return learner.features(x, **how)

    def _loss(self, learner: Any, x: Tensor) -> Tensor:
        plain = self._features(learner, x)
        same, other = self._features(learner, x, self.dropped), self._features(learner, x, shuffled=True)
        return (1 - cosine_similarity(same, plain, eps=1e-15)).mean() - (1 - cosine_similarity(plain, other, eps=1e-15)).mean()


def project(shares: Tensor, most: float) -> Tensor:
    """The nearest shares between 0 and 1 whose sum is at most ``most``."""
    low, high = float(shares.min()) - 1, float(shares.max())
    if float(shares.clamp(0, 1).sum()) <= most:
        return shares.clamp(0, 1)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float((shares - middle).clamp(0, 1).sum()) > most else (low, middle)
    return (shares - high).clamp(0, 1)
