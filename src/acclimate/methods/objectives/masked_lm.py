"""Masked LM: hides some tokens and predicts them from both sides; continued pretraining of encoders.

Devlin et al. 2019, section 3.1, task 1, https://arxiv.org/abs/1810.04805
Use for raw text and an encoder with an output layer (BERT, RoBERTa). For decoders use causal_lm.
Left out: next-sentence prediction (RoBERTa, https://arxiv.org/abs/1907.11692, found that training without it does no worse).
The masks are drawn anew in every epoch, as RoBERTa does; BERT drew them once.

>>> given = np.arange(10, 30), np.zeros(20), 100, 4, np.random.default_rng(0)
>>> inputs, labels = MaskedLm(mask_share=1.0, random_share=0.0).corrupt(*given)
>>> (inputs == 4).sum(), (labels != -100).sum(), labels[inputs == 4].tolist()
(np.int64(3), np.int64(3), [14, 16, 29])
"""

from typing import Annotated

import numpy as np
from torch import Tensor

from ...errors import AcclimateError
from ...kinds import Objective
from ...method import Setting
from ...parts.losses import token_cross_entropy


class MaskedLm(Objective):
    """Mean cross-entropy per chosen token, in nats."""

    probability: Annotated[float, Setting("share of the tokens that are chosen and predicted", 0, 1)] = 0.15
    mask_share: Annotated[float, Setting("share of the chosen tokens that the mask token replaces", 0, 1)] = 0.8
    random_share: Annotated[float, Setting("share of the chosen tokens that a random token replaces; the rest stay", 0, 1)] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_share + self.random_share > 1:
            raise AcclimateError(f"MaskedLm.mask_share + random_share = {self.mask_share + self.random_share:g}, but must be at most 1")

    def corrupt(
        self, tokens: np.ndarray, special: np.ndarray, vocabulary: int, mask_id: int | None, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Exactly ``probability`` of the tokens that are not structural (one at least) are chosen, as in BERT."""
        if mask_id is None:
            raise AcclimateError("masked_lm needs a tokenizer with a mask token, and this model's has none; use causal_lm for decoders")
        free = np.flatnonzero(special == 0)
        count = min(len(free), max(1, round(self.probability * len(free))))
        chosen = np.sort(generator.permutation(free)[:count])
        inputs, labels = tokens.copy(), np.full(len(tokens), -100, np.int64)
        labels[chosen] = tokens[chosen]
        fate = generator.random(count)
        random = (fate >= self.mask_share) & (fate < self.mask_share + self.random_share)
        inputs[chosen[fate < self.mask_share]] = mask_id
        inputs[chosen[random]] = generator.integers(0, vocabulary, random.sum())
        return inputs, labels

    def loss(self, logits: Tensor, labels: Tensor, items: Tensor | float | None = None) -> Tensor:
        """logits [batch, token, vocabulary], labels [batch, token] -> scalar."""
        return token_cross_entropy(logits, labels, items=items)
