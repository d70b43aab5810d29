"""LwF: keeps answering the new task's rows as the model before it did, for the classes it knew.

Li & Hoiem 2016, equations 1 to 3, https://arxiv.org/abs/1606.09282
No rows are kept. Works where the new rows resemble the old ones; otherwise the old model's answers on them say little.

>>> import torch
>>> a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
>>> round(distilled(a, b, 2.0).item(), 4)  # cross-entropy of (p, 1 - p) with (1/2, 1/2) is log 2, whatever p
0.6931
"""

from collections.abc import Iterator
from typing import Annotated, Any

from torch import Tensor, nn

from ...kinds import Continual
from ...method import Setting
from ...parts.teachers import cross_entropy_of, teacher_of


class Lwf(Continual):
    """How much the old answers count."""

    weight: Annotated[float, Setting("weight of the old answers (lambda)", 0)] = 1.0
    temperature: Annotated[float, Setting("both are softened by it (T)", 0)] = 2.0

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The model before the task."""
        return {"before": teacher_of(learner.featurizer, learner.head)}

    def before(self, learner: Any, task: Any) -> None:
        """The model as it is now, and the classes it knows."""
        if "before" in learner.parts:
            learner.parts["before"].load_state_dict(teacher_of(learner.featurizer, learner.head).state_dict())
        known = learner.memory.get("coming", [])
        learner.memory["known"] = list(known)
        learner.memory["coming"] = sorted({*known, *task.classes})

    def step(self, learner: Any, domains: Any) -> Iterator[Tensor]:
        """Loss on the task + cross-entropy with the old answers, over the classes that were known."""
        scores, known = learner(domains.x), learner.memory.get("known", [])
        loss = learner.loss(scores, domains.y)
        if known:
            loss = loss + self.weight * distilled(learner.parts["before"](domains.x)[:, known], scores[:, known], self.temperature)
        yield loss


def distilled(old: Tensor, new: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of softened answers [row, class]: scalar."""
    return cross_entropy_of(old / temperature, new / temperature).mean()
