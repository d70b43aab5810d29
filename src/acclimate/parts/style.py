"""Style against content: statistics of channels, their exchange and mixture, Gram matrices, amplitudes of the Fourier transform.

Huang & Belongie 2017, equation 8 (AdaIN), https://arxiv.org/abs/1703.06868; Zhou et al. 2021, section 3 (MixStyle),
https://arxiv.org/abs/2104.02008; Gatys et al. 2015, equation 3 (Gram), https://arxiv.org/abs/1508.06576; Xu et al. 2021, section 3
(amplitude and phase), https://arxiv.org/abs/2105.11120

Maps are [row, channel, *place], whose statistics are taken over places, for each row and channel. Vectors [row, channel] have no places:
theirs are taken over rows, domain by domain where ``sizes`` (rows per domain, domain after domain) are given.
Variances are divided by the number of values, where some authors' code divides by one less."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .mixing import only_numbers

EPS = 1e-6


def channel_statistics(x: Tensor, sizes: Sequence[int] | None = None, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each row's channels, each in a shape that is broadcast over x.

    >>> mean, deviation = channel_statistics(torch.tensor([[[1.0, 3.0]], [[0.0, 4.0]]]))
    >>> mean.flatten().tolist(), deviation.flatten().round(decimals=3).tolist()
    ([2.0, 2.0], [1.0, 2.0])
    >>> channel_statistics(torch.tensor([[1.0], [3.0], [9.0]]), [2, 1])[0].flatten().tolist()  # of the row's domain
    [2.0, 2.0, 9.0]
    """
    only_numbers(x, "changes the style of")
    if x.ndim > 2:
        over = tuple(range(2, x.ndim))
        return x.mean(over, keepdim=True), (x.var(over, unbiased=False, keepdim=True) + eps).sqrt()
    parts = x.split(list(sizes or [len(x)]))
    means = torch.cat([part.mean(0, keepdim=True).expand_as(part) for part in parts])
    variances = torch.cat([part.var(0, unbiased=False, keepdim=True).expand_as(part) for part in parts])
    return means, (variances + eps).sqrt()


def standardised(x: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """What is left without style: channels of mean 0 and standard deviation 1."""
    mean, deviation = channel_statistics(x, sizes)
    return (x - mean) / deviation


def adain(x: Tensor, style: Tensor) -> Tensor:
    """x with the channel statistics of other rows.

    >>> adain(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[0.0, 8.0]]])).round(decimals=3).tolist()  # mean 4, deviation 4
    [[[0.0, 8.0]]]
    """
    mean, deviation = channel_statistics(style)
    return standardised(x) * deviation + mean


def mixstyle(x: Tensor, other: Tensor, share: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """Rows whose statistics are ``share`` [row] x their own + the rest x those of the rows ``other`` [row]; statistics give no gradient.

    >>> x = torch.tensor([[[1.0, 3.0]], [[0.0, 8.0]]])
    >>> mixstyle(x, torch.tensor([1, 0]), torch.tensor([0.5, 1.0])).round(decimals=3).tolist()  # mean 3, deviation 2.5
    [[[0.5, 5.5]], [[0.0, 8.0]]]
    """
    mean, deviation = (each.detach() for each in channel_statistics(x, sizes))
    own = share.to(x).view(-1, *[1] * (x.ndim - 1))
    mixed_mean, mixed_deviation = (own * each + (1 - own) * each[other] for each in (mean, deviation))
    return (x - mean) / deviation * mixed_deviation + mixed_mean


def shuffled_channels(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each row's channels in an order of its own, which may be the old one [row, channel, *place].

    >>> x = torch.tensor([[[1.0], [2.0], [3.0]]]).expand(5, 3, 1)
    >>> shuffled_channels(x, torch.Generator().manual_seed(0)).squeeze(2).sort(1).values.unique(dim=0).tolist()
    [[1.0, 2.0, 3.0]]
    """
    order = torch.rand(x.shape[:2], generator=generator).argsort(1)
    return x[torch.arange(len(x))[:, None], order]


def gram(x: Tensor) -> Tensor:
    """Products of channels, averaged over places and divided by the number of channels [row, channel, channel]; over rows for vectors.

    >>> gram(torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])).tolist()  # 2 channels x 2 places
    [[[1.25, 0.5], [0.5, 0.25]]]
    """
    a = x.flatten(2) if x.ndim > 2 else x.T[None]
    return a @ a.transpose(1, 2) / (a.shape[1] * a.shape[2])


def spectrum(x: Tensor) -> tuple[Tensor, Tensor]:
    """Amplitudes (the style) and phases (the content) of the Fourier transform over places, each in the shape of x."""
    found = torch.fft.fftn(x.float(), dim=tuple(range(2, x.ndim)))
    return found.abs(), found.angle()


def from_spectrum(amplitude: Tensor, phase: Tensor) -> Tensor:
    """Back to places; the real part.

    >>> x = torch.tensor([[[1.0, 2.0, 3.0, 5.0]]])
    >>> amplitude, phase = spectrum(x)
    >>> from_spectrum(2 * amplitude, phase).round(decimals=3).tolist()
    [[[2.0, 4.0, 6.0, 10.0]]]
    """
    return torch.fft.ifftn(torch.polar(amplitude, phase), dim=tuple(range(2, amplitude.ndim))).real
