"""One vector of a text's token vectors.

Reimers & Gurevych 2019, section 3 (mean, max, first token), https://arxiv.org/abs/1908.10084"""

import torch
from torch import Tensor

WAYS = ("mean", "cls", "max", "last")


def pooled(hidden: Tensor, mask: Tensor, how: str) -> Tensor:
    """[row, token, width] and mask [row, token] (0: padding) -> [row, width]: mean or max over tokens, the first (cls) or the last.

    >>> hidden = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> [pooled(hidden, torch.tensor([[1, 1, 0]]), how).item() for how in WAYS]
    [2.0, 1.0, 3.0, 3.0]
    """
    if how == "mean":
        weight = mask[..., None].to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)
    if how == "max":
        return hidden.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device) * mask
    place = places.argmax(1) if how == "last" else mask.long().argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), place]
