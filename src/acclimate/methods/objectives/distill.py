"""Distillation: learns a teacher's distribution over next tokens together with the text itself.

Hinton et al. 2015, section 2, https://arxiv.org/abs/1503.02531 ; for domain experts: "A Teacher Is Worth A
Million Instructions", 2024, https://arxiv.org/abs/2405.19737
Use where a larger or better adapted model with the same tokenizer exists. Not across tokenizers.
The loss is weight * T^2 * KL(teacher || student) + (1 - weight) * cross-entropy with the labels. Hinton names no weight beyond
"considerably lower" for the labels. Only the teacher's K likeliest tokens are stored, so all others make one tail bucket on both
sides: an exact KL of the coarser distributions, equal to the full one at K = vocabulary. With T other than 1 the tail is
tempered as if it were a single token, since the teacher's tail cannot be tempered token by token; student = teacher still
gives 0. Left out: matching of logits or hidden layers.

>>> import torch
>>> logits, labels = torch.tensor([[[2.0, 0.0, 0.0]]]), torch.tensor([[0]])
>>> ids, logprobs = torch.tensor([[[0]]]), torch.tensor([[[0.5]]]).log()
>>> Distill(weight=1.0).loss(logits, labels, ids, logprobs)  # 0.5 log(0.5 / 0.787) + 0.5 log(0.5 / 0.213)
tensor(0.1998)
"""

from typing import Annotated

from torch import Tensor

from ...kinds import Objective
from ...method import Setting
from ...parts.losses import teacher_divergence, token_cross_entropy


class Distill(Objective):
    """Mean per token, in nats."""

    temperature: Annotated[float, Setting("softens both distributions (Hinton's T)", 1e-3)] = 1.0
    weight: Annotated[float, Setting("share of the teacher's part (alpha); the labels have the rest", 0, 1)] = 0.5

    def loss(
        self, logits: Tensor, labels: Tensor, teacher_ids: Tensor, teacher_logprobs: Tensor, items: Tensor | float | None = None
    ) -> Tensor:
        """logits [batch, token, vocabulary], labels [batch, token], the teacher's two [batch, token, K] -> scalar."""
        kept = labels != -100
        divergence = teacher_divergence(logits[kept], teacher_ids[kept], teacher_logprobs[kept], self.temperature)
        number = kept.sum().clamp(min=1) if items is None else items
        return self.weight * divergence / number + (1 - self.weight) * token_cross_entropy(logits, labels, items=items)
