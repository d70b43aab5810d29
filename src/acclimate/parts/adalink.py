"""Low-rank residual changes of input embeddings (AdaLink, Wang et al. 2023), alone and for a batch whose rows belong to several tasks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .beside import ACTIVATIONS, Beside


class Link(Beside):
    """phi(E W_down) W_up of the embeddings E, which are the layer's output: the input (ids, pixels) is not looked at.

    down [width, rank], up [rank, width] = 0 at the start.
    """

    def __init__(self, width: int, rank: int, activation: str = "none", dropout: float = 0.0):
        super().__init__()
        self.activation, self.dropout = activation, dropout
        self.down, self.up = nn.Parameter(torch.empty(width, rank)), nn.Parameter(torch.zeros(rank, width))
        nn.init.normal_(self.down, std=width**-0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The change of the embeddings y [..., width]."""
        inner = ACTIVATIONS[self.activation](y.to(self.down.dtype) @ self.down)
        return (functional.dropout(inner, self.dropout, self.training) @ self.up).to(y.dtype)


def gathered(parts: Sequence[Link], own: Tensor, y: Tensor) -> Tensor:
    """The changes of a batch in one pass: y [row, token, width], own [row] the part of each row, -1 for none -> [row, token, width].

    Parts have one activation; smaller ranks are padded with zeros, which add nothing.
    """
    rank = max(part.down.shape[1] for part in parts)
    ranked = [(rank - part.down.shape[1], part) for part in parts]
    down = torch.stack([functional.pad(part.down, (0, more)) for more, part in ranked])
    up = torch.stack([functional.pad(part.up, (0, 0, 0, more)) for more, part in ranked])
    place = own.clamp(min=0)
    inner = ACTIVATIONS[parts[0].activation](torch.einsum("btd,bdr->btr", y.to(down.dtype), down[place]))
    inner = functional.dropout(inner, parts[0].dropout, parts[0].training)
    change = torch.einsum("btr,brd->btd", inner, up[place]) * (own >= 0).to(inner.dtype)[:, None, None]
    return change.to(y.dtype)
