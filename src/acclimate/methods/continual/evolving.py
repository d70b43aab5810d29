"""Incremental self-training: a classifier follows a stream period by period, each model labelling the next period's rows for its successor.

Chuang et al. 2023, https://arxiv.org/abs/2311.09661
For a task whose texts change with time, with labels for the first period alone: train on period 0; for each later one the model of the
period before labels its rows, the sure ones go into a buffer beside the labelled period, and a model is trained on the buffer from the
base weights (``restart``) or onwards. Works while each step is small: what is labelled wrong is handed on. The paper's controls are
settings: ``teacher`` = "first" with ``window`` = 1 is one-shot self-training, ``window`` = 1 without ``anchor`` and ``restart`` gradual
self-training without a buffer. What share is kept and how long could not be checked against the paper: both are ours. Left out: labels by a
prompted language model. A period that has labels goes into the buffer with them.

>>> import torch
>>> probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
>>> Evolving(share=0.5).kept(probabilities).tolist()  # two of the three of class 0, the one of class 1
[True, False, True, True]
>>> int(Evolving(choose="threshold", sure=0.75).kept(probabilities).sum())
2
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ...kinds import Continual
from ...method import Setting


class Evolving(Continual):
    """Who labels, what is kept and for how long, and where each model begins."""

    teacher: Annotated[
        str, Setting("who labels a period: the model of the one before, or the first one", choices=("previous", "first"))
    ] = "previous"
    choose: Annotated[str, Setting("rows kept: a share of each class, or those above a threshold", choices=("share", "threshold"))] = (
        "share"
    )
    share: Annotated[float, Setting("share of the rows of each class that is kept, surest first", 0, 1)] = 0.5
    sure: Annotated[float, Setting("least probability of rows that are kept (tau)", 0, 1)] = 0.9
    window: Annotated[int, Setting("newest periods whose rows stay in the buffer; 0 = all", 0)] = 0
    anchor: Annotated[bool, Setting("the first period's rows stay in the buffer whatever the window")] = True
    balanced: Annotated[bool, Setting("as many rows of each period in a batch; otherwise drawn evenly from the buffer")] = False
    restart: Annotated[bool, Setting("each period's model begins with the base weights, not with its teacher's")] = True
    soft: Annotated[bool, Setting("the teacher's probabilities are labels, not its choices")] = False
    training: ClassVar[dict[str, Any]] = {"optimizer": "adamw", "lr": 2e-5, "weight_decay": 0.01, "schedule": "linear", "batch": 32}

    def before(self, learner: Any, task: Any) -> None:
        """The period's rows, labelled, go into the buffer; the model goes back to where it begins."""
        memory, x, y = learner.memory, task.train.x, task.train.y
        memory.setdefault("base", _weights(learner))
        if y is None:
            now = _weights(learner)
            if self.teacher == "first":
                _net(learner).load_state_dict(memory["first"])
            p = learner.outputs(x)[1].softmax(1)
            _net(learner).load_state_dict(now)
            kept = self.kept(p)
            x, p = x[kept], p[kept]
            y = p if self.soft else one_hot(p.argmax(1), learner.classes).to(p)
        else:
            y = one_hot(y, learner.classes).float()
        if self.restart:
            _net(learner).load_state_dict(memory["base"])
        period = int(memory["period"].max()) + 1 if "period" in memory else 0
        new = {"x": x, "y": y, "period": torch.full((len(x),), period, device=x.device)}
        joined = {name: torch.cat([memory[name], value]) if name in memory else value for name, value in new.items()}
        stays = joined["period"] > period - self.window if self.window else torch.ones_like(joined["period"], dtype=torch.bool)
        if self.anchor:
            stays |= joined["period"] == 0
        memory |= {name: value[stays] for name, value in joined.items()}

    def step(self, learner: Any, domains: Any = None, target: Any = None) -> Iterator[Tensor]:
        """Cross-entropy on rows of the buffer; in the first period on the rows at hand, which are all there is."""
        memory = learner.memory
        if domains is not None and not memory.get("period", torch.zeros(1)).any():
            yield learner.loss(learner(domains.x), domains.y)
            return
        count = len(target if domains is None else domains)
        period, draw = memory["period"].cpu(), learner.generator
        chances = torch.bincount(period).clamp(min=1).float().reciprocal()[period] if self.balanced else torch.ones(len(period))
        rows = torch.multinomial(chances, count, replacement=True, generator=draw)
        yield learner.loss(learner(memory["x"][rows]), memory["y"][rows])

    def after(self, learner: Any, task: Any) -> None:
        """The first model is remembered where it is to teach all others."""
        if self.teacher == "first":
            learner.memory.setdefault("first", _weights(learner))

    def kept(self, probabilities: Tensor) -> Tensor:
        """Which rows are sure enough [row], of probabilities [row, class]."""
        sure, label = probabilities.max(1)
        if self.choose == "threshold":
            return sure >= self.sure
        kept = torch.zeros_like(label, dtype=torch.bool)
        for own in (label == c for c in label.unique()):
            rows = own.nonzero()[:, 0]
            kept[rows[sure[rows].argsort(descending=True, stable=True)[: round(self.share * len(rows) + 0.499)]]] = True
        return kept


def _net(learner: Any) -> nn.Sequential:
    return nn.Sequential(learner.featurizer, learner.head)


def _weights(learner: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in _net(learner).state_dict().items()}
