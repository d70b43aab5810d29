"""Causal LM: predicts each next token of the text; plain continued pretraining on a domain's documents.

Bengio et al. 2003, equation for L in section 2, https://www.jmlr.org/papers/v3/bengio03a.html ; as the pretraining of a
transformer decoder: Radford et al. 2018, equation 1, https://openai.com/index/language-unsupervised
Use for raw text and a decoder. For conversations in which only the answers are to be learned use sft; for encoders masked_lm.
Left out: Bengio's weight penalty (the train engine's AdamW decays the weights instead).

>>> import torch
>>> logits = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]]])
>>> CausalLm().loss(logits, torch.tensor([[2, 1]]))  # (log 3 + log(1 + 2 e^-2)) / 2
tensor(0.6691)
"""

from torch import Tensor

from ...kinds import Objective
from ...parts.losses import token_cross_entropy


class CausalLm(Objective):
    """Mean cross-entropy per token, in nats."""

    def loss(self, logits: Tensor, labels: Tensor, items: Tensor | float | None = None) -> Tensor:
        """logits [batch, token, vocabulary], labels [batch, token] -> scalar."""
        return token_cross_entropy(logits, labels, items=items)
