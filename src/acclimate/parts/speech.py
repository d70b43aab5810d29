"""Sound as numbers: mel filters, log-mel features, and the word error rate of what was recognised."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def mel_filters(bands: int, size: int, rate: int, low: float = 20.0) -> Tensor:
    """Triangles on the mel scale of O'Shaughnessy (2595 log10(1 + f / 700)) over the bins of a Fourier transform [bin, band].

    bands: triangles, evenly spaced from ``low`` Hz to half the sampling ``rate``; size: samples of the transform.

    >>> mel_filters(4, 16, 8000).shape, mel_filters(4, 16, 8000).max().item() <= 1
    (torch.Size([9, 4]), True)
    """
    ends = torch.tensor([low, rate / 2], dtype=torch.float64)
    mels = 2595 * torch.log10(1 + ends / 700)
    edges = 700 * (10 ** (torch.linspace(float(mels[0]), float(mels[1]), bands + 2, dtype=torch.float64) / 2595) - 1)
    bins = torch.linspace(0, rate / 2, size // 2 + 1, dtype=torch.float64)[:, None]
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp(min=0).float()


def log_mel(wave: Tensor, filters: Tensor, rate: int, window: float = 0.025, step: float = 0.010) -> Tensor:
    """Log energies of recordings [..., sample] in mel bands, mean 0 and deviation 1 in each band over a recording [..., frame, band].

    window and step of a frame in seconds; a first difference (0.97) raises high notes before.
    """
    size = 2 * (len(filters) - 1)
    wave = torch.cat([wave[..., :1], wave[..., 1:] - 0.97 * wave[..., :-1]], -1)
    wave = torch.nn.functional.pad(wave, (0, max(0, size - wave.shape[-1])))
    hann = torch.hann_window(round(window * rate), device=wave.device)
    flat = wave.reshape(-1, wave.shape[-1])
    spectrum = torch.stft(flat, size, round(step * rate), len(hann), hann, center=True, pad_mode="constant", return_complex=True)
    bands = (spectrum.abs().square().mT @ filters).clamp(min=1e-6).log()
    bands = (bands - bands.mean(1, keepdim=True)) / (bands.std(1, correction=0, keepdim=True) + 1e-3)
    return bands.reshape(*wave.shape[:-1], *bands.shape[1:])


def pitched(wave: Tensor, factor: float) -> Tensor:
    """A recording [sample] played ``factor`` times as fast: notes are higher by that factor and it is shorter."""
    length = max(1, round(len(wave) / factor))
    return torch.nn.functional.interpolate(wave[None, None], length, mode="linear", align_corners=False)[0, 0]


def noisy(wave: Tensor, decibels: float, generator: torch.Generator) -> Tensor:
    """A recording [sample] with white noise ``decibels`` below its own power."""
    power = wave.square().mean() * 10 ** (-decibels / 10)
    return wave + math.sqrt(float(power)) * torch.randn(wave.shape, generator=generator)


def masked(features: Tensor, spans: int, generator: torch.Generator) -> Tensor:
    """Features [frame, band] with ``spans`` runs of bands (up to a fifth) and of frames (up to an eighth) set to the mean, 0.

    SpecAugment without warping, Park et al. 2019, https://arxiv.org/abs/1904.08779
    """
    features = features.clone()
    for side, share in ((1, 5), (0, 8)) * spans:
        whole = features.shape[side]
        width = int(torch.randint(0, whole // share + 1, (), generator=generator))
        first = int(torch.randint(0, whole - width + 1, (), generator=generator))
        features.narrow(side, first, width).zero_()
    return features


def word_errors(said: Sequence, heard: Sequence) -> int:
    """The fewest words to put in, leave out or exchange that turn what was said into what was heard.

    >>> word_errors("one two three".split(), "one too three four".split())
    2
    """
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]
