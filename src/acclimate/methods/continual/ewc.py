"""EWC: weights that mattered for earlier tasks are held back by springs.

Kirkpatrick et al. 2017, equation 3, https://arxiv.org/abs/1612.00796; with one sum over tasks as Schwarz et al. 2018,
https://arxiv.org/abs/1805.06370 (``fade`` = 1 adds up, below 1 forgets slowly)
No rows are kept. Helps where tasks share their classes; with new classes and no task labels it does little.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=1, head=torch.nn.Linear(1, 2, bias=False))
>>> _ = learner.head.weight.data.zero_()
>>> learner.memory.update(anchors={"head.weight": torch.ones(2, 1)}, importance={"head.weight": torch.ones(2, 1)})
>>> batch = Batch(torch.zeros(1, 1), torch.tensor([0]), torch.zeros(1), torch.arange(1), [1])
>>> [round(loss.item(), 4) for loss in Ewc(strength=3.0).step(learner, batch)]  # log 2 + 3 / 2 x (1 + 1)
[3.6931]
"""

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from torch import Tensor

from ...kinds import Continual
from ...method import Setting
from ...parts.continual import ewc_penalty, faded, fisher


class Ewc(Continual):
    """How stiff the springs are."""

    strength: Annotated[float, Setting("stiffness of the springs (lambda)", 0)] = 400.0
    fade: Annotated[float, Setting("what is left of earlier importance after each task (gamma)", 0, 1)] = 1.0
    rows: Annotated[int, Setting("rows of a task that importance is taken over", 1)] = 256

    def step(self, learner: Any, domains: Any) -> Iterator[Tensor]:
        """Loss on the task + springs."""
        loss = learner.loss(learner(domains.x), domains.y)
        if "anchors" in learner.memory:
            loss = loss + ewc_penalty(
                dict(learner.named_parameters()), learner.memory["anchors"], learner.memory["importance"], self.strength
            )
        yield loss

    def after(self, learner: Any, task: Any) -> None:
        """New anchors; importance by labels that the model itself draws."""
        batch = task.batch
        rows = torch.randperm(len(batch), generator=learner.generator)[: self.rows]
        x = batch.x[rows]
        y = torch.multinomial(learner.outputs(x)[1].softmax(1), 1, generator=learner.generator)[:, 0]
        learner.eval()
        new = fisher(learner, x, y)
        learner.memory["importance"] = faded(learner.memory.get("importance", {}), new, self.fade)
        learner.memory["anchors"] = {name: dict(learner.named_parameters())[name].detach().clone() for name in new}
