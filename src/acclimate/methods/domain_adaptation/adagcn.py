"""AdaGCN: a network on graphs whose features lie close in both domains by the Wasserstein distance that a critic measures.

Dai et al. 2022, https://arxiv.org/abs/1909.01541; the critic as in Shen et al. 2018 (WDGRL), https://arxiv.org/abs/1707.01217.
For nodes of graphs, but it works on any rows. Slower than a reversed gradient, as the critic learns ``inner`` times a step. The absolute
difference of the critic's means is used, as in PyGDA (https://github.com/pygda-team/pygda).

>>> import torch
>>> critic = torch.nn.Linear(2, 1, bias=False)
>>> _ = critic.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
>>> penalty(critic, torch.zeros(2, 2), torch.ones(3, 2), torch.Generator()).item()  # (5 - 1)^2
16.0
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.heads import mlp


class Adagcn(DomainAdaptation):
    """The critic, and how much its distance counts."""

    weight: Annotated[float, Setting("weight of the distance", 0)] = 1.0
    penalty: Annotated[float, Setting("weight of the penalty on the critic's gradient", 0)] = 5.0
    inner: Annotated[int, Setting("updates of the critic per step", 1)] = 10
    hidden: Annotated[int, Setting("width of the critic's hidden layer", 1)] = 40
    training: ClassVar[dict[str, Any]] = {"lr": 0.004, "steps": 100, "batch": 0}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The critic: one score for features."""
        return {"critic": mlp(learner.width, [self.hidden], 1)}

    def step(self, learner: Any, source: Any, target: Any) -> Iterator[tuple[Tensor, Any]]:
        """The critic parts the domains; then featurizer and head learn classes and bring them together."""
        critic = learner.parts["critic"]
        with torch.no_grad():
            z_s, z_t = learner.features(source.x), learner.features(target.x)
        for _ in range(self.inner):
            yield self.penalty * penalty(critic, z_s, z_t, learner.generator) - distance(critic, z_s, z_t), "critic"
        z_s, z_t = learner.features(source.x), learner.features(target.x)
        yield learner.loss(learner.head(z_s), source.y) + self.weight * distance(critic, z_s, z_t), ("featurizer", "head")


def distance(critic: nn.Module, s: Tensor, t: Tensor) -> Tensor:
    """How far the critic's mean scores of two sets of features lie apart: scalar."""
    return (critic(s).mean() - critic(t).mean()).abs()


def penalty(critic: nn.Module, s: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
    """Mean of (length of the critic's gradient - 1)^2 over both sets and random points between them; the shorter set is repeated."""
    most = max(len(s), len(t))
    share = torch.rand(most, 1, generator=generator).to(s)
    one, other = (z[torch.arange(most, device=z.device) % len(z)] for z in (s, t))
    points = torch.cat([s, t, share * one + (1 - share) * other]).detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    return (slope.norm(dim=1) - 1).square().mean()
