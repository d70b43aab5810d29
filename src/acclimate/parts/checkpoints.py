"""Arithmetic of checkpoints that methods of the merging room share; tuned and changes are [model, *shape]."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ..errors import AcclimateError
from ..lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LEAST_CHANCE = 1e-5  # to be kept at random; below it nothing is


def each(values: Sequence[float], models: int, what: str = "weights") -> np.ndarray:
    """One value for all models, or one each, in fp32 [model].

    >>> each([0.5], 2)
    array([0.5, 0.5], dtype=float32)
    """
    if len(values) not in (1, models):
        raise AcclimateError(f"{what} holds {len(values)} values for {models} models; give one for all, or one for each")
    return np.resize(np.array(values, np.float32), models)


def per_model(values: list[float], tuned: Tensor, what: str = "weights") -> Tensor:
    """One value for all models, or one each, shaped to multiply ``tuned`` [model, 1, ...].

    >>> per_model([0.5], torch.zeros(2, 3)).tolist()
    [[0.5], [0.5]]
    """
    return _shaped(tuple(values), len(tuned), tuned.ndim, what)


@lru_cache(maxsize=256)  # asked for at every chunk
def _shaped(values: tuple[float, ...], models: int, sides: int, what: str) -> Tensor:
    return torch.from_numpy(each(values, models, what)).view(-1, *[1] * (sides - 1))


def positive(values: Tensor) -> Tensor:
    """1 where a value is above 0, else 0, in place; arithmetic is much faster here than a comparison and its mask.

    >>> positive(torch.tensor([-2.0, 0.0, 1e-30, 5.0]))
    tensor([0., 0., 1., 1.])
    """
    return values.mul_(3e38 if values.dtype != torch.float16 else 6e4).clamp_(0, 1)


def elected(changes: Tensor, by: str = "sum") -> Tensor:
    """The sign that each entry gets, 1 or -1 [*shape]: of the sum of the changes, or of the count of their signs; a draw elects plus."""
    total = _sum(changes if by == "sum" else changes.sign())
    return torch.copysign(torch.ones((), dtype=changes.dtype), total)


def combine(changes: Tensor, weights: Tensor, *, elect: str = "sum", mean: bool = True) -> Tensor:
    """Weighted changes of several models as one [*shape]; ``changes`` may be written over.

    elect: ``sum`` or ``count`` leave out what disagrees with the elected sign (TIES), ``none`` keeps all.
    mean: divide by the weights that took part, entry by entry (the disjoint mean), instead of summing.

    >>> combine(torch.tensor([[1.0, 3.0, 0.0], [3.0, -1.0, 0.0]]), torch.ones(2, 1))
    tensor([2., 3., 0.])
    """
    weights = weights.to(changes.dtype)
    own = weights.flatten().tolist()
    if elect == "none":
        total = sum(own)
        shares = weights.flatten() / total if mean and abs(total) >= 1e-8 else weights.flatten()
        return torch.tensordot(shares, changes, dims=1)
    alike = set(own) == {1.0}
    changes = changes if alike else changes.mul_(weights)
    if elect == "sum" and not mean:  # half the sum, and half the sum of magnitudes with its sign: that is what agrees with it
        total = _sum(changes)
        return total.add_(torch.copysign(_sum(changes.abs_()), total)).mul_(0.5)
    sign = elected(changes, elect)
    total, taken = torch.zeros_like(sign), torch.zeros_like(sign)
    for change, weight in zip(changes, own, strict=True):  # one after another: each stays in the processor's cache
        total += change.mul_(sign).relu_()
        if mean:
            taken += change.sign_() if weight == 1 else change.sign_().mul_(weight)
    total *= sign
    if not mean:
        return total
    return total.div_(taken.clamp_(min=min(own)) if min(own) > 0 else torch.where(taken.abs() < 1e-8, 1.0, taken))


def _sum(values: Tensor) -> Tensor:
    """Sum over the models: adding a few rows is faster than a reduction."""
    total = values[0] + values[1] if len(values) > 1 else values[0].clone()
    for row in values[2:]:
        total.add_(row)
    return total


def gram(vectors: Tensor) -> Tensor:
    """Inner products of the models' tensors [model, model], in double precision; sums over chunks add up."""
    flat = vectors.flatten(1)
    return (flat @ flat.T).double()


def thinned(changes: Tensor, generator: np.random.Generator, chances: Tensor, rescale: str, order: Tensor | None = None) -> Tensor:
    """Changes [model, *shape], each kept with its chance and else 0, in place, scaled up for what was dropped.

    chances: broadcast over the changes; with ``order`` (the columns of each row [model, *shape]) over the columns in that order.
    rescale: ``probability`` divides by each one's chance to be kept, ``norm`` brings back the sum of magnitudes of each model's tensor (or
    chunk of it), ``none`` leaves them.

    >>> changes, generator = torch.tensor([[1.0, 3.0]]), np.random.default_rng(0)
    >>> thinned(changes, generator, torch.tensor([[0.0, 1.0]]), "norm")
    tensor([[0., 4.]])
    """
    shares = drawn(generator, chances, changes.shape)
    if rescale == "probability":
        shares.div_(chances.clamp(min=1e-6))
    if order is not None:
        shares = torch.empty_like(shares).scatter_(-1, order, shares)
    if rescale != "norm":
        return changes.mul_(shares)
    before = changes.abs().flatten(1).sum(1)
    after = changes.mul_(shares).abs().flatten(1).sum(1)
    return changes.mul_(torch.where(after > 0, before / after, 1.0).view(-1, *[1] * (changes.ndim - 1)))


def drawn(generator: np.random.Generator, chances: Tensor, shape: torch.Size) -> Tensor:
    """1 with the given chances, else 0 [*shape], in fp32: 16 random bits each, so chances are met to within 1/131,072."""
    each = chances.float().numpy()
    kept = random_bits(generator, int(np.prod(shape))).reshape(shape) <= largest_kept(each)
    if chances.min() < LEAST_CHANCE:
        kept &= each >= LEAST_CHANCE
    return torch.from_numpy(kept.view(np.uint8)).to(torch.float32)


def random_bits(generator: np.random.Generator, count: int) -> np.ndarray:
    """Draws from -32768 to 32767 [count]."""
    return generator.integers(0, 2**64 - 1, -(-count // 4), dtype=np.uint64, endpoint=True).view(np.int16)[:count]


def largest_kept(chances: np.ndarray) -> np.ndarray:
    """The largest of these draws that counts as kept [*shape], for chances of at least ``LEAST_CHANCE``; smaller ones lie below all draws.

    >>> largest_kept(np.array([0.5, 1.0], np.float32))
    array([   -1, 32767], dtype=int16)
    """
    return np.round(chances * np.float32(65536) - np.float32(32769)).clip(-32768, 32767).astype(np.int16)
