"""The exact k-th largest magnitude of a tensor that is seen in chunks, by counting instead of sorting.

A float's magnitude orders like its bits, so two counts give any order statistic exactly: the first counts the upper 15 bits below
the sign, the second counts the lower 16 bits of the entries in the one bucket where the k-th lies (a radix select of two digits).
Counts of chunks add up. Entries that tie with the k-th are all kept, so the result does not depend on the order of the chunks.
"""

import torch
from torch import Tensor

HIGH, LOW = 1 << 15, 1 << 16


def look(changes: Tensor, seen: list[Tensor], shares: Tensor) -> Tensor | None:
    """The next count for the magnitudes that ``shares`` [model, rank] of the entries reach; None once both counts are there.

    changes [model, *shape] -> counts [model, 32768], then [model, rank, 65536].
    """
    changes = changes.float()
    if not seen:
        upper = changes.abs().contiguous().view(torch.int16)[..., 1::2].reshape(len(changes), -1)
        return torch.stack([torch.bincount(row, minlength=HIGH) for row in upper])
    if len(seen) > 1:
        return None
    buckets, _ = _place(seen[0], shares)
    bits = changes.abs().contiguous().view(torch.int32).reshape(len(changes), -1)
    found = [
        [torch.bincount(row[(row >> 16) == bucket] & (LOW - 1), minlength=LOW) for bucket in b]
        for row, b in zip(bits, buckets, strict=True)
    ]
    return torch.stack([torch.stack(row) for row in found])


def magnitudes(seen: list[Tensor], shares: Tensor) -> Tensor:
    """Magnitude that just ``shares`` [model, rank] of the entries reach (ties apart) [model, rank]; a share of 0 gives infinity.

    >>> changes, shares = torch.tensor([[1.0, -4.0, 2.0, 3.0]]), torch.tensor([[0.5, 0.25]])
    >>> first = look(changes, [], shares)
    >>> magnitudes([first, look(changes, [first], shares)], shares)
    tensor([[3., 4.]])
    """
    buckets, within = _place(seen[0], shares)
    reached = seen[1].flip(-1).cumsum(-1).flip(-1)  # entries of the bucket with these lower bits or more
    lower = (reached >= within[..., None]).sum(-1) - 1
    found = ((buckets << 16) | lower).to(torch.int32).view(torch.float32)
    return torch.where(_ranks(seen[0], shares) < 1, torch.inf, found)


def _ranks(counts: Tensor, shares: Tensor) -> Tensor:
    """How many entries are to reach the threshold [model, rank]: at least one of any positive share."""
    sizes = counts.sum(-1, keepdim=True)
    return torch.maximum((shares.double() * sizes).floor().long(), (shares > 0).long()).minimum(sizes)


def _place(counts: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """The bucket in which each k-th largest lies, and its rank inside the bucket, both [model, rank]."""
    ranks = _ranks(counts, shares).clamp(min=1)
    reached = counts.flip(-1).cumsum(-1).flip(-1)  # entries in this bucket or a higher one
    buckets = (reached[:, None] >= ranks[..., None]).sum(-1) - 1
    above = (reached - counts).gather(1, buckets)
    return buckets, ranks - above
