"""Adversarial game: DANN, played by Runge-Kutta steps in place of gradient descent, which stay stable at larger rates.

Acuna et al. 2022, the three players and their Runge-Kutta steps, https://arxiv.org/abs/2202.05352
The loss is DANN's: with the reversal, one backward pass leaves minus the field of all three players in the gradients. What the paper
changes is the solver: training.optimizer = "rk2" (Heun) or "rk4", of which a step costs 2 or 4 gradients on the same batch and draws, with
weight decay as part of the field and batch-norm statistics moved once. The same solver serves CDAN and every method of one loss with a
reversal. parts.games tells the largest stable rate of a quadratic game. No momentum; the rate is about ten times SGD's.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> learner.parts["domain"] = torch.nn.Linear(2, 1)
>>> _ = [p.data.zero_() for p in learner.parts.domain.parameters()]
>>> source = Batch(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0]), torch.arange(1), [1])
>>> target = Batch(torch.ones(1, 2), None, torch.tensor([1]), torch.arange(1), [1])
>>> (loss,) = Game().step(learner, source, target)
>>> loss.backward(); learner.parts.domain.weight.grad.tolist()  # (0.5 - 1) x 1 / 2: the domain head descends at full rate
[[-0.25, -0.25]]
"""

from typing import Any, ClassVar

from .dann import Dann


class Game(Dann):
    """DANN's settings; the solver is a setting of the training."""

    training: ClassVar[dict[str, Any]] = {"optimizer": "rk2", "lr": 0.3, "weight_decay": 1e-4, "batch": 64}
