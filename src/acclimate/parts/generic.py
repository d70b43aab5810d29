"""A sample mixed with its own translation into a generic domain: the edges of an image, or a translated feature; and what mixing trades.

Kundu et al. 2022, sections 4.1 and 4.2, https://arxiv.org/abs/2206.08009
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import AcclimateError
from .discrepancy import proxy_a_distance
from .heads import mlp

LEVELS = ("feature", "input")
SCALES = (1, 2, 4)


def mixture(x: Tensor, generic: Tensor, share: float) -> Tensor:
    """share x + (1 - share) generic, row by row with itself.

    >>> mixture(torch.ones(1), torch.zeros(1), 0.75).item()
    0.75
    """
    return share * x + (1 - share) * generic


def edges(x: Tensor) -> Tensor:
    """Dark lines on white in the shape of the images [row, channel, high, wide]: what is left without colour and texture.

    Sobel magnitudes of the grey image as it is, at half and at a quarter of its size, averaged, divided by the row's largest (0.01 at
    least: below one of 256 grey levels), inverted.

    >>> x = torch.zeros(1, 3, 8, 8); x[..., 4:] = 0.2  # a step, however faint
    >>> [round(value, 2) for value in edges(x)[0, 0, 0].tolist()]  # at a quarter of the size the step is all there is
    [0.67, 0.58, 0.42, 0.0, 0.0, 0.42, 0.58, 0.67]
    """
    if x.ndim != 4:
        raise AcclimateError(
            f"edges are of images [row, channel, high, wide], but rows have the shape {list(x.shape[1:])}; use the feature level"
        )
    grey, size = x.mean(1, keepdim=True), x.shape[2:]
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(x)
    kernels = torch.stack([across, across.T])[:, None]
    found = []
    for scale in SCALES:
        small = functional.avg_pool2d(grey, scale) if min(size) >= 2 * scale else grey
        slopes = functional.conv2d(functional.pad(small, (1, 1, 1, 1), mode="replicate"), kernels)
        found.append(functional.interpolate(slopes.square().sum(1, keepdim=True).sqrt(), size, mode="bilinear", align_corners=False))
    strength = torch.stack(found).mean(0)
    return (1 - strength / strength.amax((1, 2, 3), keepdim=True).clamp(min=0.01)).expand_as(x)


class Translator(nn.Module):
    """Features [row, width] -> domain-neutral features [row, width]: what is added to them is learned, and nothing at the start."""

    def __init__(self, width: int):
        super().__init__()
        self.added = mlp(width, [width], width)
        for weight in self.added[-1].parameters():
            nn.init.zeros_(weight)

    def forward(self, z: Tensor) -> Tensor:
        """t(z)."""
        return z + self.added(z)


class Mixed:
    """A learner that sees mixtures and is itself in all else: any source-free method can be run on it.

    ``level`` "input" mixes x with edges(x), "feature" mixes z with the learner's part ``translator``.
    """

    def __init__(self, learner: Any, level: str, share: float):
        self.learner, self.level, self.share = learner, level, share

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)

    def features(self, x: Tensor) -> Tensor:
        """Features of mixed rows, or mixed features of rows [row, width]."""
        if self.level == "input":
            return self.learner.features(mixture(x, edges(x), self.share))
        z = self.learner.features(x)
        return mixture(z, self.learner.parts["translator"](z), self.share)

    def __call__(self, x: Tensor) -> Tensor:
        """Scores [row, class]."""
        return self.learner.head(self.features(x))

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and scores of any number of rows, in evaluation mode."""
        return type(self.learner).outputs(self, x)


def discriminability(z: Tensor, y: Tensor, *, seed: int = 0) -> float:
    """Accuracy of a linear probe on features [row, width]: trained on one half, measured on the other.

    >>> z = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    >>> discriminability(torch.cat([z, z + 50]), torch.arange(2).repeat_interleave(60))
    1.0
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, labels = z.detach().cpu().double().numpy(), y.cpu().numpy()
    one, other, y_one, y_other = train_test_split(x, labels, test_size=0.5, random_state=seed, stratify=labels)
    return float(make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(one, y_one).score(other, y_other))


def transferability(source: Tensor, target: Tensor, *, seed: int = 0) -> float:
    """1 - half the proxy A-distance of two domains' features: 1 where they look the same, 0 where they are told apart without error.

    >>> z = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    >>> transferability(z, z + 50)
    0.0
    """
    return 1 - proxy_a_distance(source, target, seed=seed) / 2
