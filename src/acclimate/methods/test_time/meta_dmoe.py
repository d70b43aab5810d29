"""Meta-DMoE: experts of groups of sources show a small student, by their combined features of a few rows, where to step in a new domain.

Zhong et al. 2022, algorithm 1, https://arxiv.org/abs/2210.03885 ; sizes, order of the parts and modes as in the authors' code
For many labelled sources (tens are better than three) and targets that come one at a time, some rows without labels first. Three parts of
one run: experts learn their group of sources each, and the student all of them; then a transformer learns to combine the experts' features;
then, in episodes of one source, a step of the student towards what it makes of the other groups' experts is trained to help on other rows
of that source. At test time the first ``support`` rows of the stream give one such step, with all experts, and everything is predicted
after it; ``reset`` (engines.online) before the next domain. A step of training sees rows of all sources, of which an episode uses those of
one, drawn anew. Batches smaller than the paper's 40 give at most three quarters of their rows as support. Attention has as many of the
heads as divide the width. Differs: the owner's expert is left out, as in the authors' code, where the paper has zeros in its place;
attention's output is dropped out as well; one optimizer for the whole run, where the authors begin anew in each part; the last weights are
kept, as held-out rows of sources do not tell what a step is worth elsewhere.

>>> import torch
>>> from acclimate.engines.shift import Learner
>>> learner = Learner(torch.nn.Linear(1, 1, bias=False), 1, width=1, head=torch.nn.Identity())
>>> _ = learner.featurizer.weight.data.fill_(1.0)
>>> step = MetaDmoe(inner_lr=0.01).stepped(learner, torch.tensor([[2.0]]), torch.tensor([[5.0]]))  # 1 - 0.01 x 2 (2 - 5) 2
>>> round(step["weight"].item(), 4)
1.12
"""

import copy
import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import mse_loss

from ...errors import AcclimateError
from ...kinds import TestTime
from ...method import Setting


