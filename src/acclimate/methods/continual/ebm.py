"""EBM: scores every pair of a row and a label by an energy, and contrasts the true label with one other of the task at hand.

Li et al. 2022, equations 3 to 6, https://arxiv.org/abs/2011.12216; gates, widths and the draw of labels as in the authors' code,
github.com/ShuangLI59/ebm-continual-learning
For new classes over time without kept rows: a label that is not drawn has no part in the loss, so what it knows is hardly touched. The
label enters in the middle of the network: the featurizer should end in a linear layer (Linear, not Linear and ReLU). Rows that are kept
are contrasted with labels of their own task, and springs (EWC) may be added. ``pool`` = "batch" needs no borders between tasks
(engines/borderless.py); the paper then has 2 gated layers. Left out: penalties by synaptic intelligence, which need the way of the weights.
``where`` = "late" with all labels of the task is the usual classifier with softmax over the task's classes.

>>> import torch
>>> from acclimate.engines.shift import Learner
>>> learner, method = Learner(torch.nn.Identity(), 3, width=2), Ebm(where="late", negatives="all", pool="batch")
>>> learner.parts.update(method.build(learner))
>>> with torch.no_grad():
...     _ = learner.parts["energy"].label.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]))
>>> x, y = torch.eye(2), torch.tensor([0, 1])  # -1 + log(e + 1): the third label is not in the batch
>>> round(method.contrast(learner, x, y).item(), 4)
0.3133
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ...kinds import Continual
from ...method import Setting
from ...parts.continual import ewc_penalty, faded, fisher
from ...parts.energies import Energy

ROWS = 256  # of a task, that importance is taken over


class Scores(nn.Module):
    """-E of some labels [label] for rows, with the learner's weights under their names there: what importance is taken of."""

    def __init__(self, method: Any, learner: Any, labels: Tensor):
        super().__init__()
        self.method, self.featurizer, self.parts, self.labels = method, learner.featurizer, learner.parts, labels

    def features(self, x: Tensor) -> Tensor:
        """As the learner's, without dropout."""
        return self.featurizer(x)

    def forward(self, x: Tensor) -> Tensor:
        """[row, *shape] -> [row, label]."""
        return -self.method.energy(self, x, self.labels.expand(len(x), -1))


class Ebm(Continual):
    """Where the label enters, what it is contrasted with, and how stiff springs are."""

    gate: Annotated[
        str, Setting("what the label does: norm for vectors (with ReLU), softmax on convolutions", choices=("norm", "softmax"))
    ] = "norm"
    where: Annotated[str, Setting("where it enters: the rows, the features, the output", choices=("early", "middle", "late"))] = "middle"
    layers: Annotated[int, Setting("gated layers, the featurizer's last one counted; the paper takes 2 without borders", 1)] = 1
    pool: Annotated[
        str, Setting("where other labels come from: the row's task, the batch, all seen", choices=("task", "batch", "seen"))
    ] = "task"
    negatives: Annotated[str, Setting("contrast with one other label, drawn, or with all of them", choices=("one", "all"))] = "one"
    strength: Annotated[float, Setting("stiffness of EWC's springs; 0 = none", 0)] = 0.0
    training: ClassVar[dict[str, Any]] = {"steps": 2000, "batch": 128, "lr": 1e-4}
    exempt: ClassVar[dict[str, str]] = {
        "first_task_is_plain_training": "the label enters inside the network and the loss contrasts two labels, from the first task on"
    }

    @property
    def borders(self) -> bool:
        """Whether it must be told where a task ends."""
        return self.pool == "task" or self.strength > 0

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The energy on the featurizer."""
        inputs = learner.sample[0].numel() if self.where == "early" else 0
        return {"energy": Energy(learner.classes, learner.width, self.gate, self.where, self.layers, inputs)}

    def energy(self, learner: Any, x: Tensor, labels: Tensor) -> Tensor:
        """E(x, y) of labels [row, label]; the network up to the gate runs once for all of them."""
        part = learner.parts["energy"]
        if self.where != "early":
            return part(learner.features(x), labels)
        x = part.gated(x.flatten(1)[:, None], labels).view(-1, *x.shape[1:])
        return part(learner.features(x).view(*labels.shape, -1), labels)

    def before(self, learner: Any, task: Any) -> None:
        """Which classes are taught together [class, class]."""
        table = learner.memory.setdefault("fellows", torch.eye(learner.classes, dtype=torch.bool, device=learner.device))
        own = list(task.classes)
        table[own] = False
        table[torch.tensor(own)[:, None], torch.tensor(own)] = True

    def others(self, learner: Any, y: Tensor) -> Tensor:
        """Which labels each row may be contrasted with [row, class]."""
        here = torch.zeros(learner.classes, dtype=torch.bool, device=y.device).index_fill_(0, y, True)
        if self.pool == "task" and "fellows" in learner.memory:
            found = learner.memory["fellows"][y]
        else:
            if self.pool == "seen":
                here = learner.memory["seen"] = here | learner.memory.get("seen", here)
            found = here.expand(len(y), -1)
        return found & ~one_hot(y, learner.classes).bool()

    def contrast(self, learner: Any, x: Tensor, y: Tensor) -> Tensor:
        """Mean of E(x, y) + log of the sum of exp(-E) over y and the labels it is contrasted with (equations 5 and 6)."""
        other = self.others(learner, y)
        if self.negatives == "one":  # the first by lot; a row without any other label gets its own, which gives no gradient
            lots = torch.rand(other.shape, generator=learner.generator).type_as(y.float())
            drawn = torch.where(other.any(1), lots.masked_fill(~other, -1.0).argmax(1), y)
            energy = self.energy(learner, x, torch.stack([y, drawn], 1))
        else:
            used = other.any(0).nonzero()[:, 0].expand(len(y), -1)
            energy = self.energy(learner, x, torch.cat([y[:, None], used], 1))
            energy = torch.cat([energy[:, :1], energy[:, 1:].masked_fill(~other.gather(1, used), torch.inf)], 1)
        return (energy[:, 0] + (-energy).logsumexp(1)).mean()

    def step(self, learner: Any, domains: Any, replay: Any = None) -> Iterator[Tensor]:
        """The contrast, on kept rows as well where there are some, and springs."""
        parts = [self.contrast(learner, batch.x, batch.y) for batch in (domains, replay) if batch is not None]
        loss = sum(parts, torch.zeros(())) / len(parts)
        if "anchors" in learner.memory:
            weights = dict(learner.named_parameters())
            loss = loss + ewc_penalty(weights, learner.memory["anchors"], learner.memory["importance"], self.strength)
        yield loss

    def after(self, learner: Any, task: Any) -> None:
        """Anchors and importance for the springs; labels are drawn from the model's own answers among the task's classes."""
        if not self.strength:
            return
        x = task.batch.x[torch.randperm(len(task.batch), generator=learner.generator)[:ROWS]]
        net = Scores(self, learner, torch.tensor(task.classes)).eval()
        with torch.no_grad():
            y = torch.multinomial(net(x).softmax(1), 1, generator=learner.generator)[:, 0]
        learner.memory["importance"] = faded(learner.memory.get("importance", {}), fisher(net, x, y), 1.0)
        learner.memory["anchors"] = {name: value.detach().clone() for name, value in net.named_parameters()}

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """-E of every class [row, class]: the least energy is the answer."""
        return -self.energy(learner, x, torch.arange(learner.classes, device=x.device).expand(len(x), -1))
