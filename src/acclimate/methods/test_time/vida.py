"""ViDA: adapters of rank 1 and of a high rank beside each layer, whose strengths follow the teacher's uncertainty about each batch.

Liu et al. 2024, sections 3.2 and 3.3, https://arxiv.org/abs/2306.04344 ; the factor 0.1 of the uncertainty as in the authors' code
For streams whose domain keeps changing; never reset between domains. Beside linear layers of attention (without any, all linear layers,
or else all convolutions) stand y = W x + s_l U1 D1 x + s_h U2 D2 x: the low rank for what domains share, the high one for what is
particular to the present one. Where the teacher's scores vary over views (u >= ``threshold``) the high rank counts 1 + u and the low one
1 - u, else the other way round. Train the model with this method on the source for a short time first. All weights learn from the
teacher, adapters at a rate of their own; predictions are the teacher's on the rows as they are. Differs: the student learns the mean over
views, as in CoTTA; the authors' code for classification teaches scores of the rows themselves (``target`` = rows), from which a student
that equals its teacher has no gradient; that code also leaves s_h at 1, which this does not; views are those of CoTTA; batch-norm, where
there is one, normalises by the batch. Left out: adding adapters up with W afterwards.

>>> import torch
>>> from acclimate.engines.shift import Learner
>>> learner, method = Learner(torch.nn.Linear(2, 2), 2, width=2), Vida(strength=0.0)
>>> learner.parts.update(method.build(learner)); method.begin(learner, None, None)
>>> _ = next(method.adapt(learner, torch.zeros(3, 2)))
>>> learner.memory["trace"][-1], method.strengths(0.25), method.strengths(0.125)  # equal views: u = 0
([0.0, 1.0, 1.0], (0.75, 1.25), (1.125, 0.875))
"""

import copy
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ...kinds import TestTime
from ...method import Setting
from ...parts.norms import batch_statistics
from ...parts.teachers import cross_entropy_of, follow, restore, teacher_of
from ...parts.two_ranks import TwoRanks, adaptable, adapted
from ...parts.views import random_view


class Vida(TestTime):
    """Ranks, uncertainty, and how teacher and student move."""

    low: Annotated[int, Setting("rank of the adapter for what domains share; 0 = none", 0)] = 1
    high: Annotated[int, Setting("rank of the adapter for the present domain; 0 = none", 0)] = 128
    views: Annotated[int, Setting("augmented views whose scores the teacher compares (N)", 2)] = 10
    threshold: Annotated[float, Setting("uncertainty from which the high rank counts more; 0.05 for CIFAR", 0)] = 0.2
    target: Annotated[
        str, Setting("teacher's scores that the student learns: means over views, or of the rows", choices=("views", "rows"))
    ] = "views"
    allot: Annotated[bool, Setting("whether strengths follow the uncertainty; off = 1 and 1")] = True
    keep: Annotated[float, Setting("share of the teacher's network that stays at every step", 0, 1)] = 0.999
    keep_adapters: Annotated[float, Setting("share of the teacher's adapters that stays at every step", 0, 1)] = 0.999
    fall_back: Annotated[float, Setting("chance of a weight to return to its source value", 0, 1)] = 0.01
    strength: Annotated[float, Setting("how much the views are changed", 0)] = 1.0
    at: Annotated[tuple, Setting("names of the featurizer's layers that get adapters; none = as the text above says")] = ()
    online: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 1e-4, "rates": {"adapters": 0.1}}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """Adapters of the student, and the teacher's network and adapters."""
        layers = dict(learner.featurizer.named_modules())
        names = self._names(learner) if self.low or self.high else []
        adapters = nn.ModuleList(TwoRanks(layers[name], self.low, self.high) for name in names)
        taught = {
            "teacher": teacher_of(learner.featurizer, learner.head),
            "teacher_adapters": copy.deepcopy(adapters).requires_grad_(False),
        }
        return {"adapters": adapters, **taught}

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """Teacher and student are equal; the weights to fall back to."""
        learner.parts["teacher"].load_state_dict(teacher_of(learner.featurizer, learner.head).state_dict())
        learner.parts["teacher_adapters"].load_state_dict(learner.parts["adapters"].state_dict())
        learner.memory["source"] = {name: weight.detach().clone() for name, weight in learner.named_parameters() if weight.requires_grad}
        learner.memory["trace"] = []  # [u, s_l, s_h] of each batch

    def step(self, learner: Any, domains: Any) -> Iterator[Tensor]:
        """Network and adapters learn the sources together."""
        yield learner.loss(self.predict(learner, domains.x), domains.y)

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """The student's scores."""
        with adapted(learner.featurizer, self._names(learner), learner.parts["adapters"], self._scales(learner)):
            return learner(x)

    def taught(self, learner: Any, x: Tensor) -> Tensor:
        """The teacher's scores."""
        teacher = learner.parts["teacher"]
        with torch.no_grad(), adapted(teacher[0], self._names(learner), learner.parts["teacher_adapters"], self._scales(learner)):
            return teacher(x)

    def adapt(self, learner: Any, x: Tensor) -> Any:
        """Strengths from the teacher's views, cross-entropy against the teacher; then the teacher follows and weights fall back."""
        with batch_statistics(learner):
            views = torch.stack([self.taught(learner, random_view(x, learner.generator, self.strength)) for _ in range(self.views)])
            if self.allot:
                u = 0.1 * views.var(0).mean().item()
                learner.memory["trace"].append([u, *self.strengths(u)])
            taught, scores = self.taught(learner, x), self.predict(learner, x)
        yield cross_entropy_of(views.mean(0) if self.target == "views" else taught, scores).mean()
        parts = learner.parts
        follow(parts["teacher"].parameters(), [*learner.featurizer.parameters(), *learner.head.parameters()], self.keep)
        follow(parts["teacher_adapters"].parameters(), parts["adapters"].parameters(), self.keep_adapters)
        weights = {name: weight for name, weight in learner.named_parameters() if weight.requires_grad}
        restore(weights, learner.memory["source"], self.fall_back, learner.generator)
        return taught

    def strengths(self, u: float) -> tuple[float, float]:
        """(s_l, s_h) at an uncertainty."""
        return (1 - u, 1 + u) if u >= self.threshold else (1 + u, 1 - u)

    def _scales(self, learner: Any) -> tuple[float, ...]:
        trace = learner.memory.get("trace")
        return tuple(trace[-1][1:]) if trace else (1.0, 1.0)

    def _names(self, learner: Any) -> list[str]:
        return (list(self.at) or adaptable(learner.featurizer)) if self.low or self.high else []
