"""Frozen spaces in which domains may be found without labels, their clusters, and how well these tell domains and classes apart.

Thomas & Ghadiyaram 2025, section 3, https://arxiv.org/abs/2503.06698"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .diffusion import Chain, noised
from .places import as_tokens, passing


class Early(nn.Module):
    """Mean and standard deviation of the channels that some layers let out; vectors as they are.

    >>> Early(nn.Identity(), [""])(torch.tensor([[[1.0, 3.0], [4.0, 4.0]]])).tolist()
    [[2.0, 4.0, 1.0, 0.0]]
    """

    def __init__(self, net: nn.Module, at: Sequence[str]):
        super().__init__()
        self.net, self.at = net, list(at)

    def forward(self, x: Tensor) -> Tensor:
        """Rows -> [row, d]."""
        with passing(self.net, self.at) as seen:
            self.net(x)
        found = [as_tokens(self.net, seen[name]) for name in self.at]  # [row, token, width]
        return torch.cat([each for z in found for each in ([z.mean(1), z.std(1, unbiased=False)] if z.shape[1] > 1 else [z[:, 0]])], 1)


class Inside(nn.Module):
    """Mean over places of what the middle of a diffusion model (models/unet.py) makes of rows after some steps of the same noise."""

    def __init__(self, net: Any, step: int = 50):
        super().__init__()
        self.net, self.step = net, step

    def forward(self, x: Tensor) -> Tensor:
        """Rows -> [row, d]."""
        noise = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x)
        noisy = noised(self.net.scaled(x), noise, Chain.of(self.net.steps).left[self.step])
        z = self.net.inside(noisy, torch.full((len(x),), self.step, device=x.device))
        return z.flatten(2).mean(2) if z.ndim > 2 else z


def clustered(psi: Tensor, clusters: int, seed: int) -> Tensor:
    """k-means: the cluster of each row [row], numbered without gaps.

    >>> clustered(torch.tensor([[0.0], [9.0], [0.1], [9.1]]), 2, 0).unique(return_counts=True)[1].tolist()
    [2, 2]
    """
    from sklearn.cluster import KMeans

    found = KMeans(min(clusters, len(psi.unique(dim=0))), n_init=4, random_state=seed).fit(psi.double().cpu().numpy()).labels_
    return torch.from_numpy(found).long().unique(return_inverse=True)[1].to(psi.device)


def nmi(clusters: Tensor, labels: Tensor) -> float:
    """Normalised mutual information 2 I / (H + H), from 0 to 1.

    >>> round(nmi(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 3])), 4)  # I = log 2, H = log 2 and log 4
    0.6667
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(labels.cpu().numpy(), clusters.cpu().numpy()))


def separation(psi: Tensor, domains: Tensor, classes: Tensor, seed: int = 0) -> tuple[float, float]:
    """How well a space tells domains apart, and classes: the NMI of as many clusters as there are domains with each."""
    of = clustered(psi, len(domains.unique()), seed)
    return nmi(of, domains), nmi(of, classes)
