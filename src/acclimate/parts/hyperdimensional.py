"""Hyperdimensional codes: features of several layers as one long vector, classes as bundles of codes, novelty as distance from all bundles.

Wilson et al. 2023 (hyperdimensional feature fusion), https://arxiv.org/abs/2112.05341"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional


def semi_orthogonal(size: int, width: int, draw: torch.Generator) -> Tensor:
    """A random projection [size, width] that keeps lengths and angles; its columns (its rows, where size < width) are orthonormal.

    >>> q = semi_orthogonal(50, 3, torch.Generator().manual_seed(0))
    >>> torch.allclose(q.T @ q, torch.eye(3), atol=1e-5)
    True
    """
    q = torch.linalg.qr(torch.randn(max(size, width), min(size, width), generator=draw))[0]
    return q if size >= width else q.T


def codes(layers: Iterable[Tensor], projections: Sequence[Tensor], keys: Sequence[Tensor] = (), binary: bool = False) -> Tensor:
    """One code per row [row, size]: layers' features [row, width], at length 1, projected, bound to a key of +-1 (if any), summed.

    The sum has length 1 again, or its signs are taken where ``binary``.

    >>> codes([torch.tensor([[3.0, 4.0]])], [torch.eye(2)], [torch.tensor([1.0, -1.0])]).round(decimals=2).tolist()
    [[0.6000000238418579, -0.800000011920929]]
    """
    sides = [functional.normalize(z, dim=1) @ q.to(z).T for z, q in zip(layers, projections, strict=True)]
    if keys:
        sides = [side * key.to(side) for side, key in zip(sides, keys, strict=True)]
    total = torch.stack(sides).sum(0)
    return total.sign() if binary else functional.normalize(total, dim=1)


def bundled(code: Iterable[Tensor], labels: Iterable[Tensor]) -> tuple[Tensor, list[int]]:
    """Sum of each class's codes, given in blocks of rows, at length 1 [class, size], and the classes' numbers.

    >>> bundled([torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0]])], [torch.tensor([7, 2]), torch.tensor([2])])
    (tensor([[0., 1.],
            [1., 0.]]), [2, 7])
    """
    sums: dict[int, Tensor] = {}
    for rows, y in zip(code, labels, strict=True):
        for label in y.unique().tolist():
            sums[label] = sums.get(label, 0) + rows[y == label].sum(0)
    return functional.normalize(torch.stack([sums[label] for label in sorted(sums)]), dim=1), sorted(sums)


def nearest_bundle(code: Tensor, bundles: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine with the nearest bundle, and which it is, [row] each.

    >>> nearest_bundle(torch.tensor([[0.0, 3.0]]), torch.eye(2))
    (tensor([1.]), tensor([1]))
    """
    found = (functional.normalize(code, dim=1) @ bundles.to(code).T).max(1)
    return found.values, found.indices


def runs_under(score: Tensor, least: Tensor, rows: int, batches: int, draw: torch.Generator) -> bool:
    """Whether ``batches`` batches in a row, of ``rows`` rows drawn in some order, lie on average under their thresholds (all, if fewer).

    >>> runs_under(torch.zeros(6), torch.tensor([1.0]).expand(6), 2, 3, torch.Generator())
    True
    """
    order = torch.randperm(len(score), generator=draw).to(score.device)
    under = [bool(score[some].mean() < least[some].mean()) for some in order.split(rows)]
    return any(all(under[start : start + batches]) for start in range(max(1, len(under) - batches + 1)))
