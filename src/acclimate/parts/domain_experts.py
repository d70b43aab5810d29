"""Small experts after a network's blocks, chosen for each row by the router of its domain; what ties experts to domains.

Lee et al. 2024, section 3, https://arxiv.org/abs/2402.08712"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, softplus

from .heads import mlp
from .moe import gate_weights


class DomainExperts(nn.Module):
    """sum_k g_k E_k(x) over the experts that the row's router chose: E = up GELU(down x) of a low rank, one router per domain."""

    def __init__(self, width: int, rank: int, experts: int, domains: int):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.empty(experts, rank, width)), nn.Parameter(torch.empty(experts, width, rank))
        self.routers = nn.Parameter(torch.empty(domains, 2 * experts, width))
        for weight in (self.down, self.up, self.routers):
            nn.init.trunc_normal_(weight, std=0.02)
        self.inner, self.outer = nn.Parameter(torch.zeros(experts, rank)), nn.Parameter(torch.zeros(experts, width))

    def scores(self, x: Tensor, domain: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """The router's score of each expert, summed over tokens [row, expert]: clean + n (softplus(raw) + 0.01), without noise clean.

        x [row, token, width], domain [row].
        """
        clean, raw = torch.einsum("rtw,rew->rte", x, self.routers[domain]).chunk(2, -1)
        if noise is not None:
            clean = clean + torch.randn(clean.shape, generator=noise).to(clean) * (softplus(raw) + 0.01)
        return clean.sum(1)

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """What is added to x [row, token, width], given each expert's weight [row, expert].

        >>> made = DomainExperts(1, 1, 2, 1)
        >>> with torch.no_grad():
        ...     _ = made.down.fill_(9.0), made.up.copy_(torch.tensor([[[1.0]], [[3.0]]]))
        >>> made(torch.ones(1, 1, 1), torch.tensor([[0.75, 0.25]])).item()  # (0.75 x 1 + 0.25 x 3) GELU(9)
        13.5
        """
        hidden = gelu(torch.einsum("rtw,ekw->rtek", x, self.down) + self.inner)
        return torch.einsum("rtek,ewk,re->rtw", hidden, self.up, gates) + (gates @ self.outer)[:, None]


def gates_of(scores: Tensor, top_k: int, scaled: bool = False) -> Tensor:
    """Weights [row, expert]: softmax over each row's ``top_k`` largest scores, 0 for others.

    ``scaled`` brings the chosen scores of all rows together to 0..1 first, where there are several rows.

    >>> gates_of(torch.tensor([[0.0, 9.0, 9.0], [3.0, 9.0, 6.0]]), 2, scaled=True)[1].round(decimals=4)  # softmax(1, 0)
    tensor([0.0000, 0.7311, 0.2689])
    """
    if scaled and len(scores) > 1:
        chosen = scores.topk(min(top_k, scores.shape[1]), 1).values
        scores = (scores - chosen.min()) / (chosen.max() - chosen.min()).clamp(min=1e-6)
    return gate_weights(scores, top_k)


def synergy_loss(matrix: Tensor) -> Tensor:
    """-sum M log(M / (p(d) p(e))) of how much domains use experts, M [domain, expert] scaled to 0..1; p: softmax of its sums.

    >>> one, all = synergy_loss(torch.eye(2)), synergy_loss(torch.ones(2, 2) - torch.eye(2) / 2)
    >>> round(one.item(), 4), bool(one < 0)  # -2 log 4
    (-2.7726, True)
    """
    scaled = (matrix - matrix.min()) / (matrix.max() - matrix.min()).clamp(min=1e-6)
    of_domain, of_expert = scaled.sum(1, keepdim=True).softmax(0), scaled.sum(0, keepdim=True).softmax(1)
    return -(scaled * (scaled / of_domain / of_expert + 1e-4).log()).sum()


def means_by_domain(values: Tensor, domain: Tensor, domains: int) -> Tensor:
    """Mean of values [row, k] over the rows of each domain [domain, k]; 0 where there is none.

    >>> means_by_domain(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 2]), 3).flatten().tolist()
    [2.0, 0.0, 5.0]
    """
    total = values.new_zeros(domains, values.shape[1]).index_add(0, domain, values)
    return total / torch.bincount(domain, minlength=domains).clamp(min=1)[:, None].to(values)


def discriminator(shape: Sequence[int], domains: int) -> nn.Module:
    """Scores of the domains from rows: three small convolutions and two layers for images, two layers for other rows."""
    if len(shape) != 3:
        return nn.Sequential(nn.Flatten(), *mlp(math.prod(shape), [64], domains))
    sizes = [shape[0], 8, 16, 32]
    layers = [
        layer
        for before, after in itertools.pairwise(sizes)
        for layer in (nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2, ceil_mode=True))
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), *mlp(32 * 16, [250], domains))
