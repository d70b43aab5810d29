"""Answers that are spans of a text: their loss, and the best span under two rows of scores.

Devlin et al. 2019, section 4.2, https://arxiv.org/abs/1810.04805: the score of a span is that of its start + that of its end."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def span_loss(scores: Tensor, start: Tensor, end: Tensor, mask: Tensor) -> Tensor:
    """Mean of the cross-entropies of starts and ends; scores [row, token, 2], start and end [row] (tokens), mask [row, token] (0: padding).

    >>> span_loss(torch.zeros(1, 3, 2), torch.tensor([0]), torch.tensor([1]), torch.tensor([[1, 1, 0]])).item()  # log 2
    0.6931471824645996
    """
    kept = scores.masked_fill(mask[..., None] == 0, -torch.inf)
    return (cross_entropy(kept[..., 0], start) + cross_entropy(kept[..., 1], end)) / 2


def best_spans(scores: Tensor, mask: Tensor, longest: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    """First token, last token and score [row] of the best span of at most ``longest`` tokens where the mask [row, token] is not 0.

    Leave the question's tokens out of the mask. A row whose mask is 0 throughout has the score -inf.

    >>> scores = torch.tensor([[[0.0, 3.0], [2.0, 0.0], [0.0, 1.0]]])  # the best start is 1, the best end 0: no span
    >>> [found.tolist() for found in best_spans(scores, torch.ones(1, 3))]
    [[0], [0], [3.0]]
    """
    tokens = torch.arange(scores.shape[1], device=scores.device)
    apart = tokens[None] - tokens[:, None]  # [start, end]
    allowed = (apart >= 0) & (apart < longest) & (mask[:, :, None] != 0) & (mask[:, None] != 0)
    both = (scores[:, :, None, 0] + scores[:, None, :, 1]).masked_fill(~allowed, -torch.inf)
    best, place = both.flatten(1).max(1)
    return place // len(tokens), place % len(tokens), best
