"""CoTTA: learns from a slow copy of itself that looks at several views, and lets a few weights fall back to the source.

Wang et al. 2022, algorithm 1, https://arxiv.org/abs/2203.13591
For streams whose domain keeps changing. The teacher's prediction is averaged over views only where the source model is unsure
(``threshold``). All weights learn; predictions are the teacher's.

>>> import torch
>>> from acclimate.engines.shift import Learner
>>> learner = Learner(torch.nn.Linear(2, 2), 2, width=2)
>>> method = Cotta(views=2)
>>> learner.parts.update(method.build(learner)); method.begin(learner, None, None)
>>> loss = next(method.adapt(learner, torch.zeros(3, 2)))
>>> loss.ndim, bool(loss >= 0)
(0, True)
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ...kinds import TestTime
from ...method import Setting
from ...parts.norms import batch_statistics
from ...parts.teachers import cross_entropy_of, follow, restore, teacher_of
from ...parts.views import random_view


class Cotta(TestTime):
    """Views, the teacher's slowness, and how many weights fall back."""

    views: Annotated[int, Setting("augmented views that the teacher looks at where the source model is unsure (N)", 1)] = 32
    threshold: Annotated[float, Setting("mean sureness of the source model below which views are used (p_th)", 0, 1)] = 0.92
    keep: Annotated[float, Setting("share of the teacher that stays at every step (alpha)", 0, 1)] = 0.999
    fall_back: Annotated[float, Setting("chance of a weight to return to its source value (p)", 0, 1)] = 0.01
    strength: Annotated[float, Setting("how much the views are changed", 0)] = 1.0
    online: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 1e-3}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The teacher, and the source model that says how hard the batch is."""
        return {name: teacher_of(learner.featurizer, learner.head) for name in ("teacher", "anchor")}

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """The weights to fall back to."""
        for part in (learner.parts["teacher"], learner.parts["anchor"]):
            part.load_state_dict(teacher_of(learner.featurizer, learner.head).state_dict())
        learner.memory["source"] = {name: weight.detach().clone() for name, weight in learner.named_parameters() if weight.requires_grad}

    def adapt(self, learner: Any, x: Tensor) -> Iterator[Tensor]:
        """Cross-entropy against the teacher; then the teacher follows and weights fall back."""
        teacher, anchor = learner.parts["teacher"], learner.parts["anchor"]
        with torch.no_grad(), batch_statistics(learner):
            taught = teacher(x)
            if anchor(x).softmax(1).amax(1).mean() < self.threshold:
                taught = torch.stack([teacher(random_view(x, learner.generator, self.strength)) for _ in range(self.views)]).mean(0)
        with batch_statistics(learner):
            scores = learner(x)
        yield cross_entropy_of(taught, scores).mean()
        follow(teacher.parameters(), [*learner.featurizer.parameters(), *learner.head.parameters()], self.keep)
        weights = {name: weight for name, weight in learner.named_parameters() if weight.requires_grad}
        restore(weights, learner.memory["source"], self.fall_back, learner.generator)
        return taught
