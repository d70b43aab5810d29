"""DANN: features that tell the classes apart and not the domains, by a domain head behind a gradient reversal.

Ganin et al. 2016, equations 9 to 18, https://arxiv.org/abs/1505.07818; first as Ganin & Lempitsky 2015, https://arxiv.org/abs/1409.7495
The reference among adversarial methods. Of little use where classes have other shares in the target. The reversal's strength rises for the
encoder alone; the domain head learns at full rate (``scaled`` gives it the paper's other form). ``domains`` = "all" tells every domain
from every other, which also works without a target (generalization).
The shallow form (equation 9, algorithm 1) is a featurizer of one sigmoid layer (models/mlp) with ``hidden`` = (), ``gamma`` = 0 and
``scaled``; as the domain loss is here the mean over all rows, and there the sum of two means, ``peak`` is twice its lambda. Settings are
chosen without labels of the target by ``engines.shift.reverse_risk``; ``parts.discrepancy.proxy_a_distance`` of features before and after,
and ``domain_error`` in training, tell whether the domains came nearer.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> learner.parts["domain"] = torch.nn.Linear(2, 1).requires_grad_(False)
>>> _ = [p.zero_() for p in learner.parts.domain.parameters()]
>>> source = Batch(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0]), torch.arange(1), [1])
>>> target = Batch(torch.ones(1, 2), None, torch.tensor([1]), torch.arange(1), [1])
>>> [round(loss.item(), 4) for loss in Dann().step(learner, source, target)]  # log 2 for the class, log 2 for the domain
[1.3863]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from ...errors import AcclimateError
from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.heads import mlp, reverse, rising


class Dann(DomainAdaptation):
    """The domain head and how strongly its gradient is reversed."""

    peak: Annotated[float, Setting("largest strength of the reversal (lambda)", 0)] = 1.0
    gamma: Annotated[float, Setting("how fast the strength rises; 0 = the peak from the start", 0)] = 10.0
    hidden: Annotated[tuple, Setting("widths of the domain head's layers; none = a linear one", 1)] = (1024, 1024)
    domains: Annotated[str, Setting("tell source from target, or all domains from each other", choices=("two", "all"))] = "two"
    scaled: Annotated[bool, Setting("the domain head's loss is multiplied by the strength too")] = False
    training: ClassVar[dict[str, Any]] = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "schedule": "inverse", "batch": 64}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The domain head: one score, or one per domain."""
        outputs = 1 if self.domains == "two" else len(learner.domains)
        return {"domain": mlp(learner.width, list(self.hidden), outputs)}

    def step(self, learner: Any, source: Any, target: Any = None) -> Iterator[Tensor]:
        """Class loss on the source + domain loss on all rows, whose gradient is turned round for the encoder."""
        if target is None and self.domains == "two":
            raise AcclimateError('there is no target to tell from the source; give one, or set domains = "all"')
        strength = self.peak * rising(learner.progress, self.gamma)
        z = learner.features(source.x)
        every = z if target is None else torch.cat([z, learner.features(target.x)])
        turned = reverse(every, 1.0 if self.scaled else strength)
        told = self._told(learner.parts["domain"](turned), source, target)
        yield learner.loss(learner.head(z), source.y) + (strength if self.scaled else 1.0) * told

    @torch.no_grad()
    def domain_error(self, learner: Any, source: Tensor, target: Tensor) -> float:
        """How often the domain head takes rows of one for rows of the other, each domain counting half: 0.5 where it cannot tell."""
        if self.domains != "two":
            raise AcclimateError('domain_error tells source from target, but this head tells all domains apart; set domains = "two"')
        head = learner.parts["domain"]
        wrong = [(head(learner.outputs(x)[0])[:, 0] > 0) != side for side, x in enumerate((source, target))]
        return float(sum(each.float().mean() for each in wrong) / 2)

    def _told(self, scores: Tensor, source: Any, target: Any) -> Tensor:
        if self.domains == "all":
            return cross_entropy(scores, source.domain if target is None else torch.cat([source.domain, target.domain]))
        from_target = torch.arange(len(scores), device=scores.device) >= len(source)
        return binary_cross_entropy_with_logits(scores[:, 0], from_target.to(scores.dtype))
