"""D3G: a head for each domain, and on an unseen one their sum, weighed by how related the domains are from what is known about them.

Yao et al. 2024, section 3 (fixed and learned relations, consistency loss, prediction), https://arxiv.org/abs/2302.02609
For many domains with facts (place, time, a vector of their description) in ``Pool.about``, the unseen domain's as well; classes or values.
Relation a = beta x fixed + (1 - beta) x learned. Fixed: 1 / (1 + distance of the facts), or 1 up to a distance ``reach`` and 0 beyond
(0: same group). Learned: mean cosine of w x g(facts) over several vectors w, negative ones counted as 0. In training the weighed sum leaves
the own head out, which rehearses the unseen domain. Facts are taken as they are: scale them. The learner's own head is left alone.
beta, lambda, the number of vectors and the width of g were not to be found published: the defaults are plain choices.

>>> import torch
>>> related(torch.tensor([[0.0], [3.0]]), torch.tensor([[0.0], [1.0]])).tolist()  # distances 0, 1 and 3, 2
[[1.0, 0.5], [0.25, 0.3333333432674408]]
>>> round(mixed(torch.tensor([[0.25, 0.75]]), torch.tensor([[[8.0], [4.0]]])).item(), 4)
5.0
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ...errors import AcclimateError
from ...kinds import DomainGeneralization
from ...method import Setting
from ...parts.heads import mlp


class D3g(DomainGeneralization):
    """Where relations come from, and what consistency weighs."""

    beta: Annotated[float, Setting("share of the fixed relation, the rest being the learned one", 0, 1)] = 0.5
    weight: Annotated[float, Setting("weight of the loss of the other domains' heads (lambda)", 0)] = 0.5
    fixed: Annotated[
        str, Setting("fixed relation: 1 / (1 + distance), 1 within reach, or all alike", choices=("inverse", "adjacent", "equal"))
    ] = "inverse"
    reach: Annotated[float, Setting("largest distance of adjacent domains", 0)] = 0.0
    vectors: Annotated[int, Setting("vectors that weigh the learned relation's columns (R)", 1)] = 4
    hidden: Annotated[int, Setting("width of the network of the learned relation", 1)] = 64
    least = 2
    training: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 1e-4, "batch": 32}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """All heads as one layer, and the learned relation."""
        if learner.about is None:
            raise AcclimateError("domain_generalization.d3g relates domains by what is known about them; give every Pool its about [fact]")
        heads = nn.Linear(learner.width, learner.sources * max(1, learner.classes))
        return {"heads": heads, "relation": Learned(learner.about.shape[1], self.hidden, self.vectors)}

    def step(self, learner: Any, domains: Any) -> Iterator[Tensor]:
        """Loss of the own head + weight x loss of the others, weighed by their relation."""
        scores = self._scores(learner, domains.x)
        own = scores[torch.arange(len(scores), device=scores.device), domains.domain]
        facts = self._facts(learner)
        others = self.relation(learner, facts, facts) * (1 - torch.eye(len(facts)).to(scores))
        yield learner.loss(own, domains.y) + self.weight * learner.loss(mixed(others[domains.domain], scores), domains.y)

    def predict(self, learner: Any, x: Tensor, where: Any) -> Tensor:  # type: ignore[override]
        """Sum of all heads, weighed by their relation to the domain [row, class]."""
        if where.number is None and where.about is None:
            raise AcclimateError(f"D3G must know facts about the domain {where.name!r}; give its Pool an about [fact]")
        facts = self._facts(learner)
        about = learner.about[where.number] if where.number is not None else where.about
        weights = self.relation(learner, about.to(facts)[None], facts)
        return mixed(weights.expand(len(x), -1), self._scores(learner, x))

    def relation(self, learner: Any, a: Tensor, b: Tensor) -> Tensor:
        """How related domains are, by their facts [domain a, fact], [domain b, fact] -> [domain a, domain b]."""
        fixed = a.new_ones(len(a), len(b)) if self.fixed == "equal" else related(a, b, self.reach if self.fixed == "adjacent" else None)
        return self.beta * fixed + (1 - self.beta) * learner.parts["relation"](a, b).clamp(min=0)

    def _facts(self, learner: Any) -> Tensor:
        """Of the domains that have heads [domain, fact]."""
        return learner.about[: learner.sources].to(learner.parts["heads"].weight)

    def _scores(self, learner: Any, x: Tensor) -> Tensor:
        """Of every head [row, head, class]."""
        return learner.parts["heads"](learner.features(x)).unflatten(1, (learner.sources, -1))


class Learned(nn.Module):
    """Mean over vectors w of the cosine of w x g(a) and w x g(b)."""

    def __init__(self, facts: int, hidden: int, vectors: int):
        super().__init__()
        self.g, self.w = mlp(facts, [hidden], hidden), nn.Parameter(torch.empty(vectors, hidden).uniform_(0.5, 1.5))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Facts [domain a, fact], [domain b, fact] -> [domain a, domain b]."""
        one, other = (normalize(self.w[:, None] * self.g(facts), dim=2) for facts in (a, b))  # [vector, domain, hidden]
        return (one @ other.transpose(1, 2)).mean(0)


def related(a: Tensor, b: Tensor, reach: float | None = None) -> Tensor:
    """1 / (1 + distance) of facts [domain, fact], or whether it is at most ``reach`` [domain a, domain b]."""
    distances = (a[:, None] - b[None]).norm(dim=2)
    return 1 / (1 + distances) if reach is None else (distances <= reach).to(a)


def mixed(weights: Tensor, scores: Tensor) -> Tensor:
    """Scores [row, head, class] by weights [row, head], which are made to sum to 1 (all alike where nothing is related) [row, class]."""
    weights = weights + 1e-6
    return torch.einsum("rh,rhc->rc", weights / weights.sum(1, keepdim=True), scores)
