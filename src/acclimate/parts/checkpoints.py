"""Arithmetic of checkpoints that methods of the merging room share; tuned and changes are [model, *shape]."""

import numpy as np
import torch
from torch import Tensor

from ..errors import AcclimateError


def per_model(values: list[float], tuned: Tensor, what: str = "weights") -> Tensor:
    """One value for all models, or one each, shaped to multiply ``tuned`` [model, 1, ...].

    >>> per_model([0.5], torch.zeros(2, 3)).tolist()
    [[0.5], [0.5]]
    """
    models = len(tuned)
    if len(values) not in (1, models):
        raise AcclimateError(f"{what} holds {len(values)} values for {models} models; give one for all, or one for each")
    found = torch.tensor(values, dtype=torch.float32).expand(models) if len(values) == 1 else torch.tensor(values, dtype=torch.float32)
    return found.view(-1, *[1] * (tuned.ndim - 1))


def positive(values: Tensor) -> Tensor:
    """1 where a value is above 0, else 0, in place; arithmetic is much faster here than a comparison and its mask.

    >>> positive(torch.tensor([-2.0, 0.0, 1e-30, 5.0]))
    tensor([0., 0., 1., 1.])
    """
    return values.mul_(3e38 if values.dtype != torch.float16 else 6e4).clamp_(0, 1)


def elected(changes: Tensor, by: str = "sum") -> Tensor:
    """The sign that each entry gets, 1 or -1 [*shape]: of the sum of the changes, or of the count of their signs; a draw elects plus."""
    total = changes.sum(0) if by == "sum" else changes.sign().sum(0)
    return torch.copysign(torch.ones((), dtype=changes.dtype), total)


def combine(changes: Tensor, weights: Tensor, *, elect: str = "sum", mean: bool = True) -> Tensor:
    """Weighted changes of several models as one [*shape]; ``changes`` may be written over.

    elect: ``sum`` or ``count`` leave out what disagrees with the elected sign (TIES), ``none`` keeps all.
    mean: divide by the weights that took part, entry by entry (the disjoint mean), instead of summing.

    >>> combine(torch.tensor([[1.0, 3.0, 0.0], [3.0, -1.0, 0.0]]), torch.ones(2, 1))
    tensor([2., 3., 0.])
    """
    weights = weights.to(changes.dtype)
    if elect == "none":
        total = torch.tensordot(weights.flatten(), changes, dims=1)
        return total.div_(_not_zero(weights.sum())) if mean else total
    changes = changes.mul_(weights) if (weights != 1).any() else changes
    sign = elected(changes, elect)
    agreed = changes.mul_(sign).relu_()
    total = agreed.sum(0).mul_(sign)
    if not mean:
        return total
    taken = positive(agreed).mul_(weights).sum(0)
    return total.div_(taken.clamp_(min=weights.min().item()) if (weights > 0).all() else _not_zero(taken))


def _not_zero(weights: Tensor) -> Tensor:
    return torch.where(weights.abs() < 1e-8, torch.ones_like(weights), weights)


def gram(vectors: Tensor) -> Tensor:
    """Inner products of the models' tensors [model, model], in double precision; sums over chunks add up."""
    flat = vectors.flatten(1)
    return (flat @ flat.T).double()


def drawn(generator: np.random.Generator, chances: Tensor, shape: torch.Size) -> Tensor:
    """1 with the given chances, else 0 [*shape]: 16 random bits each, so chances are met to within 1/131,072."""
    count = int(np.prod(shape))
    bits = generator.integers(0, 2**64 - 1, -(-count // 4), dtype=np.uint64, endpoint=True)
    draws = torch.from_numpy(bits.view(np.int16)[:count]).view(shape).to(torch.float32).add_(32768.5).mul_(-1 / 65536)
    return positive(draws.add_(chances))
