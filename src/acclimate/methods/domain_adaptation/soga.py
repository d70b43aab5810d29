"""SOGA: adapts a source model to a graph without source nodes, by sure predictions that agree among neighbours and look-alikes.

Mao et al. 2024, https://arxiv.org/abs/2112.00955; numbers as in PyGDA (https://github.com/pygda-team/pygda). Source-free, for nodes of
graphs. Wrong where neighbours seldom share a class. Train the source model with label smoothing 0.1. A node's look-alike is one of nearest
degree and nearest mean degree of its neighbours (the authors use struc2vec for it, the library the neighbours themselves); pairs are drawn
once, nodes that must differ by their degrees.

>>> import torch
>>> loss = contrast(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), *map(torch.tensor, ([0], [1], [[2, 2]])))
>>> round(loss.item(), 4)  # log 2 - 1
-0.3069
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.certainty import entropy, spread
from ...parts.graphs import walks


class Soga(DomainAdaptation):
    """The weights of agreement, and how many nodes must differ."""

    alike: Annotated[float, Setting("weight of agreement with a look-alike (lambda_s)", 0)] = 1.0
    near: Annotated[float, Setting("weight of agreement with a neighbour (lambda_n)", 0)] = 1.0
    others: Annotated[int, Setting("nodes that a node must differ from", 1)] = 5
    form: ClassVar[str] = "nodes"
    training: ClassVar[dict[str, Any]] = {"lr": 0.004, "steps": 200, "batch": 0}

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """Draw each node's neighbour, look-alike, and nodes to differ from."""
        number, (_, nodes) = next(iter(learner.featurizer.owners(target.x).items()))
        edges, count = learner.featurizer.graphs[number].edges, learner.featurizer.graphs[number].count
        degree = torch.bincount(edges[0], minlength=count).float()
        around = torch.zeros_like(degree).index_add(0, edges[0], degree[edges[1]]) / degree.clamp(min=1)
        order = (degree * (count + 1) + around).argsort(stable=True)
        alike = torch.empty_like(order)
        alike[order] = torch.cat([order[1:], order[-2:-1]])
        drawn = torch.multinomial(degree + 1e-6, self.others * 2 * count, replacement=True, generator=learner.generator)
        learner.memory |= {
            "first": int(target.x.min() - nodes.min()), "near": walks(edges, torch.arange(count), 1, learner.generator)[:, 1],
            "alike": alike, "others": drawn.view(2, count, self.others),
        }  # fmt: skip

    def step(self, learner: Any, target: Any) -> Iterator[Tensor]:
        """Information maximisation + agreement of both kinds."""
        memory = learner.memory
        scores = learner(memory["first"] + torch.arange(len(memory["near"]), device=target.x.device))
        rows = target.x - memory["first"]
        loss = entropy(scores[rows]).mean() - spread(scores[rows])
        for weight, pair, others in ((self.alike, "alike", memory["others"][0]), (self.near, "near", memory["others"][1])):
            loss = loss + weight * contrast(scores.softmax(1), rows, memory[pair][rows], others[rows])
        yield loss


def contrast(shares: Tensor, nodes: Tensor, pairs: Tensor, others: Tensor) -> Tensor:
    """Mean of -log(exp(p_i p_j) / sum over others k of exp(p_i p_k)) over nodes i with their pair j: scalar."""
    p = shares[nodes]
    return ((p[:, None] * shares[others]).sum(2).logsumexp(1) - (p * shares[pairs]).sum(1)).mean()
