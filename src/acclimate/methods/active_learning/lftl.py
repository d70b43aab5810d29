"""LFTL: source-free; asks where the last round's sureness was lost and classes are rare, and keeps labelled rows as moving anchors.

Lyu et al. 2024, contrastive active sampling and visual persistence-guided adaptation, https://arxiv.org/abs/2407.18899;
github.com/lyumengyao/lftl
Starts from a source model (``Rounds(warm=False)``) with a weight-normalised head. For budgets of a few labels per class; without a source
model that is better than chance the sureness that it contrasts says nothing. Defaults are those of VisDA; for sets of a few hundred rows
the authors take ``surest`` 100 and ``persist`` 1. The anchors' momentum weighs the new features, as in the authors' code. Every round's
optimizer starts anew.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> x = torch.tensor([[0.1, 0.0], [0.0, 0.2], [5.0, 0.0], [4.0, 0.0]])  # row 0 has the smallest margin, but class 1 is never sure
>>> Lftl(surest=2).query(learner, Batch(x, None, torch.zeros(4), torch.arange(4), [4]), 2).tolist()
[1, 0]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from ...kinds import ActiveLearning
from ...method import Setting
from ...parts.certainty import entropy, information
from ...parts.mixing import beta, blend


class Lftl(ActiveLearning):
    """How rows are scored, and the weights of the losses."""

    contrast: Annotated[float, Setting("how strongly the change since the last round counts (lambda of the contrast)", 0)] = 0.03
    rare: Annotated[float, Setting("weight of how often a row's class is among the surest (lambda)", 0)] = 0.1
    surest: Annotated[int, Setting("how many of the surest rows say which classes are common (topk)", 1)] = 500
    inform: Annotated[float, Setting("weight of information maximisation (beta_im)", 0)] = 0.9
    persist: Annotated[float, Setting("weight of the entropy of cosines to the anchors (beta_vp)", 0)] = 10.0
    renew: Annotated[float, Setting("share of new features in an anchor (momentum)", 0, 1)] = 0.9
    alpha: Annotated[float, Setting("Beta(alpha, alpha) draws the shares of mixup; 0 = no mixup", 0)] = 0.75
    training: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd", "lr": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "rates": {"featurizer": 0.1},
        "schedule": "inverse", "batch": 64, "target_batch": 64, "choose": "last",
    }  # fmt: skip

    def query(self, learner: Any, pool: Any, budget: int) -> np.ndarray:
        """The smallest margin of p + contrast (p - last round's p), plus how common the row's class is among the surest."""
        now, before = learner.outputs(pool.x)[1].softmax(1), learner.memory.get("before")
        contrasted = now if before is None else now + self.contrast * (now - before[pool.rows])
        first, second = contrasted.topk(2, 1).values.unbind(1)
        margin, label = first - second, now.argmax(1)
        count = label[margin.topk(min(self.surest, len(pool))).indices].bincount(minlength=now.shape[1])
        score = margin / margin.max().clamp(min=1e-6) + self.rare * (count / count.max())[label]
        learner.memory["before"] = now.new_zeros(int(pool.rows.max()) + 1, now.shape[1]).index_copy_(0, pool.rows, now)
        return score.argsort(stable=True)[:budget].cpu().numpy()

    def refresh(self, learner: Any, source: Any, target: Any, labelled: Any = None) -> None:
        """Every anchor moves to its row's features; the pass over the target is counted."""
        memory = learner.memory
        memory["left"], memory["seen"] = len(target), 0
        if labelled is not None:
            memory["asked"] = {"x": labelled.x, "y": labelled.y, "rows": labelled.rows}
            z = learner.outputs(labelled.x)[0]
            if "anchors" not in memory:
                memory["anchors"] = z.new_zeros(1 + int(max(target.rows.max(), labelled.rows.max())), z.shape[1])
            self.move(memory["anchors"], labelled.rows, z)

    def step(self, learner: Any, target: Any, labelled: Any = None) -> Iterator[Tensor]:
        """Cross-entropy + inform x information maximisation + persist x entropy of cosines to the anchors; mixup after each pass."""
        memory, z = learner.memory, learner.features(target.x)
        loss = self.inform * information(learner.head(z))
        if labelled is not None:
            own = learner.features(labelled.x)
            self.move(memory["anchors"], labelled.rows, own.detach())
            near = normalize(z, dim=1) @ normalize(memory["anchors"][memory["asked"]["rows"]], dim=1).T
            loss = loss + cross_entropy(learner.head(own), labelled.y) + self.persist * entropy(near).mean()
            memory["seen"] += len(labelled)
        yield loss
        memory["left"] -= len(target)
        if labelled is not None and self.alpha and memory["left"] <= 0 < memory["left"] + len(target):
            yield from self.mixed(learner, memory["asked"], memory["seen"], len(labelled))

    def move(self, anchors: Tensor, rows: Tensor, z: Tensor) -> None:
        """a <- (1 - renew) a + renew z, in place; an anchor that is new begins at 0."""
        anchors[rows] = (1 - self.renew) * anchors[rows] + self.renew * z

    def mixed(self, learner: Any, asked: dict[str, Tensor], seen: int, size: int) -> Iterator[Tensor]:
        """Losses on as many mixtures of two labelled rows as the pass saw labelled rows, in batches of ``size``."""
        x, y = asked["x"], asked["y"]
        one = torch.randperm(seen, generator=learner.generator) % len(x)
        two = one[torch.randperm(seen, generator=learner.generator)]
        shares = beta(self.alpha, seen, learner.generator).to(x)
        shares = torch.maximum(shares, 1 - shares)
        for places in torch.arange(seen).split(size):
            a, b, share = one[places], two[places], shares[places]
            scores = learner(blend(x[a], x[b], share))
            own, other = (cross_entropy(scores, labels, reduction="none") for labels in (y[a], y[b]))
            yield blend(own, other, share).mean()
