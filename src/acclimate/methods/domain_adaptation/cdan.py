"""CDAN: the domain head sees features together with the predicted classes, and sure rows count more.

Long et al. 2018, equations 5 to 9, https://arxiv.org/abs/1705.10667
Like DANN where features have several clusters, one for each class. The outer product is used up to ``most`` entries, a fixed random
projection beyond (equation 6).

>>> import torch
>>> joint(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.25, 0.75]])).tolist()
[[0.25, 0.5, 0.75, 1.5]]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.certainty import entropy
from ...parts.heads import mlp, reverse, rising


class Cdan(DomainAdaptation):
    """The domain head, and whether sure rows count more."""

    peak: Annotated[float, Setting("largest strength of the reversal (lambda)", 0)] = 1.0
    gamma: Annotated[float, Setting("how fast the strength rises; 0 = the peak from the start", 0)] = 10.0
    hidden: Annotated[tuple, Setting("widths of the domain head's layers; none = a linear one", 1)] = (1024, 1024)
    weigh: Annotated[bool, Setting("rows count by 1 + exp(-entropy): CDAN+E")] = True
    most: Annotated[int, Setting("widest outer product that is not projected", 1)] = 4096
    training: ClassVar[dict[str, Any]] = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "schedule": "inverse", "batch": 64}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The domain head, and the two fixed projections where the product would be too wide."""
        wide = learner.width * learner.classes
        parts: dict[str, nn.Module] = {"domain": mlp(min(wide, self.most), list(self.hidden), 1)}
        if wide > self.most:
            parts["projected"] = nn.ModuleList(
                [nn.Linear(width, self.most, bias=False).requires_grad_(False) for width in (learner.width, learner.classes)]
            )
            for part in parts["projected"].parameters():
                nn.init.normal_(part)
        return parts

    def step(self, learner: Any, source: Any, target: Any) -> Iterator[Tensor]:
        """Class loss on the source + weighted domain loss on both; the predictions carry no gradient."""
        z_s, z_t = learner.features(source.x), learner.features(target.x)
        scores = learner.head(z_s)
        with torch.no_grad():
            both = torch.cat([scores, learner.head(z_t)])
        z, shares = torch.cat([z_s, z_t]), both.softmax(1)
        if "projected" in learner.parts:
            of_z, of_shares = learner.parts["projected"]
            seen = of_z(z) * of_shares(shares) / self.most**0.5
        else:
            seen = joint(z, shares)
        strength = self.peak * rising(learner.progress, self.gamma)
        domain = torch.cat([torch.zeros(len(z_s)), torch.ones(len(z_t))]).to(z)
        told = binary_cross_entropy_with_logits(learner.parts["domain"](reverse(seen, strength))[:, 0], domain, reduction="none")
        weight = 1 + (-entropy(both)).exp() if self.weigh else torch.ones_like(told)
        halves = [(weight[half] * told[half]).sum() / weight[half].sum() for half in (domain == 0, domain == 1)]
        yield learner.loss(scores, source.y) + (halves[0] + halves[1]) / 2


def joint(z: Tensor, shares: Tensor) -> Tensor:
    """Outer products of features [row, width] and class probabilities [row, class] -> [row, class x width]."""
    return (shares.unsqueeze(2) * z.unsqueeze(1)).flatten(1)
