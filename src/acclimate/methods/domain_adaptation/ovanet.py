"""OVANet: a head per class that says whether a row is of this class or of any other; unknown is what the best class's head refuses.

Saito & Saenko 2021, equations 1 to 4, https://arxiv.org/abs/2104.03344
For targets with classes of their own: the border between known and unknown is learned from the source classes, each of which is unknown to
the others, so nothing is left to be tuned. Only the nearest wrong class learns from a source row (hard negatives). As in the authors' code
both halves of that loss count one half.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> learner.parts.update(Ovanet().build(learner)); _ = torch.nn.init.zeros_(learner.parts["each"].weight)
>>> source = Batch(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1), torch.arange(1), [1])
>>> target = Batch(torch.ones(1, 2), None, torch.ones(1), torch.arange(1), [1])
>>> [round(loss.item(), 4) for loss in Ovanet().step(learner, source, target)]  # log 2 three times, the last (entropy) a tenth
[1.4556]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import logsigmoid, one_hot

from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.openness import with_unknown


class Ovanet(DomainAdaptation):
    """How much the target's entropy counts, and where known ends."""

    weight: Annotated[float, Setting("weight of the target's entropy under the heads of all classes (lambda)", 0)] = 0.1
    threshold: Annotated[float, Setting("least probability of the best class's head for a known row", 0, 1)] = 0.5
    open: ClassVar[bool] = True
    exempt: ClassVar[dict[str, str]] = {
        "beats_source_only": 'the toy has no class of the target\'s own, where the answer "unknown" can only be wrong'
    }
    training: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "schedule": "inverse", "batch": 36,
    }  # fmt: skip

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """Two scores per class: this class, any other."""
        return {"each": nn.Linear(learner.width, 2 * learner.classes, bias=False)}

    def step(self, learner: Any, source: Any, target: Any) -> Iterator[Tensor]:
        """Class loss + one against all with the hardest negative on the source; sure heads on the target."""
        z = learner.features(source.x)
        logits, own = self.known(learner, z), one_hot(source.y, learner.classes).bool()
        positive = -logsigmoid(logits)[own]
        negative = (-logsigmoid(-logits)).masked_fill(own, 0.0).amax(1)  # of the hardest other class
        loss = learner.loss(learner.head(z), source.y) + (positive.mean() + negative.mean()) / 2
        logits = self.known(learner, learner.features(target.x))
        p = logits.sigmoid()
        unsure = -(p * logsigmoid(logits) + (1 - p) * logsigmoid(-logits))
        yield loss + self.weight * unsure.mean()

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """The closed head's scores, and whether its best class's own head knows the row [row, class + 1]."""
        z = learner.features(x)
        scores = learner.head(z)
        known = self.known(learner, z).sigmoid().gather(1, scores.argmax(1, keepdim=True))[:, 0]
        return with_unknown(scores, known, self.threshold)

    def known(self, learner: Any, z: Tensor) -> Tensor:
        """Log-odds of being of each class rather than of any other [row, class]: the softmax over a class's two scores."""
        this, other = learner.parts["each"](z).chunk(2, 1)
        return this - other
