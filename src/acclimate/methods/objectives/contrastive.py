"""Contrastive: pulls embeddings of texts that belong together close and pushes the rest of the batch away.

Henderson et al. 2017, section 4.4 (multiple negatives), https://arxiv.org/abs/1705.00652 ; the same loss as InfoNCE: van den
Oord et al. 2018, equation 4, https://arxiv.org/abs/1807.03748
Use for pairs (question and passage, title and text) to make an embedding model fit a domain; larger batches teach more. Not
where a batch holds the same text twice: its twin would count as a negative.
Henderson scores with a dot product; here it is the cosine times ``scale``, as sentence-transformers does and whose default it
takes. With ``symmetric`` positives must also find their anchors. Left out: the n-gram embedding networks of the paper.

>>> anchors, positives = torch.eye(2), torch.tensor([[1.0, 1.0], [0.0, 3.0]])
>>> Contrastive(scale=1.0).loss(anchors, positives)  # (log(1 + e^-0.7071) + log(1 + e^-0.2929)) / 2
tensor(0.4791)
"""

from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...kinds import Objective
from ...method import Setting
from ...parts.losses import token_cross_entropy


class Contrastive(Objective):
    """Mean cross-entropy, in nats, of finding each anchor's positive among all candidates."""

    exempt: ClassVar = {"splits": "the other rows of the batch are the negatives, so half a batch is another task"}
    scale: Annotated[float, Setting("factor on the cosine (1 / temperature)", 1e-6)] = 20.0
    symmetric: Annotated[bool, Setting("also find the anchor of each positive, and average both")] = False

    def loss(self, anchors: Tensor, positives: Tensor, negatives: Tensor | None = None, items: Tensor | float | None = None) -> Tensor:
        """Embeddings [row, width]; every positive and negative is a candidate for every anchor -> scalar."""
        candidates = positives if negatives is None else torch.cat([positives, negatives])
        scores = self.scale * normalize(anchors.float(), dim=1) @ normalize(candidates.float(), dim=1).T  # [row, candidate]
        own = torch.arange(len(anchors), device=anchors.device)
        forth = token_cross_entropy(scores, own, items=items)
        if not self.symmetric:
            return forth
        return (forth + token_cross_entropy(scores[:, : len(positives)].T, own, items=items)) / 2
