"""How much one vector tells about another: a bound from above that a network learns and others may lower.

Cheng et al. 2020, equations 7 and 10 to 12 (CLUB, vCLUB), https://arxiv.org/abs/2006.12013
"""

import torch
from torch import Tensor, nn

from .heads import mlp


class Club(nn.Module):
    """q(b | a), a Gaussian whose means and log variances (within -1 and 1) come from one hidden layer; ``facts`` may tell q more of a row.

    >>> club = Club(1, 1, 4); _ = [weight.requires_grad_(False).zero_() for weight in club.parameters()]
    >>> a, b = torch.zeros(2, 1), torch.tensor([[0.0], [2.0]])
    >>> club.surprise(a, b).item()  # mean 0, variance 1: (0 + 4) / 2 / 2
    1.0
    >>> club.bound(a, b).item()  # who is blind to a finds true pairs no likelier than others
    0.0
    """

    def __init__(self, a: int, b: int, hidden: int = 32, facts: int = 0):
        super().__init__()
        self.q = mlp(a + facts, [hidden], 2 * b)

    def _score(self, a: Tensor, b: Tensor, facts: Tensor | None) -> Tensor:
        """log q(b_l | a_k) without its constant, of all pairs [row k, row l]."""
        mean, wide = self.q(a if facts is None else torch.cat([a, facts], 1)).chunk(2, 1)
        wide = wide.tanh()
        return -0.5 * ((b[None] - mean[:, None]).square() / wide.exp()[:, None] + wide[:, None]).sum(2)

    def surprise(self, a: Tensor, b: Tensor, facts: Tensor | None = None) -> Tensor:
        """-log q(b | a) of true pairs [row, wide], from which q learns: scalar."""
        return -self._score(a, b, facts).diagonal().mean()

    def bound(self, a: Tensor, b: Tensor, facts: Tensor | None = None) -> Tensor:
        """Mean of log q(b_k | a_k) - log q(b_l | a_k) over all rows k, l: not below I(a; b) where q is right. Scalar."""
        scores = self._score(a, b, facts)
        return scores.diagonal().mean() - scores.mean()
