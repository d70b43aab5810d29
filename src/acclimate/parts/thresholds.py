"""The k-th largest magnitude of a tensor that is seen in chunks, by counting instead of sorting.

A float's magnitude orders like its bits, so two counts give any order statistic exactly: the first counts the upper 15 bits below
the sign, the second counts the lower 16 bits of the entries in the one bucket where the k-th lies (a radix select of two digits).
What comes from 16-bit numbers is ranked by the upper bits alone, as if it were bf16: one count, and a bucket ties as a whole.
Counts of chunks add up. Entries that tie with the k-th are all kept, so the result does not depend on the order of the chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

HIGH, LOW = 1 << 15, 1 << 16


def magnitude_bits(changes: Tensor) -> Tensor:
    """The magnitudes' 32 bits as whole numbers [*shape], which order as the magnitudes do; always a copy."""
    return changes.float().abs().contiguous().view(torch.int32)


def upper(changes: Tensor) -> Tensor:
    """The upper 16 bits of the magnitudes [*shape], which order as the magnitudes do: a number below 32,768 each."""
    return changes.float().contiguous().view(torch.int16)[..., 1::2] & (HIGH - 1)  # the bit above is the sign


def look(changes: Tensor, seen: list[Tensor], shares: np.ndarray, bits: int = 32) -> Tensor | None:
    """The next count for the borders of ``shares`` [model, rank] of the entries, largest first; None once all counts are there.

    changes [model, *shape] -> counts [model, 32768], then (of numbers of 32 ``bits``) [model, rank, 65536].
    """
    if not seen:
        rows = changes.reshape(len(changes), -1)  # shifted bits are faster to count than ``upper``, and a row at a time stays in the cache
        return torch.stack([torch.bincount(magnitude_bits(row).bitwise_right_shift_(16), minlength=HIGH) for row in rows])
    if len(seen) > 1 or bits <= 16:
        return None
    buckets, _ = place(seen[0], shares)
    full = magnitude_bits(changes).reshape(len(changes), -1).numpy()
    return torch.stack([torch.stack([_lower(row, bucket) for bucket in own]) for row, own in zip(full, buckets.tolist(), strict=True)])


def trim(changes: Tensor, least: np.ndarray) -> Tensor:
    """Changes [model, *shape] whose magnitude is at least ``least`` [model], 0 elsewhere; in place.

    >>> trim(torch.tensor([[1.0, -4.0, 2.0, 3.0]]), np.array([3.0], np.float32))
    tensor([[ 0., -4.,  0.,  3.]])
    """
    for row, limit in zip(changes, np.nextafter(least, np.float32(0)).tolist(), strict=True):
        torch.hardshrink(row, limit, out=row)
    return changes


def _lower(bits: np.ndarray, bucket: int) -> Tensor:
    inside = bits[np.flatnonzero((bits >> 16) == bucket)]
    return torch.from_numpy(np.bincount(inside & (LOW - 1), minlength=LOW))


def magnitudes(seen: Sequence[Any], shares: np.ndarray) -> np.ndarray:
    """Least magnitude of each of the successive ``shares`` [model, rank] of the entries, largest first; infinity where none is in it yet.

    >>> changes, shares = torch.tensor([[1.0, -4.0, 2.0, 3.0]]), np.array([[0.25, 0.25]])
    >>> first = look(changes, [], shares)
    >>> magnitudes([first, look(changes, [first], shares)], shares)
    array([[4., 3.]], dtype=float32)
    """
    buckets, within = place(seen[0], shares)
    bits = buckets << 16
    if len(seen) > 1:
        reached = np.asarray(seen[1])[..., ::-1].cumsum(-1)[..., ::-1]  # entries of the bucket with these lower bits or more
        bits = bits | ((reached >= within[..., None]).sum(-1) - 1)
    return np.where(_ranks(np.asarray(seen[0]), shares) < 1, np.float32(np.inf), bits.astype(np.uint32).view(np.float32))


def _ranks(counts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """How many entries are to reach each border [model, rank]; the last has at least one if its share is positive."""
    sizes = counts.sum(-1, keepdims=True)
    ranks = np.floor(shares.astype(np.float64) * sizes).astype(np.int64).cumsum(-1)
    ranks[:, -1] = np.maximum(ranks[:, -1], shares[:, -1] > 0)
    return np.minimum(ranks, sizes)


def place(counts: Any, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bucket in which each k-th largest lies, and its rank inside the bucket, both [model, rank], by counts [model, bucket]."""
    counts = np.asarray(counts)
    ranks = np.maximum(_ranks(counts, shares), 1)
    reached = counts[:, ::-1].cumsum(-1)[:, ::-1]  # entries in this bucket or a higher one
    buckets = (reached[:, None] >= ranks[..., None]).sum(-1) - 1
    return buckets, ranks - np.take_along_axis(reached - counts, buckets, 1)
