"""CMU: domain-adversarial training weighed by entropy, confidence and agreement of several heads; unknown is what they are unsure of.

Fu et al. 2020, equations 1 to 8, https://doi.org/10.1007/978-3-030-58555-6_34; github.com/thuml/Calibrated-Multiple-Uncertainties
Like UAN where one classifier's entropy is a poor measure. The heads learn on the source from features that they cannot change; the paper
shows each of them other augmentations, here each sees its own draw (with repeats) of the batch's rows, which works for any kind of rows.
Weights of source classes are the mean prediction for target rows that count as common, found anew in every pass. The three measures are
brought to 0 to 1 by their range over all target rows.

>>> import torch
>>> p = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.5, 0.5]]])  # two heads that agree: a sure row, an unsure one
>>> measures(p).round(decimals=3).tolist()  # 1 - entropy, 1 - deviation, confidence
[[1.0, 0.0], [1.0, 1.0], [1.0, 0.5]]
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.heads import HEADS, mlp, reverse, rising
from ...parts.openness import unit, with_unknown


class Cmu(DomainAdaptation):
    """The heads, the domain head and where known ends."""

    heads: Annotated[int, Setting("heads whose uncertainty is measured", 2)] = 5
    weight: Annotated[float, Setting("largest strength of the reversal (lambda)", 0)] = 1.0
    gamma: Annotated[float, Setting("how fast the strength rises; 0 = full from the start", 0)] = 10.0
    hidden: Annotated[tuple, Setting("widths of the domain head's layers; none = a linear one", 1)] = (1024, 1024)
    threshold: Annotated[float, Setting("least weight of a known target row (w0)", 0, 1)] = 0.5
    open: ClassVar[bool] = True
    exempt: ClassVar[dict[str, str]] = {
        "beats_source_only": 'the toy has no class of the target\'s own, where the answer "unknown" can only be wrong'
    }
    training: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "schedule": "inverse", "batch": 32,
    }  # fmt: skip

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The heads, and the domain head."""
        heads = nn.ModuleList([HEADS["linear"](learner.width, learner.classes) for _ in range(self.heads)])
        return {"several": heads, "domain": mlp(learner.width, list(self.hidden), 1)}

    @torch.no_grad()
    def refresh(self, learner: Any, source: Any, target: Any) -> None:
        """The range of each measure over the target, and the weight of each source class."""
        z, scores = learner.outputs(target.x)
        found = measures(self._shares(learner, z))
        learner.memory["range"] = torch.stack([found.amin(1), found.amax(1)])  # [2, measure]
        weights = self.common(learner, z)
        known = weights >= min(self.threshold, float(weights.max()))
        learner.memory["classes"] = unit(scores[known].softmax(1).mean(0))

    def end(self, learner: Any, source: Any, target: Any) -> None:
        """The same with the weights that were kept."""
        self.refresh(learner, source, target)

    def step(self, learner: Any, source: Any, target: Any) -> Iterator[Tensor]:
        """Class loss + weighted domain loss behind the reversal + the heads' own losses."""
        z_s, z_t = learner.features(source.x), learner.features(target.x)
        scores = learner.head(z_s)
        draws = torch.randint(len(source), (self.heads, len(source)), generator=learner.generator)
        own = [cross_entropy(head(z_s.detach()[rows]), source.y[rows]) for head, rows in zip(learner.parts["several"], draws, strict=True)]
        with torch.no_grad():
            w_s, w_t = learner.memory["classes"].to(z_s)[source.y], self.common(learner, z_t)
        strength = self.weight * rising(learner.progress, self.gamma)
        told = learner.parts["domain"](reverse(torch.cat([z_s, z_t]), strength))[:, 0]
        truth = torch.cat([torch.ones(len(z_s)), torch.zeros(len(z_t))]).to(told)
        each = torch.cat([w_s, w_t]) * binary_cross_entropy_with_logits(told, truth, reduction="none")
        played = each[: len(z_s)].mean() + each[len(z_s) :].mean()
        yield learner.loss(scores, source.y) + played + torch.stack(own).mean()

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """The class scores, and how far the weight lies above the least one [row, class + 1]."""
        z = learner.features(x)
        return with_unknown(learner.head(z), self.common(learner, z), self.threshold)

    def common(self, learner: Any, z: Tensor) -> Tensor:
        """w_t [row]: the mean of the three measures, each from 0 to 1."""
        low, high = learner.memory["range"].to(z)
        return torch.stack([unit(*each) for each in zip(measures(self._shares(learner, z)), low, high, strict=True)]).mean(0)

    def _shares(self, learner: Any, z: Tensor) -> Tensor:
        return torch.stack([head(z) for head in learner.parts["several"]]).softmax(2)


def measures(p: Tensor) -> Tensor:
    """Of the heads' probabilities [head, row, class]: 1 - entropy as a share of the largest, 1 - deviation, confidence [3, row]."""
    entropy = -(p * (p + 1e-10).log()).sum(2).mean(0) / math.log(max(2, p.shape[2]))
    return torch.stack([1 - entropy, 1 - p.std(0, unbiased=False).mean(1), p.amax(2).mean(0)])
