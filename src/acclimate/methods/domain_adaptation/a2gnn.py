"""A2GNN: features of the target spread far over its graph and the source's not at all, and both alike by kernel means.

Liu et al. 2024, https://arxiv.org/abs/2402.05660; defaults as in PyGDA (https://github.com/pygda-team/pygda, pygda/models/a2gnn.py).
For nodes of graphs, or for small graphs. Strong where neighbours in the target share a class; of little use where they do not. The last
layer is the head, which does not spread. Kernel means are taken over ``rows`` nodes of each domain, drawn anew at every step. The library's
adversarial form is DANN on the same network.

>>> import numpy as np, torch
>>> from acclimate.domain.graphs import Graph
>>> from acclimate.engines.shift import Learner
>>> from acclimate.models.graph import GraphNet
>>> net = GraphNet(1, 1, 1)
>>> _ = net.weights[0].data.fill_(1)
>>> pools = net.attach([Graph(name, np.array([[1.0], [3.0]]), np.array([[0], [1]]), np.zeros(2), ["a"]) for name in "st"])
>>> learner = Learner(net, 1, head=torch.nn.Identity())
>>> learner.sources = 1
>>> scores = [A2gnn().predict(learner, pool.x, type("Place", (), {"number": place})) for place, pool in enumerate(pools)]
>>> [[round(each, 2) for each in row.flatten().tolist()] for row in scores]  # the source as it is, the target's nodes at their mean
[[1.0, 3.0], [2.0, 2.0]]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from torch import Tensor

from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.discrepancy import drawn_mmd


class A2gnn(DomainAdaptation):
    """How far each domain is spread, and how alike both must be."""

    source_steps: Annotated[int, Setting("how often a layer spreads over the source's graph", 0)] = 0
    target_steps: Annotated[int, Setting("how often a layer spreads over the target's graph", 0)] = 30
    weight: Annotated[float, Setting("weight of the squared distance of kernel means", 0)] = 5.0
    rows: Annotated[int, Setting("nodes of each domain whose kernel means are compared at a step", 2)] = 1000
    form: ClassVar[str] = "graph"
    exempt: ClassVar[dict[str, str]] = {
        "learns": "30 steps make all nodes of a small graph alike, and kernel means at the paper's weight of 5 then outweigh the classes",
        "beats_source_only": "the same: with few steps and a small weight it does (tests/test_shift_graphs.py)",
    }
    training: ClassVar[dict[str, Any]] = {"lr": 0.01, "weight_decay": 0.005, "steps": 200, "batch": 0}

    def step(self, learner: Any, source: Any, target: Any) -> Iterator[Tensor]:
        """Class loss on the source + distance of kernel means."""
        z_s = learner.features(source.x, steps=self.source_steps)
        z_t = learner.features(target.x, steps=self.target_steps)
        gap = drawn_mmd(z_s, z_t, self.rows, learner.generator)
        yield learner.loss(learner.head(z_s), source.y) + self.weight * gap

    def predict(self, learner: Any, x: Tensor, where: Any = None) -> Tensor:
        """Nodes of a source as in training, all others as the target's."""
        return learner.head(learner.features(x, steps=self.source_steps if learner.is_source(where) else self.target_steps))