class MetaDmoe(TestTime):
    """How many experts, how they are combined, and how the run is cut."""

    num_experts: Annotated[int, Setting("groups of sources, an expert each; at most one per source (N)", 2)] = 10
    depth: Annotated[int, Setting("blocks of the transformer that combines the experts", 1)] = 1
    heads: Annotated[int, Setting("heads of its attention", 1)] = 16
    dropout: Annotated[float, Setting("dropout of the transformer while it learns to combine", 0, 1)] = 0.1
    support: Annotated[int, Setting("rows without labels that give the step", 1)] = 24
    inner_lr: Annotated[float, Setting("length of the student's step (alpha)", 0)] = 3e-4
    mask: Annotated[bool, Setting("whether an episode leaves out the expert that learned its source")] = True
    expert_share: Annotated[float, Setting("share of the run in which experts and student learn", 0, 1)] = 0.27
    aggregator_share: Annotated[float, Setting("share of the run in which the transformer learns; episodes follow", 0, 1)] = 0.27
    least = 2
    training: ClassVar[dict[str, Any]] = {
        "lr": 3e-5, "rates": {"aggregator": 1 / 30}, "batch": 40, "schedule": "exponential", "alpha": 1.8, "choose": "last",
    }  # fmt: skip

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """Experts, each a featurizer and a head that start where the student does; the transformer A and a head for it to learn by."""
        count = min(self.num_experts, learner.sources or self.num_experts)
        experts = nn.ModuleList(copy.deepcopy(nn.Sequential(learner.featurizer, learner.head)) for _ in range(count))
        aggregator = Aggregator(learner.width, max(1, learner.classes), self.depth, self.heads, self.dropout)
        return {"experts": experts, "aggregator": aggregator}

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """Sources fall into groups of equal size by chance; no step was made yet."""
        learner.memory.pop("stepped", None)
        if "groups" not in learner.memory:
            if source is None:
                raise AcclimateError(f"{self.name} needs experts of several sources, but none was trained; train the model with it")
            order, count = torch.randperm(learner.sources, generator=learner.generator), len(learner.parts["experts"])
            learner.memory["groups"] = (order.argsort() * count // max(1, learner.sources)).tolist()  # of each source

    def step(self, learner: Any, domains: Any) -> Iterator[Tensor]:
        """Experts and student, then A, then episodes."""
        experts, aggregator = learner.parts["experts"], learner.parts["aggregator"]
        if learner.progress < self.expert_share:
            group = torch.tensor(learner.memory["groups"])[domains.domain]
            own = [(expert, group == number) for number, expert in enumerate(experts)]
            taught = [learner.loss(expert(domains.x[rows]), domains.y[rows]) for expert, rows in own]
            yield learner.loss(learner(domains.x), domains.y) + sum(taught)
        elif learner.progress < self.expert_share + self.aggregator_share:
            experts.eval()
            yield learner.loss(aggregator.head(self.taught(learner, domains.x)), domains.y)
        else:
            yield self.episode(learner, domains)

    def episode(self, learner: Any, domains: Any) -> Tensor:
        """Loss on a source's query after a step on its support; from here on nothing is in training mode."""
        learner.eval()
        place = int(torch.randint(len(domains.sizes), (), generator=learner.generator))
        x, y = domains.split(domains.x)[place], domains.split(domains.y)[place]
        if len(x) < 2:
            raise AcclimateError(f"{self.name} cuts a source's rows into support and query, but a step has one of each; set batch above 1")
        cut = min(self.support, max(1, 3 * len(x) // 4))
        target = self.taught(learner, x[:cut], learner.memory["groups"][place] if self.mask else None)
        weights = self.stepped(learner, x[:cut], target)
        return learner.loss(learner.head(functional_call(learner.featurizer, weights, (x[cut:],))), y[cut:])

    def taught(self, learner: Any, x: Tensor, without: int | None = None) -> Tensor:
        """t = A(features of the experts), one of them left out perhaps [row, width]; experts learn nothing from it."""
        with torch.no_grad():
            tokens = [expert[0](x) for number, expert in enumerate(learner.parts["experts"]) if number != without]
        return learner.parts["aggregator"](torch.stack(tokens, 1))

    def stepped(self, learner: Any, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        """phi' = phi - alpha x gradient of MSE(phi(x), t), by name; it can be differentiated by phi (twice) and by t."""
        weights = {name: weight for name, weight in learner.featurizer.named_parameters() if weight.requires_grad}
        if not weights:
            return {}
        with sdpa_kernel(SDPBackend.MATH):  # other kernels of attention have no second derivative
            gap = mse_loss(learner.featurizer(x), target)
        slopes = torch.autograd.grad(gap, list(weights.values()), create_graph=True, materialize_grads=True)
        return {name: weight - self.inner_lr * slope for (name, weight), slope in zip(weights.items(), slopes, strict=True)}

    def adapt(self, learner: Any, x: Tensor) -> Tensor:
        """The first batch since ``reset`` makes the step; it is predicted after it, like all that follow."""
        if "stepped" not in learner.memory:
            rows = x[: self.support]
            weights = self.stepped(learner, rows, self.taught(learner, rows).detach())
            learner.memory["stepped"] = {name: weight.detach() for name, weight in weights.items()}
        with torch.no_grad():
            return self.predict(learner, x)

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """h(phi'(x)); h(phi(x)) before any step [row, class]."""
        return learner.head(functional_call(learner.featurizer, learner.memory.get("stepped", {}), (x,)))


class Aggregator(nn.Module):
    """Features of several experts -> one: blocks of attention and two layers over the experts, layer-norm first, then the mean."""

    def __init__(self, width: int, outputs: int, depth: int, heads: int, dropout: float):
        super().__init__()
        self.blocks = nn.Sequential(*(
            nn.TransformerEncoderLayer(
                width, math.gcd(width, heads), 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        ))  # fmt: skip
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        """[row, expert, width] -> [row, width]."""
        return self.blocks(tokens).mean(1)
