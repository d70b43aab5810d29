"""Small trainable modules that stand beside a frozen layer: each sees the layer's input x and output y, and gives what is added to y.

x [..., input width], y [..., output width]. All give zero before they are trained, so that the adapted model is the model.
"""

from collections.abc import Callable, Sequence
from typing import Any

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


class MixedRows:
    """Low-rank changes of a batch whose rows belong to different parts; factors are laid out once and used until a weight changes.

    own [row]: each row's part, -1 for none. Few parts stand side by side, all ranks in two plain products, and each row keeps its own.
    With more than MANY times the largest rank in all, each row's factors are gathered instead and multiplied row by row in two batched
    products: a row then pays for its own rank alone. Measured on one core (width 1024, rank 8, 32 rows of one token): the two cost
    the same at 5 parts; at 16 parts side by side adds 27 % to the layer, gathered 14 %. Gathered copies may hold COPIES times
    the parts' own memory. Products are in the type of the layer's output.

    A weight written to through ``.data`` is not noticed; activate the composition again.

    >>> parts = [LowRank(2, 1, 1, scale) for scale in (1.0, 10.0)]
    >>> for part in parts:
    ...     _ = nn.init.ones_(part.a), nn.init.ones_(part.b)
    >>> MixedRows(parts, torch.tensor([1, -1, 0])).add(torch.tensor([[1.0, 2], [3, 4], [5, 6]]), torch.zeros(3, 1)).tolist()
    [[30.0], [0.0], [11.0]]
    """

    MANY = 5
    COPIES = 4

    def __init__(self, parts: "Sequence[LowRank]", own: Tensor):
        self.parts, self.own = list(parts), own
        self.ranks = [len(part.a) for part in parts]
        rows, most = len(own), max(self.ranks)
        self.gathered = sum(self.ranks) > self.MANY * most and rows * most <= self.COPIES * sum(self.ranks)
        self._dropping = [part for part in parts if part.dropout]
        self._weights = [weight for part in parts for weight in (part.a, part.b)]
        self._state: tuple[Any, ...] = ()  # what the factors in hand were laid out for
        self._factors: tuple[Tensor, ...] = ()

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """The layer's output y [row, ..., output width] with each row's change for the input x [row, ..., input width]."""
        if self._learns():
            factors, x = self._lay(y), self._dropped(x)
        else:
            state = (y.dtype, y.device, sum([weight._version for weight in self._weights]))
            if state != self._state:
                with torch.inference_mode(False), torch.no_grad():
                    self._factors, self._state = self._lay(y), state
            factors = self._factors
        rows, width = len(self.own), y.shape[-1]
        x = x.to(y.dtype)
        if self.gathered:
            down, up = factors
            if y.ndim == 3:
                return torch.baddbmm(y, torch.bmm(x, down.mT), up)
            inner = torch.bmm(x.reshape(rows, -1, x.shape[-1]), down.mT)
            return torch.baddbmm(y.reshape(rows, -1, width), inner, up).view(y.shape)
        down, up, kept = factors
        inner = (functional.linear(x, down).view(rows, -1, len(down)) * kept).view(-1, len(down))
        return torch.addmm(y.reshape(-1, width), inner, up).view(y.shape)

    def _learns(self) -> bool:
        """Whether factors must not be kept: weights learn, or values are dropped."""
        return any(part.training for part in self._dropping) or (
            torch.is_grad_enabled() and any(weight.requires_grad for weight in self._weights)
        )

    def _lay(self, y: Tensor) -> tuple[Tensor, ...]:
        """A and B by row [row, rank, width]; or side by side [ranks, width], with which ranks each row keeps [row, 1, ranks]."""
        own = self.own.to(y.device)
        downs = [part.a.to(y.dtype) for part in self.parts]
        ups = [(part.scale * part.b).T.to(y.dtype) for part in self.parts]
        if self.gathered:
            most, place = max(self.ranks), own.where(own >= 0, len(self.parts))  # behind the last part stand zeros, for rows without any
            return tuple(self._stacked(some, most).index_select(0, place) for some in (downs, ups))
        owner = torch.repeat_interleave(torch.tensor(self.ranks, device=y.device))
        return torch.cat(downs), torch.cat(ups), (owner == own[:, None]).to(y.dtype)[:, None]

    @staticmethod
    def _stacked(some: list[Tensor], most: int) -> Tensor:
        """[part, rank, width] with zeros up to the largest rank, and zeros as one more part."""
        padded = [functional.pad(one, (0, 0, 0, most - len(one))) for one in some]
        return torch.stack([*padded, torch.zeros_like(padded[0])])

    def _dropped(self, x: Tensor) -> Tensor:
        """x with each row's values dropped at its part's rate."""
        rates = [part.dropout if part.training else 0.0 for part in self.parts]
        if not any(rates):
            return x
        rate = torch.tensor([*rates, 0.0], device=x.device)[self.own.to(x.device)].view(-1, *[1] * (x.ndim - 1))
        return x * (torch.rand_like(x, dtype=rate.dtype) >= rate).to(x.dtype) / (1 - rate).to(x.dtype).clamp(min=1e-6)


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
        """W_up f(W_down h); while it is trained the whole branch is left out with the chance ``skip``, and else divided by that of staying.

        This stochastic depth (Huang et al. 2016, https://arxiv.org/abs/1603.09382) adds on average what is added in evaluation.
        """
        skip = self.skip if self.training else 0.0
        if skip and torch.rand(()) < skip:
            return torch.zeros_like(y)
        hidden = self.norm((x if self.parallel else y).to(_dtype(self)))
        hidden = functional.dropout(ACTIVATIONS[self.activation](self.down(hidden)), self.dropout, self.training)
        return (self.scale / (1 - skip) * self.up(hidden)).to(y.dtype)


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
