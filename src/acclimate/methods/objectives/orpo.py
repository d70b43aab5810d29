"""ORPO: learns the better answer and pushes the worse one down in the same step, with no reference model.

Hong et al. 2024, equations 3, 4, 6 and 7, https://arxiv.org/abs/2403.07691
Use for pairs of answers to one prompt straight from a base model, where dpo would need sft first and a reference pass.
Not where the better answers are themselves poor: they are imitated.
As in the paper the likelihood part covers the answer's tokens, each pair counting alike; TRL's takes in the prompt's tokens.
Nothing is left out.

>>> chosen, rejected, lengths = torch.tensor([-2.0]), torch.tensor([-6.0]), torch.tensor([4])
>>> Orpo(weight=1.0).loss(chosen, rejected, lengths, torch.tensor([3]))  # 0.5 + log(1 + odds(e^-2) / odds(e^-0.5))
tensor(0.5967)
"""

import math
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ...kinds import Objective
from ...method import Setting
from ...parts.losses import mean_over


class Orpo(Objective):
    """Mean per pair of the better answer's loss per token (nats) and the weighted odds-ratio loss."""

    weight: Annotated[float, Setting("weight of the odds-ratio loss (the paper's lambda)", 0)] = 0.1

    def loss(
        self,
        chosen_logps: Tensor,
        rejected_logps: Tensor,
        chosen_tokens: Tensor,
        rejected_tokens: Tensor,
        items: Tensor | float | None = None,
    ) -> Tensor:
        """Log-probabilities and lengths of both answers [pair] -> scalar."""
        chosen = chosen_logps.float() / chosen_tokens.clamp(min=1)
        rejected = rejected_logps.float() / rejected_tokens.clamp(min=1)
        ratio = log_odds(chosen) - log_odds(rejected)
        return mean_over(-chosen - self.weight * logsigmoid(ratio), items)


def log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p, steady at both ends; p = 1 counts as 1 - 1e-6.

    >>> log_odds(torch.tensor([0.5]).log())
    tensor([0.])
    """
    logp = logp.clamp(max=-1e-6)
    near_one = logp > -math.log(2)
    away = torch.where(near_one, -1.0, logp)  # each branch sees only values it can take, so that no gradient is nan
    close = torch.where(near_one, logp, -1.0)
    return logp - torch.where(near_one, (-torch.expm1(close)).log(), torch.log1p(-away.exp()))
