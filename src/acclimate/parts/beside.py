"""Small trainable modules that stand beside a frozen layer: each sees the layer's input x and output y, and gives what is added to y.

x [..., input width], y [..., output width]. All give zero before they are trained, so that the adapted model is the model.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

Change = tuple[Tensor, Tensor]  # of a weight [output, input], and of a bias [output]


class Beside(nn.Module):
    """What stands beside a layer."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The change of the output [..., output width]."""
        raise NotImplementedError

    def delta(self, weight: Tensor, bias: Tensor) -> Change | None:
        """The same as a change of the layer's weight [output, input] and bias [output]; None where it is no linear map."""
        return None


class LowRank(Beside):
    """scale x B A x of the input (LoRA, Hu et al. 2021): A [rank, input], B [output, rank], B = 0 at the start."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float, dropout: float = 0.0):
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.a = nn.Parameter(torch.empty(rank, inputs))
        self.b = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.a, a=5**0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x A^T B^T."""
        x = functional.dropout(x, self.dropout, self.training)
        return functional.linear(functional.linear(x.to(self.a.dtype), self.a), self.b).mul(self.scale).to(y.dtype)

    def delta(self, weight: Tensor, bias: Tensor) -> Change:
        """B A."""
        return self.scale * self.b @ self.a, torch.zeros_like(bias)

    @staticmethod
    def mixed(parts: "Sequence[LowRank]", own: Tensor, x: Tensor) -> Tensor:
        """The changes of a batch whose rows belong to different adapters, in two matrix products.

        own [row] is each row's part, -1 for none; x [row, ..., input] -> [row, ..., output]. All parts' ranks stand side by side, and each
        row keeps its own: with few small adapters this is cheaper than gathering factors row by row.
        """
        ranks = torch.tensor([len(part.a) for part in parts], device=x.device)
        owner = torch.repeat_interleave(torch.arange(len(parts), device=x.device), ranks)
        scales = torch.repeat_interleave(torch.tensor([part.scale for part in parts], device=x.device), ranks)
        kept = (owner[None] == own[:, None]) * scales
        inner = functional.linear(x, torch.cat([part.a for part in parts]).to(x.dtype))
        inner = inner * kept.to(x.dtype).view(len(own), *[1] * (x.ndim - 2), -1)
        return functional.linear(inner, torch.cat([part.b for part in parts], 1).to(x.dtype))


class Bottleneck(Beside):
    """scale x W_up f(W_down h) (Houlsby et al. 2019): h is the layer's output, or its input for a parallel adapter; W_up = 0 at the start.

    ``down`` and ``up`` may be any modules from a width to the bottleneck and back.
    """

    def __init__(
        self,
        down: nn.Module,
        up: nn.Module,
        *,
        activation: str = "relu",
        scale: float = 1.0,
        parallel: bool = False,
        norm: int = 0,
        dropout: float = 0.0,
        skip: float = 0.0,
    ):
        super().__init__()
        self.norm = nn.LayerNorm(norm) if norm else nn.Identity()
        self.down, self.up = down, up
        self.activation, self.scale, self.parallel, self.dropout, self.skip = activation, scale, parallel, dropout, skip

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """W_up f(W_down h); the whole branch is left out with the chance ``skip`` while it is trained (stochastic depth)."""
        if self.training and self.skip and torch.rand(()) < self.skip:
            return torch.zeros_like(y)
        hidden = self.norm((x if self.parallel else y).to(_dtype(self)))
        hidden = functional.dropout(ACTIVATIONS[self.activation](self.down(hidden)), self.dropout, self.training)
        return (self.scale * self.up(hidden)).to(y.dtype)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,  # also called swish
    "tanh": torch.tanh,
    "none": lambda values: values,
}


def small_linear(inputs: int, outputs: int, *, zero: bool = False, std: float = 0.02) -> nn.Linear:
    """A linear layer with weights of the given size, or of zeros; the bias is zero."""
    made = nn.Linear(inputs, outputs)
    nn.init.zeros_(made.weight) if zero else nn.init.normal_(made.weight, std=std)
    nn.init.zeros_(made.bias)
    return made


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


class Fusion(nn.Module):
    """Attention over what several adapters add (Pfeiffer et al. 2021, section 3.2, https://arxiv.org/abs/2005.00247).

    The query is the layer's output, keys and values are the adapters' changes; the value matrix is the identity at the start.
    """

    def __init__(self, width: int, values: bool = True):
        super().__init__()
        self.query, self.key = small_linear(width, width), small_linear(width, width)
        self.value = nn.Linear(width, width, bias=False) if values else None
        if self.value is not None:
            with torch.no_grad():
                self.value.weight.copy_(torch.eye(width) + 1e-6)

    def forward(self, y: Tensor, changes: Tensor) -> Tensor:
        """y [..., width], changes [adapter, ..., width] -> [..., width]."""
        y, kind = y.to(self.query.weight.dtype), y.dtype
        changes = changes.to(y.dtype)
        scores = torch.einsum("...d,a...d->a...", self.query(y), self.key(changes))
        weights = scores.softmax(0)[..., None]
        return (weights * (changes if self.value is None else self.value(changes))).sum(0).to(kind)

    def penalty(self) -> Tensor:
        """Squared distance of the value matrix from the identity, which the authors add to the loss times 0.01: scalar."""
        if self.value is None:
            return torch.zeros(())
        weight = self.value.weight
        return (weight - torch.eye(len(weight), device=weight.device, dtype=weight.dtype)).square().sum()
