"""TDSS: A2GNN whose target features are smoothed as well, over nodes that random walks or two steps reach.

Chen et al. 2025, https://arxiv.org/abs/2412.11654; defaults as in PyGDA (https://github.com/pygda-team/pygda, pygda/models/tdss.py).
For nodes of graphs. Where A2GNN helps but the target's edges are few or noisy. The smoothing is a sum over edges: its weight falls with the
graph's size. Walks are drawn once, one from each node.

>>> import torch
>>> from acclimate.parts.graphs import roughness
>>> reached(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), 3, 2, torch.Generator(), "hops").tolist()  # both ends see each other
[[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]]
>>> roughness(torch.tensor([[0, 1], [1, 0]]), torch.tensor([[1.0], [3.0]])).item()
4.0
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ...method import Setting
from ...parts.graphs import roughness, walks
from .a2gnn import A2gnn


class Tdss(A2gnn):
    """What target nodes are smoothed over, and how much."""

    weight: Annotated[float, Setting("weight of the squared distance of kernel means (alpha)", 0)] = 0.001
    smooth: Annotated[float, Setting("weight of the target's roughness (beta)", 0)] = 0.0001
    over: Annotated[str, Setting("nodes on a random walk, or within some hops", choices=("walk", "hops"))] = "walk"
    reach: Annotated[int, Setting("length of the walk, or how many hops", 1)] = 4
    form: ClassVar[str] = "nodes"
    exempt: ClassVar[dict[str, str]] = {
        "beats_source_only": "the paper's weights of 0.001 and 0.0001 move nothing on a toy; with larger ones it does "
        "(tests/test_shift_graphs.py)"
    }
    training: ClassVar[dict[str, Any]] = {"lr": 0.01, "weight_decay": 0.005, "steps": 200, "batch": 0}

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """Draw the nodes that each target node is smoothed with."""
        learner.memory["nodes"], learner.memory["smooth"] = [], []
        for number, (_, nodes) in learner.featurizer.owners(target.x).items():
            graph = learner.featurizer.graphs[number]
            learner.memory["nodes"].append(target.x.min() - nodes.min() + torch.arange(graph.count, device=nodes.device))
            learner.memory["smooth"].append(reached(graph.edges, graph.count, self.reach, learner.generator, self.over))

    def step(self, learner: Any, source: Any, target: Any) -> Iterator[Tensor]:
        """A2GNN's loss + roughness of the whole target."""
        loss = next(super().step(learner, source, target))
        for nodes, edges in zip(learner.memory["nodes"], learner.memory["smooth"], strict=True):
            loss = loss + self.smooth * roughness(edges, learner.features(nodes, steps=self.target_steps))
        yield loss


def reached(edges: Tensor, count: int, reach: int, generator: torch.Generator, over: str) -> Tensor:
    """Pairs of different nodes, one of which a walk from the other reaches, or that lie within some hops: [2, edge]."""
    begin = torch.arange(count, device=edges.device)
    if over == "walk":
        path = walks(edges, begin, reach, generator)[:, 1:].flatten()
        pairs = torch.stack([path, begin.repeat_interleave(reach)])
    else:
        joined = torch.sparse_coo_tensor(edges, torch.ones(edges.shape[1]), (count, count), check_invariants=False).coalesce()
        found = joined
        for _ in range(reach - 1):
            found = (found + torch.sparse.mm(found, joined)).coalesce()
        pairs = found.indices()
    return pairs[:, pairs[0] != pairs[1]].unique(dim=1)
