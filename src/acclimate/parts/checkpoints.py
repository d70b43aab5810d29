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


def agreement(changes: Tensor, by: str = "sum") -> Tensor:
    """Which entries have the elected sign and are not zero [model, *shape], as 0 or 1 in the changes' type.

    The sign of an entry is elected by the sum of the changes, or by their count (``by="count"``); a draw elects plus.
    """
    total = changes.sum(0) if by == "sum" else changes.sign().sum(0)
    elected = torch.where(total < 0, -1.0, 1.0).to(changes.dtype)
    return (changes * elected > 0).to(changes.dtype)


def combine(changes: Tensor, weights: Tensor, *, elect: str = "sum", mean: bool = True) -> Tensor:
    """Weighted changes of several models as one [*shape].

    elect: ``sum`` or ``count`` leave out what disagrees with the elected sign (TIES), ``none`` keeps all.
    mean: divide by the weights that took part, entry by entry (the disjoint mean), instead of summing.

    >>> combine(torch.tensor([[1.0, 3.0, 0.0], [3.0, -1.0, 0.0]]), torch.ones(2, 1))
    tensor([2., 3., 0.])
    """
    weighted = changes * weights
    if elect == "none":
        total = weighted.sum(0)
        return total / _not_zero(weights.sum(0)) if mean else total
    agree = agreement(weighted, elect)
    total = weighted.mul_(agree).sum(0)
    return total.div_(_not_zero(agree.mul_(weights).sum(0))) if mean else total


def _not_zero(weights: Tensor) -> Tensor:
    return torch.where(weights.abs() < 1e-8, torch.ones_like(weights), weights)


def gram(vectors: Tensor) -> Tensor:
    """Inner products of the models' tensors [model, model], in double precision; sums over chunks add up."""
    flat = vectors.flatten(1)
    return (flat @ flat.T).double()


def uniform(generator: np.random.Generator, shape: torch.Size) -> Tensor:
    """Random numbers in [0, 1) in fp32."""
    return torch.from_numpy(generator.random(tuple(shape), dtype=np.float32))
