"""Prompts that are made from the row they are put before."""

import math

import torch
from torch import Tensor, nn


class Prompter(nn.Module):
    """A prompt made from a row: ``encoder`` is one hidden layer on the whole row (linear), or, for series [row, channel, time], the last
    state of a recurrent layer over time (gru). Silent at first: all prompts are 0.

    >>> Prompter(torch.ones(3, 20), torch.Size([3, 5]), 8, "gru")(torch.ones(2, 3, 20)).sum((1, 2)).tolist()
    [0.0, 0.0]
    """

    def __init__(self, row: Tensor, shape: torch.Size, hidden: int, encoder: str = "linear"):
        super().__init__()
        self.shape, self.time = shape, encoder == "gru" and row.ndim == 2
        self.into = nn.GRU(row.shape[0], hidden, batch_first=True) if self.time else nn.Linear(math.prod(row.shape), hidden)
        self.out = nn.Linear(hidden, shape.numel())
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[row, *row's shape] -> [row, *prompt's shape]."""
        hidden = self.into(x.mT)[1][0] if self.time else self.into(x.flatten(1)).relu()
        return self.out(hidden).unflatten(1, self.shape)
