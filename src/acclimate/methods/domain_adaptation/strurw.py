"""StruRW: edges of the source count as much more or less as their pair of classes is joined more or less often in the target.

Liu et al. 2023, https://arxiv.org/abs/2306.03221; settings as in PyGDA
(https://github.com/pygda-team/pygda). For nodes of graphs, where classes are joined otherwise in the target (conditional structure shift);
of no use where only features differ. The target's classes are those predicted so far, so the first ``start`` steps see the edges as they
are. ``align``: plain training (erm), a domain head as well (adv), or kernel means (mmd). Mixup of graphs is left out. The library's usual
layer has weights of its own for the node itself; where a node and its neighbours share weights, as here, edges are weighted before they are
normalised, so that the source's features keep the scale that the target's have.

>>> import torch
>>> ratios(torch.tensor([[0.5, 0.1], [0.1, 0.0]]), torch.tensor([[0.25, 0.2], [0.2, 0.3]])).tolist()  # no such edge in the source: 1
[[0.5, 2.0], [2.0, 1.0]]
"""

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.discrepancy import drawn_mmd
from ...parts.graphs import joined, normalised
from ...parts.heads import reverse, rising


class Strurw(DomainAdaptation):
    """When edges are weighted anew, how much that counts, and what is aligned beside."""

    start: Annotated[int, Setting("step from which edges are weighted", 1)] = 100
    every: Annotated[int, Setting("steps after which they are weighted anew", 1)] = 20
    share: Annotated[float, Setting("share of the new weight, the rest being 1 (lambda)", 0, 1)] = 0.8
    align: Annotated[
        str, Setting("what is aligned: nothing, features by a domain head, by kernel means", choices=("erm", "adv", "mmd"))
    ] = "erm"
    rows: Annotated[int, Setting("nodes of each domain whose kernel means are compared at a step", 2)] = 1000
    form: ClassVar[str] = "nodes"
    exempt: ClassVar[dict[str, str]] = {"beats_source_only": "the toy's target differs in features, which weights of edges cannot mend"}
    training: ClassVar[dict[str, Any]] = {"lr": 0.004, "weight_decay": 1e-4, "steps": 200, "batch": 0}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The domain head, where there is one."""
        return {"domain": nn.Linear(learner.width, 2)} if self.align == "adv" else {}

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """Keep the classes of all source nodes and the target's nodes: edges are weighted by them."""
        learner.memory |= {"source": source.x, "y": source.y, "target": target.x, "ratios": torch.zeros(0)}

    def step(self, learner: Any, source: Any, target: Any) -> Iterator[Tensor]:
        """Class loss over the weighted edges of the source (+ what is aligned)."""
        if learner.step + 1 >= self.start and (learner.step + 1) % self.every == 0:
            learner.memory["ratios"] = self._rates(learner)
        z_s = learner.features(source.x, through=self._through(learner))
        loss = learner.loss(learner.head(z_s), source.y)
        if self.align == "mmd":
            loss = loss + drawn_mmd(z_s, learner.features(target.x), self.rows, learner.generator)
        if self.align == "adv":
            both = reverse(torch.cat([z_s, learner.features(target.x)]), rising(learner.progress))
            domain = torch.arange(len(both), device=both.device) >= len(z_s)
            loss = loss + cross_entropy(learner.parts["domain"](both), domain.long())
        yield loss

    def _rates(self, learner: Any) -> Tensor:
        """Ratios of the classes' rates, the target's by predicted classes [class, class]."""
        guess = learner.outputs(learner.memory["target"])[1].argmax(1)
        return ratios(rates(learner, learner.memory["source"], learner.memory["y"]), rates(learner, learner.memory["target"], guess))

    def _through(self, learner: Any) -> dict[int, Any]:
        """What each source graph spreads over: its matrix, edges of two known classes weighted."""
        found, table = {}, learner.memory["ratios"]
        for graph, _, shares in classes_of(learner, learner.memory["source"], learner.memory["y"]) if len(table) else []:
            matrix, known = graph.matrix, shares.any(1)
            one, other = matrix.places
            weight = 1 - self.share + self.share * table[shares.argmax(1)[one], shares.argmax(1)[other]]
            plain = (one == other) | ~(known[one] & known[other])
            number = next(n for n, each in enumerate(learner.featurizer.graphs) if each is graph)
            weight = torch.where(plain, torch.ones_like(weight), weight)
            found[number] = partial(matrix, values=normalised(matrix.places, weight, graph.count))
        return found


def classes_of(learner: Any, x: Tensor, y: Tensor) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """Each graph with its rows among x, and its nodes' classes as shares [node, class], 0 where a node is not among x."""
    for number, (rows, nodes) in learner.featurizer.owners(x).items():
        graph = learner.featurizer.graphs[number]
        shares = torch.zeros(graph.count, learner.classes, device=y.device)
        shares[nodes] = one_hot(y[rows], learner.classes).float()
        yield graph, rows, shares


def rates(learner: Any, x: Tensor, y: Tensor) -> Tensor:
    """How often classes are joined [class, class], a mean over graphs by how many nodes are known."""
    each = [(joined(graph.edges, shares), len(rows)) for graph, rows, shares in classes_of(learner, x, y)]
    return torch.stack([rate * count for rate, count in each]).sum(0) / sum(count for _, count in each)


def ratios(source: Tensor, target: Tensor) -> Tensor:
    """The target's rates over the source's [class, class]; 1 where either is unknown."""
    found = target / source
    return torch.where(found.isfinite(), found, torch.ones_like(found))
