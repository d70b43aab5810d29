"""Denoising diffusion: noise that grows over a chain of steps, a network that tells it, and the ways back.

Ho et al. 2020, equations 4, 7 and 14 and algorithms 1 and 2 (DDPM), https://arxiv.org/abs/2006.11239; Nichol & Dhariwal 2021, equation 17
and section 4 (cosine course, respacing), https://arxiv.org/abs/2102.09672; Song et al. 2021, equation 12 (DDIM),
https://arxiv.org/abs/2010.02502; Dhariwal & Nichol 2021, algorithm 2 (classifier guidance), https://arxiv.org/abs/2105.05233; Gao et al.
2023, algorithm 1 (projection under a low-pass filter, DDA), https://arxiv.org/abs/2207.03442

Rows lie between -1 and 1. A network is called as net(x [row, *shape], time [row], class [row] or None) and gives the noise in x."""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

SCHEDULES = ("linear", "cosine")
Net = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Chain:
    """What is left of a row at each step (alpha-bar; 1 at step 0) and the time that the network is told there, both [step + 1]."""

    left: Tensor
    times: Tensor

    @classmethod
    def of(cls, steps: int = 1000, kept: int = 0, schedule: str = "linear") -> "Chain":
        """``steps`` of noise on the linear or the cosine course, ``kept`` of them spread evenly (0: all).

        >>> chain = Chain.of(4, schedule="cosine")
        >>> [round(v, 3) for v in chain.left.tolist()]  # cos^2 of a quarter more of 90 degrees each time, nearly
        [1.0, 0.847, 0.494, 0.144, 0.0]
        >>> Chain.of(1000, 4).times.tolist(), round(Chain.of(1000, 4).left[2].item(), 3)
        ([0, 250, 500, 750, 1000], 0.079)
        """
        if schedule == "linear":
            rates = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64).clamp(max=0.999)
        else:
            course = torch.cos((torch.linspace(0, 1, steps + 1, dtype=torch.float64) + 0.008) / 1.008 * math.pi / 2).square()
            rates = (1 - course[1:] / course[:-1]).clamp(max=0.999)
        left = torch.cat([torch.ones(1, dtype=torch.float64), (1 - rates).cumprod(0)])
        times = torch.linspace(0, steps, (kept or steps) + 1).round().long()
        return cls(left[times].float(), times)

    def __len__(self) -> int:
        return len(self.times) - 1

    def told(self, step: int, x: Tensor) -> Tensor:
        """The time of a step for each row [row]."""
        return self.times[step].to(x.device).expand(len(x))


def noised(x: Tensor, noise: Tensor, left: Tensor) -> Tensor:
    """A row after some steps of noise: sqrt(left) x + sqrt(1 - left) noise; left is a number or one for each row.

    >>> noised(torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor(0.64)).item()  # 0.8 + 0.6 x 2
    2.0
    """
    left = (left.view(-1, *[1] * (x.ndim - 1)) if left.ndim else left).to(x.device)
    return left.sqrt().to(x.dtype) * x + (1 - left).sqrt().to(x.dtype) * noise


def clean(x: Tensor, noise: Tensor, left: Tensor) -> Tensor:
    """The row that is left if this is the noise in it, kept between -1 and 1.

    >>> x = torch.tensor([[2.0, 0.5, 4.0]])
    >>> [round(v, 4) for v in clean(x, torch.tensor([[2.0, 0.5, 2.0]]), torch.tensor(0.64))[0].tolist()]  # 0.8 / 0.8, 0.2 / 0.8, 2.8 / 0.8
    [1.0, 0.25, 1.0]
    """
    return ((x - (1 - left).sqrt() * noise) / left.sqrt()).clamp(-1, 1)


def ddpm(x: Tensor, first: Tensor, left: Tensor, before: Tensor, noise: Tensor) -> Tensor:
    """The row one step before, drawn from q(x_before | x, x_0 = first); noise is standard normal and not used where before = 1.

    >>> step = [torch.tensor(v) for v in (2.0, 1.0, 0.25, 0.5)]  # beta = 0.5: mean = 0.4714 x 1 + 0.4714 x 2, variance = 1 / 3
    >>> round(ddpm(*step, noise=torch.tensor(0.0)).item(), 4), round(ddpm(*step, noise=torch.tensor(3.0)).item(), 4)
    (1.4142, 3.1463)
    """
    rate = 1 - left / before
    mean = before.sqrt() * rate / (1 - left) * first + (left / before).sqrt() * (1 - before) / (1 - left) * x
    return mean + ((1 - before) / (1 - left) * rate).sqrt() * noise


def ddim(x: Tensor, first: Tensor, left: Tensor, before: Tensor) -> Tensor:
    """The row one step before without new noise: the noise that ``first`` leaves in x is kept, in its share of that step.

    >>> round(ddim(torch.tensor(2.0), torch.tensor(1.0), torch.tensor(0.25), torch.tensor(0.64)).item(), 4)  # 0.8 + 0.6 x 1.5 / 0.866
    1.8392
    """
    return before.sqrt() * first + (1 - before).sqrt() * (x - left.sqrt() * first) / (1 - left).sqrt()


