"""Self-mixup: trains on rows mixed with their own translation into a generic domain, edges or domain-neutral features.

Kundu et al. 2022, section 4, https://arxiv.org/abs/2206.08009: the vendor's phase, which makes the source model that
domain_adaptation.sfda_mixup adapts. A row is mixed with itself, never with another one, and keeps its label.
``level`` "input" mixes an image with its edge map: the paper's edge detector is pretrained (DexiNed); here it is Sobel's at three scales.
"feature" works on any rows: a translator learns to hide from a domain head which pseudo-domain a row was moved to, the class loss still
holding. How the paper makes its pseudo-domains and builds its translator is not published with code; here each one scales and shifts the
channels in a way of its own (the first leaves rows as they are), the translator adds a hidden layer's output to its input, and the
adversarial gradient reaches the translator alone.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> domains = Batch(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), torch.tensor([0]), torch.arange(1), [1])
>>> method = SelfMixup(views=1)  # one pseudo-domain cannot be told: only the class counts, of the mixture and of the translation
>>> learner.parts.update(method.build(learner)); method.begin(learner, domains, None)
>>> [round(loss.item(), 4) for loss in method.step(learner, domains)]  # 2 (log(e + 1) - 1 + 0.05)
[0.7265]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...kinds import DomainGeneralization
from ...method import Setting
from ...parts.generic import LEVELS, Mixed, Translator, mixture
from ...parts.heads import mlp, reverse
from ...parts.mixing import only_numbers


class SelfMixup(DomainGeneralization):
    """Where rows are mixed, in what share, and what the translator learns from."""

    level: Annotated[str, Setting("mix features with their translation, or images with their edges", choices=LEVELS)] = "feature"
    share: Annotated[float, Setting("share of the row itself in the mixture (lambda)", 0, 1)] = 0.9
    smoothing: Annotated[float, Setting("label smoothing of the source model", 0, 1)] = 0.1
    views: Annotated[int, Setting("pseudo-domains, the rows as they are among them; 1 = no augmentation", 1)] = 4
    strength: Annotated[float, Setting("how far a pseudo-domain scales and shifts a channel, at most", 0)] = 0.5
    neutral: Annotated[float, Setting("weight of the domain head that the translator hides from", 0)] = 1.0
    hidden: Annotated[int, Setting("width of the domain head's hidden layer", 1)] = 64
    training: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "schedule": "inverse", "batch": 64,
    }  # fmt: skip

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The translator and the domain head it hides from."""
        if self.level == "input":
            return {}
        return {"translator": Translator(learner.width), "domain": mlp(learner.width, [self.hidden], self.views)}

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """What each pseudo-domain multiplies a channel by and adds to it [view, channel]; nothing in the first."""
        only_numbers(source.x)
        channels = source.x.transpose(0, 1).flatten(1)  # [channel, value]
        mean, deviation = channels.mean(1), channels.std(1, unbiased=False)
        drawn = self.strength * (2 * torch.rand(2, self.views, len(channels), generator=learner.generator) - 1).to(mean)
        drawn[:, 0] = 0
        learner.memory |= {"times": 1 + drawn[0], "plus": drawn[1] * deviation - drawn[0] * mean}

    def step(self, learner: Any, domains: Any) -> Iterator[Tensor]:
        """Class loss on mixtures; at the feature level also on translations, whose pseudo-domain a head tries to tell."""
        which = torch.randint(self.views, (len(domains),), generator=learner.generator)
        wide = (-1, domains.x.shape[1], *[1] * (domains.x.ndim - 2))
        x = domains.x * learner.memory["times"][which].view(wide) + learner.memory["plus"][which].view(wide)
        if self.level == "input":
            yield self.right(Mixed(learner, self.level, self.share)(x), domains.y)
            return
        z, translate = learner.features(x), learner.parts["translator"]
        generic = translate(z)
        scores = learner.head(mixture(z, generic, self.share)), learner.head(generic)
        told = cross_entropy(learner.parts["domain"](reverse(translate(z.detach()))), which)
        yield sum(self.right(each, domains.y) for each in scores) + self.neutral * told

    def right(self, scores: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy with smoothed labels."""
        return cross_entropy(scores, y, label_smoothing=self.smoothing)

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """Scores of the mixture."""
        return Mixed(learner, self.level, self.share)(x)
