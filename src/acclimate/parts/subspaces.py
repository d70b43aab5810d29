"""How alike two sets of features or two matrices are: centred kernel alignment, mean cosine, overlap of leading singular subspaces."""

import torch
from torch import Tensor

from ..errors import AcclimateError


def cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of two feature matrices of the same rows, [row, width] and [row, other width]: 0 to 1.

    Kornblith et al. 2019, equation 6, https://arxiv.org/abs/1905.00414: ||Y^T X||^2 / (||X^T X|| ||Y^T Y||) of centred columns. It does
    not change with a rotation or a common scale of either; 0 where one is constant.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    >>> round(cka(x, 3 * x.flip(1)), 6), round(cka(x, x[:, :1]), 6)
    (1.0, 0.707107)
    """
    if len(x) != len(y):
        raise AcclimateError(f"features of {len(x)} and of {len(y)} rows cannot be compared; give both for the same inputs")
    x, y = (features.double() - features.double().mean(0) for features in (x, y))
    own = torch.linalg.norm(x.T @ x) * torch.linalg.norm(y.T @ y)
    return 0.0 if own == 0 else float(torch.linalg.norm(y.T @ x).square() / own)


def cosine(x: Tensor, y: Tensor) -> float:
    """Mean cosine of rows [row, width] with rows [row, width]: -1 to 1; a row of zeros counts as 0."""
    return float(torch.nn.functional.cosine_similarity(x.double(), y.double(), dim=-1).mean())


def principal_cosines(a: Tensor, b: Tensor, rank: int, side: str = "left") -> Tensor:
    """Cosines of the principal angles between the spaces of the ``rank`` largest singular directions of two matrices [rank], falling.

    a and b are [output, input]; ``side`` "left" compares the output spaces, "right" the input spaces (there the widths must agree).
    ``rank`` is cut to the smaller numerical rank (singular values above 1e-6 of the largest). Björck & Golub 1973.

    >>> a, b = torch.diag(torch.tensor([3.0, 2.0, 0.0])), torch.diag(torch.tensor([0.0, 2.0, 1.0]))
    >>> principal_cosines(a, b, 2).tolist()
    [1.0, 0.0]
    """
    if a.shape[0 if side == "left" else 1] != b.shape[0 if side == "left" else 1]:
        raise AcclimateError(f"matrices of shapes {tuple(a.shape)} and {tuple(b.shape)} share no {side} space")
    first, second = (_leading(matrix, rank, side) for matrix in (a, b))
    size = min(first.shape[1], second.shape[1])
    if not size:
        return torch.zeros(0, dtype=torch.float64)
    return torch.linalg.svdvals(first[:, :size].T @ second[:, :size]).clamp(max=1.0)


def subspace_overlap(a: Tensor, b: Tensor, rank: int, side: str = "left") -> float:
    """Mean squared cosine of the principal angles (Hu et al. 2021, section 7.2: ||U_a^T U_b||^2 / rank): 0 to 1.

    Two random spaces of this rank in d dimensions have about rank / d. 0 where a matrix is zero.

    >>> subspace_overlap(torch.diag(torch.tensor([3.0, 2.0, 0.0])), torch.diag(torch.tensor([0.0, 2.0, 1.0])), 2)
    0.5
    """
    found = principal_cosines(a, b, rank, side)
    return float(found.square().mean()) if len(found) else 0.0


def held_share(change: Tensor, weight: Tensor, rank: int, side: str = "left") -> float:
    """Share of a change's energy that lies in the space of a weight's ``rank`` leading singular directions: ||P change||^2 / ||change||^2.

    A random change has about rank / d; 0 where the change is zero.

    >>> held_share(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.diag(torch.tensor([2.0, 1.0])), 1)
    0.6666666666666666
    """
    basis = _leading(weight, rank, side)
    change = (change if side == "left" else change.T).double()
    whole = change.square().sum()
    return 0.0 if whole == 0 else float((basis.T @ change).square().sum() / whole)


def _leading(matrix: Tensor, rank: int, side: str) -> Tensor:
    """Orthonormal leading singular directions [width, rank or fewer]."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    kept = min(rank, int((values > 1e-6 * values[0]).sum())) if values[0] > 0 else 0
    return (left if side == "left" else right.T)[:, :kept]