def noise_loss(net: Net, x: Tensor, y: Tensor | None, chain: Chain, generator: torch.Generator) -> Tensor:
    """Squared error of the noise that is told in rows after a random number of steps; the mean.

    >>> rows, none = torch.zeros(1000, 4), lambda x, t, y: torch.zeros_like(x)
    >>> round(noise_loss(none, rows, None, Chain.of(), torch.Generator().manual_seed(0)).item(), 1)  # the variance of the noise
    1.0
    """
    step = torch.randint(1, len(chain) + 1, (len(x),), generator=generator)
    noise = torch.randn(x.shape, generator=generator).to(x)
    found = net(noised(x, noise, chain.left[step]), chain.times[step].to(x.device), y)
    return (found - noise).square().mean()


def toward(noise: Tensor, slope: Tensor, left: Tensor, scale: float = 1.0) -> Tensor:
    """Classifier guidance: the noise less sqrt(1 - left) x scale x the slope of log p(class | x).

    >>> toward(torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor(0.64), 2.0).round(decimals=4).item()  # 1 - 0.6
    0.4000000059604645
    """
    return noise - (1 - left).sqrt() * scale * slope


def drawn(
    net: Net,
    noise: Tensor,
    y: Tensor | None,
    chain: Chain,
    generator: torch.Generator | None = None,
    *,
    tail: int = 0,
    slope: Callable[[Tensor, Tensor], Tensor] | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Rows made of noise [row, *shape], by DDPM with the generator's draws, by DDIM without one.

    The last ``tail`` steps carry gradients. ``slope`` (x, time) gives that of a classifier's log p(class | x), for guidance.

    >>> def known(x, t, y):  # a network that knows all rows to be 0.5
    ...     left = Chain.of(1000, 5).left[t // 200].view(-1, 1)
    ...     return (x - left.sqrt() / 2) / (1 - left).sqrt()
    >>> drawn(known, torch.tensor([[0.3], [-2.0]]), None, Chain.of(1000, 5)).round(decimals=3).tolist()
    [[0.5], [0.5]]
    """
    x = noise
    for step in range(len(chain), 0, -1):
        left, before = chain.left[step].to(x.device), chain.left[step - 1].to(x.device)
        with torch.set_grad_enabled(step <= tail):
            time = chain.told(step, x)
            found = net(x, time, y)
            if slope is not None:
                found = toward(found, slope(x, time), left, scale)
            first = clean(x, found, left)
            new = None if generator is None else torch.randn(x.shape, generator=generator).to(x)
            x = ddim(x, first, left, before) if new is None else ddpm(x, first, left, before, new)
    return x


def low_pass(x: Tensor, factor: int) -> Tensor:
    """Images made smaller by a factor and large again, both by cubic interpolation; vectors, which have no neighbours, as they are.

    >>> board = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).float()[None, None]
    >>> bool((low_pass(board, 4) - 0.5).abs().max() < 0.02), low_pass(torch.tensor([[1.0, 2.0]]), 4).tolist()
    (True, [[1.0, 2.0]])
    """
    if x.ndim < 4 or factor == 1:
        return x
    sides = [max(1, side // factor) for side in x.shape[2:]]
    small = interpolate(x, sides, mode="bicubic", antialias=True)
    return interpolate(small, list(x.shape[2:]), mode="bicubic", antialias=True)


def projected(net: Net, x: Tensor, noise: Tensor, chain: Chain, factor: int, scale: float) -> Tensor:
    """Rows as the network would draw them: noised, and led back so that their low frequencies stay those of x.

    ``noise`` [step + 1, row, *shape] says over how many steps: the last is what the rows are noised with, noise[step - 1] is drawn at each.
    After each step x_t -> x_before, ``scale`` times the slope in x_t of |LP(x) - LP(x_0)| is taken off, each row by itself.

    >>> chain, silent = Chain(torch.tensor([1.0, 0.64]), torch.tensor([0, 500])), lambda x, t, y: torch.zeros_like(x)
    >>> noise = torch.tensor([[[0.0]], [[0.5]]])  # x_t = 0.8 x 0.5 + 0.6 x 0.5, x_0 = 0.7 / 0.8, its slope 1 / 0.8
    >>> round(projected(silent, torch.tensor([[0.5]]), noise, chain, 4, 0.1).item(), 4)  # 0.875 - 0.125
    0.75
    """
    kept, now = low_pass(x, factor), noised(x, noise[-1], chain.left[len(noise) - 1])
    for step in range(len(noise) - 1, 0, -1):
        left, before = chain.left[step].to(x.device), chain.left[step - 1].to(x.device)
        with torch.enable_grad():
            now = now.detach().requires_grad_()
            first = clean(now, net(now, chain.told(step, now), None), left)
            gap = (kept - low_pass(first, factor)).flatten(1).norm(dim=1).sum()
            (slope,) = torch.autograd.grad(gap, now)
        now = ddpm(now.detach(), first.detach(), left, before, noise[step - 1]) - scale * slope
    return now.detach()


def own_noise(row: Tensor, count: int) -> Tensor:
    """Standard normal noise that depends on the entries of a row alone [count, *shape].

    >>> row = torch.tensor([1.0, 2.0])
    >>> torch.equal(own_noise(row, 3), own_noise(row.clone(), 3)), torch.equal(own_noise(row, 3), own_noise(row + 1, 3))
    (True, False)
    """
    draw = torch.Generator().manual_seed(zlib.crc32(row.detach().float().cpu().numpy().tobytes()))
    return torch.randn(count, *row.shape, generator=draw)
