"""UAN: domain-adversarial training in which rows count by how likely their class is common to source and target; the rest is unknown.

You et al. 2019, equations 1 to 8, https://openaccess.thecvf.com/content_CVPR_2019/papers/You_Universal_Domain_Adaptation_CVPR_2019_paper.pdf
A row's weight is its similarity to the other domain (by a second domain head, which the encoder does not see) and how unsure its class is
on the source, how sure on the target. Weak where target features look unlike the source's altogether: then hardly anything stays known.
Weights are brought to 0 to 1 and to a mean of 1 in each batch, as in the authors' code, whose temperature of the source's class scores is
left out. ``threshold`` is their threshold; it is not tuned on labels of the target.

>>> import torch
>>> from acclimate.engines.shift import Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> learner.parts["similar"] = torch.nn.Linear(2, 1); _ = [torch.nn.init.zeros_(p) for p in learner.parts["similar"].parameters()]
>>> x = torch.tensor([[9.0, 0.0], [0.0, 0.0]])  # similar by a half; entropies 0 and 1: weights 0.5 and -0.5
>>> Uan(threshold=0.0).predict(learner, x).argmax(1).tolist()
[0, 2]
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.certainty import entropy
from ...parts.heads import mlp, reverse, rising
from ...parts.openness import unit, with_unknown


class Uan(DomainAdaptation):
    """The two domain heads, the game between one of them and the encoder, and where known ends."""

    weight: Annotated[float, Setting("largest strength of the reversal (lambda)", 0)] = 1.0
    gamma: Annotated[float, Setting("how fast the strength rises; 0 = full from the start", 0)] = 10.0
    hidden: Annotated[tuple, Setting("widths of the domain heads' layers; none = linear ones", 1)] = (1024, 1024)
    threshold: Annotated[float, Setting("least weight of a known target row (w0)", -1, 1)] = -0.5
    open: ClassVar[bool] = True
    exempt: ClassVar[dict[str, str]] = {
        "beats_source_only": 'the toy has no class of the target\'s own, where the answer "unknown" can only be wrong'
    }
    training: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "schedule": "inverse", "batch": 36,
    }  # fmt: skip

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """Two domain heads, for source: D that the encoder plays against, and D' (similar)."""
        return {name: mlp(learner.width, list(self.hidden), 1) for name in ("domain", "similar")}

    def step(self, learner: Any, source: Any, target: Any) -> Iterator[Tensor]:
        """Class loss + weighted domain loss behind the reversal + the other domain head's own loss, on features it cannot change."""
        z_s, z_t = learner.features(source.x), learner.features(target.x)
        scores = learner.head(z_s)
        strength = self.weight * rising(learner.progress, self.gamma)
        domain, similar = learner.parts["domain"], learner.parts["similar"]
        with torch.no_grad():
            w_s = balanced(-self.common(learner, z_s, scores))
            w_t = balanced(self.common(learner, z_t, learner.head(z_t)))
        played = (w_s * told(domain(reverse(z_s, strength)), 1)).mean() + (w_t * told(domain(reverse(z_t, strength)), 0)).mean()
        seen = told(similar(z_s.detach()), 1).mean() + told(similar(z_t.detach()), 0).mean()
        yield learner.loss(scores, source.y) + played + seen

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """The class scores, and how far the weight lies above the least one [row, class + 1]."""
        z = learner.features(x)
        scores = learner.head(z)
        return with_unknown(scores, self.common(learner, z, scores), self.threshold)

    def common(self, learner: Any, z: Tensor, scores: Tensor) -> Tensor:
        """w_t [row]: D' (is it like the source?) less the entropy as a share of the largest; w_s is minus that."""
        return learner.parts["similar"](z)[:, 0].sigmoid() - entropy(scores) / math.log(max(2, learner.classes))


def balanced(weights: Tensor) -> Tensor:
    """Weights of a batch from 0 up, 1 in the mean [row]."""
    spread = unit(weights)
    return spread / spread.mean().clamp(min=1e-6)


def told(scores: Tensor, side: int) -> Tensor:
    """Each row's loss of a domain head [row], the source being 1."""
    return binary_cross_entropy_with_logits(scores[:, 0], torch.full_like(scores[:, 0], side), reduction="none")
