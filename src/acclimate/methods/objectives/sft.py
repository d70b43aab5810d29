"""SFT: learns the assistant's answers in conversations; the questions are read but not learned.

Ouyang et al. 2022, section 3.5 (supervised fine-tuning on demonstrations), https://arxiv.org/abs/2203.02155
Use for instruction data and chat logs whose answers are good. For raw text use causal_lm; where worse answers are known too,
dpo or orpo can follow.
The paper does not say which tokens its loss covers; counting the answers alone is the common reading. Left out: the choice of
a checkpoint by reward-model score.

>>> import torch
>>> logits = torch.tensor([[[9.0, 0.0], [0.0, 0.0], [0.0, 1.0]]])
>>> Sft().loss(logits, torch.tensor([[1, 0, 1]]), answer_mask=torch.tensor([[0, 1, 1]]))  # (log 2 + log(1 + 1/e)) / 2
tensor(0.5032)
"""

from torch import Tensor

from ...kinds import Objective
from ...parts.losses import token_cross_entropy


class Sft(Objective):
    """Mean cross-entropy per answer token, in nats."""

    def loss(self, logits: Tensor, labels: Tensor, answer_mask: Tensor, items: Tensor | float | None = None) -> Tensor:
        """logits [batch, token, vocabulary], labels and answer_mask [batch, token] -> scalar."""
        return token_cross_entropy(logits, labels, answer_mask, items)
