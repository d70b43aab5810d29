"""Hypercomplex linear layers: a weight matrix as a sum of Kronecker products of small matrices, which layers may share.

Zhang et al. 2021 (PHM), https://arxiv.org/abs/2102.08597; Karimi Mahabadi et al. 2021, equation 5, https://arxiv.org/abs/2106.04647
"""

import torch
from torch import Tensor, nn

from ..errors import AcclimateError


def kronecker(rule: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """sum_i A_i kron (s_i t_i^T): rule [n, n, n], rows [n, output / n, rank], columns [n, rank, input / n] -> weight [output, input].

    >>> kronecker(torch.tensor([[[2.0]]]), torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[1.0, 10.0]]])).tolist()
    [[2.0, 20.0], [6.0, 60.0]]
    """
    blocks = rows @ columns
    made = torch.einsum("iab,ipq->apbq", rule, blocks)
    return made.reshape(rule.shape[1] * blocks.shape[1], rule.shape[2] * blocks.shape[2])


def glorot(*shape: int) -> Tensor:
    """Uniform numbers [..., a, b] within sqrt(6 / (a + b)), as for a matrix [a, b] (Glorot & Bengio 2010)."""
    bound = (6 / (shape[-2] + shape[-1])) ** 0.5
    return torch.empty(*shape).uniform_(-bound, bound)


class Rule(nn.Module):
    """The matrices A_i [n, n, n] of one layer or of many."""

    def __init__(self, n: int, std: float):
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn(n, n, n))


class PhmLinear(nn.Module):
    """A linear layer whose weight is sum_i A_i kron (s_i t_i^T), with a bias; ``rule`` is held but stored by whoever owns it."""

    def __init__(
        self, inputs: int, outputs: int, n: int, *, rule: Rule | None = None, std: float = 0.01, rank: int = 1, zero: bool = False
    ):
        super().__init__()
        for width in (inputs, outputs):
            if width % n:
                raise AcclimateError(f"a width of {width} cannot be cut into n = {n} parts; choose an n that divides it")
        self.own = Rule(n, std) if rule is None else None
        self._shared: tuple[Rule, ...] = () if rule is None else (rule,)  # in a tuple, so that it is no part of this module's weights
        self.rows = nn.Parameter(glorot(n, outputs // n, rank))
        self.columns = nn.Parameter(torch.zeros(n, rank, inputs // n) if zero else glorot(n, rank, inputs // n))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def weight(self) -> Tensor:
        """The matrix [output, input]."""
        rule = self.own if self.own is not None else self._shared[0]
        return kronecker(rule.weight, self.rows, self.columns)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., input] -> [..., output]."""
        return nn.functional.linear(x, self.weight(), self.bias)
