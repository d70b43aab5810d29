"""EADA: asks for rows that are unlike the source and ambiguous by their energies, and lowers the target's free energies to the source's.

Xie et al. 2022, sampling and training of algorithm 1, https://arxiv.org/abs/2112.01406; github.com/BIT-DA/EADA
The energy of a class is minus its score, so the class of least energy is predicted. For budgets of a few per cent with the source still at
hand; where a target's rows all look like the source's, the free energy tells nothing and margin sampling does the same. The running mean
of the source's free energies moves by a share that is drawn at every step, as in the authors' code, unless ``keep`` fixes it; that code
divides by beta where it ranks rows and multiplies by it in the losses, while here beta is the inverse temperature throughout.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> x = torch.tensor([[9.0, 8.95], [1.0, 0.0], [0.5, 0.4], [5.0, 0.0]])  # row 0 is the most ambiguous, but as sure a source row as any
>>> Eada().query(learner, Batch(x, None, torch.zeros(4), torch.arange(4), [4]), 2).tolist()
[2, 1]
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...kinds import ActiveLearning
from ...method import Setting


class Eada(ActiveLearning):
    """Two steps of the selection, and how the target is drawn to the source."""

    beta: Annotated[float, Setting("inverse temperature of the free energy (beta)", 1e-6)] = 1.0
    weight: Annotated[float, Setting("weight of the alignment of free energies (gamma); 0 = none", 0)] = 0.01
    align: Annotated[str, Setting("what is lowered: hinge = only energies above the source's mean", choices=("hinge", "l1", "mse"))] = (
        "hinge"
    )
    first: Annotated[float, Setting("share of the target with the highest free energy, of which rows are asked for (alpha_1)", 0, 1)] = 0.5
    keep: Annotated[float | None, Setting("share of the running mean that stays at a step; drawn anew every time if not given", 0, 1)] = (
        None
    )
    training: ClassVar[dict[str, Any]] = {
        "optimizer": "adadelta", "lr": 0.1, "rates": {"featurizer": 0.1}, "batch": 32, "target_batch": 32, "choose": "last",
    }  # fmt: skip

    def query(self, learner: Any, pool: Any, budget: int, labelled: Any = None) -> np.ndarray:
        """Of the rows of highest free energy those whose lowest two energies are closest (min-versus-second-min)."""
        energies = -learner.outputs(pool.x)[1]
        total = len(pool) + (0 if labelled is None else len(labelled))
        unlike = self.free(energies).argsort(descending=True, stable=True)[: max(budget, math.ceil(self.first * total))]
        least, second = energies[unlike].topk(2, largest=False).values.unbind(1)
        return unlike[(least - second).argsort(descending=True, stable=True)[:budget]].cpu().numpy()

    def step(self, learner: Any, source: Any, target: Any, labelled: Any = None) -> Iterator[Tensor]:
        """Likelihood of source rows and of those that were asked for + weight x how far target energies lie above the source's mean."""
        energies = -learner(source.x)
        loss = self.unlikely(energies, source.y)
        if self.weight:
            loss = loss + self.weight * self.above(self.free(-learner(target.x)), self.bound(learner, self.free(energies.detach()).mean()))
        if labelled is not None:
            loss = loss + self.unlikely(-learner(labelled.x), labelled.y)
        yield loss

    def free(self, energies: Tensor) -> Tensor:
        """F = -1/beta log sum exp(-beta E) of [row, class], each row's [row]."""
        return -(-self.beta * energies).logsumexp(1) / self.beta

    def unlikely(self, energies: Tensor, y: Tensor) -> Tensor:
        """Mean of E(x, y) - F(x): the cross-entropy of scores -E where beta = 1."""
        return (energies.gather(1, y[:, None])[:, 0] - self.free(energies)).mean()

    def bound(self, learner: Any, now: Tensor) -> Tensor:
        """Running mean of the source's free energies, which carries no gradient."""
        keep = float(torch.rand((), generator=learner.generator)) if self.keep is None else self.keep
        learner.memory["bound"] = keep * learner.memory.get("bound", now) + (1 - keep) * now
        return learner.memory["bound"]

    def above(self, free: Tensor, bound: Tensor) -> Tensor:
        """Mean distance of free energies [row] from the bound."""
        gap = free - bound
        return (gap.clamp(min=0) if self.align == "hinge" else gap.abs() if self.align == "l1" else gap.square()).mean()
