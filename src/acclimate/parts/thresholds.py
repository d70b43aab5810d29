"""The k-th largest magnitude of a tensor that is seen in chunks, by counting instead of sorting.

A float's magnitude orders like its bits, so two counts give any order statistic exactly: the first counts the upper 15 bits below
the sign, the second counts the lower 16 bits of the entries in the one bucket where the k-th lies (a radix select of two digits).
What comes from 16-bit numbers is ranked by the upper bits alone, as if it were bf16: one count, and a bucket ties as a whole.
Counts of chunks add up. Entries that tie with the k-th are all kept, so the result does not depend on the order of the chunks.
"""

import numpy as np
import torch
from torch import Tensor

HIGH, LOW = 1 << 15, 1 << 16


def magnitude_bits(changes: Tensor) -> Tensor:
    """The magnitudes' 32 bits as whole numbers [*shape], which order as the magnitudes do; always a copy."""
    return changes.float().abs().contiguous().view(torch.int32)


def upper(changes: Tensor) -> Tensor:
    """The upper 16 bits of the magnitudes [*shape], which order as the magnitudes do: a number below 32,768 each."""
    return changes.float().contiguous().view(torch.int16)[..., 1::2] & (HIGH - 1)  # the bit above is the sign


def look(changes: Tensor, seen: list[Tensor], shares: Tensor, bits: int = 32) -> Tensor | None:
    """The next count for the borders of ``shares`` [model, rank] of the entries, largest first; None once all counts are there.

    changes [model, *shape] -> counts [model, 32768], then (of numbers of 32 ``bits``) [model, rank, 65536].
    """
    if not seen:
        rows = changes.reshape(len(changes), -1)  # shifted bits are faster to count than ``upper``, and a row at a time stays in the cache
        return torch.stack([torch.bincount(magnitude_bits(row).bitwise_right_shift_(16), minlength=HIGH) for row in rows])
    if len(seen) > 1 or bits <= 16:
        return None
    buckets, _ = _place(seen[0], shares)
    full = magnitude_bits(changes).reshape(len(changes), -1).numpy()
    return torch.stack([torch.stack([_lower(row, bucket) for bucket in own]) for row, own in zip(full, buckets.tolist(), strict=True)])


def trim(changes: Tensor, least: Tensor) -> Tensor:
    """Changes [model, *shape] whose magnitude is at least ``least`` [model], 0 elsewhere; in place.

    >>> trim(torch.tensor([[1.0, -4.0, 2.0, 3.0]]), torch.tensor([3.0]))
    tensor([[ 0., -4.,  0.,  3.]])
    """
    for row, limit in zip(changes, torch.nextafter(least, least.new_zeros(())).tolist(), strict=True):
        torch.hardshrink(row, limit, out=row)
    return changes


def _lower(bits: np.ndarray, bucket: int) -> Tensor:
    inside = bits[np.flatnonzero((bits >> 16) == bucket)]
    return torch.from_numpy(np.bincount(inside & (LOW - 1), minlength=LOW))


def magnitudes(seen: list[Tensor], shares: Tensor) -> Tensor:
    """Least magnitude of each of the successive ``shares`` [model, rank] of the entries, largest first; infinity where none is in it yet.

    >>> changes, shares = torch.tensor([[1.0, -4.0, 2.0, 3.0]]), torch.tensor([[0.25, 0.25]])
    >>> first = look(changes, [], shares)
    >>> magnitudes([first, look(changes, [first], shares)], shares)
    tensor([[4., 3.]])
    """
    buckets, within = _place(seen[0], shares)
    if len(seen) < 2:
        found = (buckets << 16).to(torch.int32).view(torch.float32)
        return torch.where(_ranks(seen[0], shares) < 1, torch.inf, found)
    reached = seen[1].flip(-1).cumsum(-1).flip(-1)  # entries of the bucket with these lower bits or more
    lower = (reached >= within[..., None]).sum(-1) - 1
    found = ((buckets << 16) | lower).to(torch.int32).view(torch.float32)
    return torch.where(_ranks(seen[0], shares) < 1, torch.inf, found)


def _ranks(counts: Tensor, shares: Tensor) -> Tensor:
    """How many entries are to reach each border [model, rank]; the last has at least one if its share is positive."""
    sizes = counts.sum(-1, keepdim=True)
    ranks = (shares.double() * sizes).floor().long().cumsum(-1)
    ranks[:, -1] = torch.maximum(ranks[:, -1], (shares[:, -1] > 0).long())
    return ranks.minimum(sizes)


def _place(counts: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """The bucket in which each k-th largest lies, and its rank inside the bucket, both [model, rank]."""
    ranks = _ranks(counts, shares).clamp(min=1)
    reached = counts.flip(-1).cumsum(-1).flip(-1)  # entries in this bucket or a higher one
    buckets = (reached[:, None] >= ranks[..., None]).sum(-1) - 1
    above = (reached - counts).gather(1, buckets)
    return buckets, ranks - above
