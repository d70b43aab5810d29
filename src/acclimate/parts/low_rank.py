"""Matrices of low rank as two factors: how many ranks hold a share of the energy, splitting, adding, and measuring without the product.

Factors are b [row, rank] and a [rank, column], and stand for b @ a; singular values come largest first.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import AcclimateError


def energy_rank(singular: Tensor, energy: float) -> int:
    """The smallest rank whose singular values hold the share ``energy`` of the sum of squares; 0 for a zero matrix.

    >>> energy_rank(torch.tensor([3.0, 2.0, 1.0]), 0.5), energy_rank(torch.tensor([3.0, 2.0, 1.0]), 0.65)  # 9/14, 13/14, 1
    (1, 2)
    """
    squares = singular.double().square().cumsum(0)
    if not len(squares) or squares[-1] == 0:
        return 0
    return min(int((squares < energy * squares[-1] * (1 - 1e-12)).sum()) + 1, int((singular > 0).sum()))


def split(matrix: Tensor, *, rank: int = 0, energy: float = 1.0) -> tuple[Tensor, Tensor]:
    """The best factors of a matrix [row, column]: b = U sqrt(S), a = sqrt(S) V^T.

    ``rank`` is the most ranks that are kept (0 = any number), ``energy`` the share of the sum of squares that they must hold. Singular
    values that fp32 cannot tell from zero are always left out.

    >>> b, a = split(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), rank=1)
    >>> (b @ a).abs().round(decimals=4).tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    inner = matrix.double() if wide else matrix.double().T
    squares, left = torch.linalg.eigh(inner @ inner.T)  # in fp64 as exact as fp32 can tell, and much faster than an SVD
    singular, left = squares.flip(0).clamp(min=0).sqrt(), left.flip(1)
    right = (left.T @ inner) / singular.clamp(min=1e-300)[:, None]
    left, right = (left, right) if wide else (right.T, left.T)
    return _cut(left.float(), singular.float(), right.float(), rank, energy)


def shorten(b: Tensor, a: Tensor, *, rank: int = 0, energy: float = 1.0) -> tuple[Tensor, Tensor]:
    """Factors of fewer ranks for the product b @ a, as :func:`split` gives for the whole matrix, which is never made."""
    (left, first), (right, second) = torch.linalg.qr(b.float()), torch.linalg.qr(a.float().T)
    inner_left, singular, inner_right = torch.linalg.svd(first @ second.T, full_matrices=False)
    return _cut(left @ inner_left, singular, inner_right @ right.T, rank, energy)


def _cut(left: Tensor, singular: Tensor, right: Tensor, rank: int, energy: float) -> tuple[Tensor, Tensor]:
    if not 0 < energy <= 1 or rank < 0:
        raise AcclimateError(f"rank = {rank}, energy = {energy}, but rank must be 0 or more and energy in (0, 1]")
    noise = torch.finfo(torch.float32).eps * max(len(left), right.shape[1]) * float(singular[0]) if len(singular) else 0.0
    singular = singular[singular > noise]
    kept = energy_rank(singular, energy)
    kept = min(kept, rank) if rank else kept
    root = singular[:kept].sqrt()
    return left[:, :kept] * root, root[:, None] * right[:kept]


def add(factors: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Factors of the weighted sum of products, exactly: ranks are laid side by side.

    >>> one = (torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0, 4.0]]))
    >>> b, a = add([one, one], [1.0, -0.5])
    >>> (b @ a).tolist(), b.shape[1]
    ([[1.0, 2.0], [0.0, 0.0]], 2)
    """
    return (
        torch.cat([weight * b for (b, _), weight in zip(factors, weights, strict=True)], 1),
        torch.cat([a for _, a in factors], 0),
    )


def singular_values(b: Tensor, a: Tensor) -> Tensor:
    """The singular values of b @ a, at most as many as ranks, without the product.

    >>> singular_values(torch.tensor([[3.0], [4.0]]), torch.tensor([[0.0, 2.0]]))
    tensor([10.])
    """
    if not b.shape[1]:
        return torch.zeros(1)
    first, second = torch.linalg.qr(b.float(), "r").R, torch.linalg.qr(a.float().T, "r").R
    return torch.linalg.svdvals(first @ second.T)


def sizes(matrix: Tensor) -> tuple[float, float]:
    """Frobenius norm and largest singular value of a matrix (a vector is one row).

    >>> sizes(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    (5.0, 4.0)
    """
    flat = matrix.double()
    flat = flat.reshape(1, -1) if flat.ndim < 2 else flat.flatten(1)
    inner = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
    return float(flat.norm()), float(torch.linalg.eigvalsh(inner)[-1].clamp(min=0).sqrt())
