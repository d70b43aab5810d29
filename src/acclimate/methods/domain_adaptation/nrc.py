"""NRC: source-free; rows agree with their nearest neighbours, most with those that have them as a neighbour too.

Yang et al. 2021, equations 2 to 9, https://arxiv.org/abs/2110.04202; github.com/Albert0147/NRC_SFDA
Like SHOT, but without pseudo-labels: features and predictions of all target rows lie in a bank, and the neighbours' neighbours count a
little. For targets that are well clustered. The authors' code raises both numbers of neighbours by one half-way and leaves the row's own
term out; here are the paper's equations.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> target = Batch(torch.tensor([[9.0, 0.0], [8.0, 0.0], [0.0, 9.0], [0.0, 8.0]]), None, torch.zeros(4), torch.arange(4), [4])
>>> method = Nrc(near=1, further=1); method.begin(learner, None, target)
>>> [round(loss.item(), 3) for loss, who in method.step(learner, target)]  # -1 (self) - 1 (neighbour) - 0.1 (its own) - log 2
[-2.792]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.certainty import spread


class Nrc(DomainAdaptation):
    """How many neighbours count, and how much those that are not mutual."""

    near: Annotated[int, Setting("nearest neighbours of a row (K)", 1)] = 4
    further: Annotated[int, Setting("neighbours of each of these (M)", 1)] = 3
    weak: Annotated[float, Setting("affinity of neighbours that are not mutual, and of the further ones (r)", 0)] = 0.1
    training: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd", "lr": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "batch": 64,
    }  # fmt: skip

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """The banks: features of length 1 and class probabilities of all target rows."""
        z, scores = learner.outputs(target.x)
        learner.memory |= {"z": normalize(z), "p": scores.softmax(1)}

    def step(self, learner: Any, target: Any) -> Iterator[tuple[Tensor, tuple[str, str]]]:
        """Predictions are pulled to the bank's for the row itself, its neighbours and theirs, and spread over the classes."""
        z = learner.features(target.x)
        scores = learner.head(z)
        p = scores.softmax(1)
        bank, said = learner.memory["z"], learner.memory["p"]
        bank[target.rows], said[target.rows] = normalize(z).detach(), p.detach()
        near = neighbours(bank, target.rows, self.near)  # [row, K]
        further = neighbours(bank, near.flatten(), self.further).view(*near.shape, -1)  # [row, K, M]
        mutual = (further == target.rows[:, None, None]).any(2)
        affinity = torch.where(mutual, 1.0, self.weak).to(p)
        wanted = said[target.rows] + (affinity[..., None] * said[near]).sum(1) + self.weak * said[further].sum((1, 2))
        yield -(wanted * p).sum(1).mean() - spread(scores), ("featurizer", "head")


def neighbours(bank: Tensor, rows: Tensor, k: int) -> Tensor:
    """The ``k`` other rows of a bank [all, width] with the largest cosine to each of some rows [row, k]; fewer where there are fewer."""
    cosine = (bank[rows] @ bank.T).scatter(1, rows[:, None], -torch.inf)
    return cosine.topk(min(k, len(bank) - 1), 1).indices
