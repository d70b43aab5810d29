"""RandMix: trains on each row and on its mixture with what random networks make of it, whose weights are drawn anew at every step.

Liu et al. 2023, https://arxiv.org/abs/2301.10418; the generaliser of CoDAG (continual.codag)
For one source or several, where test images differ in texture, colour and sharpness and not in shape. An image is mixed with four random
autoencoders of it (a convolution, normalised channels that are scaled and shifted at random, a transposed convolution, tanh) and with a
random map of its colours (tanh); kernels of 5 to 17 pixels, cut to the image's side less one. Shares are N(0, 1), divided by their sum,
whose size counts as ``floor`` at least: the authors' code has no such floor, and its mixtures can be of any brightness. Left out: their
dropout of colours and faint noise on the input. Series pass one-dimensional networks; rows of numbers get noise instead.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> batch = Batch(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), torch.zeros(1), torch.arange(1), [1])
>>> [round(loss.item(), 4) for loss in Randmix().step(learner, batch)]  # a single row has no spread: both are log(1 + e^-2)
[0.1269]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ...kinds import DomainGeneralization
from ...method import Setting
from ...parts.mixing import only_numbers
from ...parts.style import standardised

CONVOLUTIONS: dict[int, tuple[Any, Any]] = {
    3: (functional.conv1d, functional.conv_transpose1d),
    4: (functional.conv2d, functional.conv_transpose2d),
}


class Randmix(DomainGeneralization):
    """Which networks, and how much noise where there are no places."""

    kernels: Annotated[tuple, Setting("sizes of the random autoencoders' kernels", 1)] = (5, 9, 13, 17)
    style: Annotated[int, Setting("numbers that a row's random style is made of", 1)] = 10
    floor: Annotated[float, Setting("least size that the sum of the shares counts with", 0)] = 0.5
    noise: Annotated[float, Setting("noise on rows of numbers, in each column's standard deviations", 0)] = 0.5
    training: ClassVar[dict[str, Any]] = {"optimizer": "sgd", "lr": 5e-3, "batch": 64}

    def step(self, learner: Any, domains: Any) -> Iterator[Tensor]:
        """Mean loss on the rows and their mixtures, which pass the network together: batch-norm sees both as one batch."""
        x = torch.cat([domains.x, self.mixed(domains.x, learner.generator)])
        yield learner.loss(learner(x), torch.cat([domains.y, domains.y]))

    @torch.no_grad()
    def mixed(self, x: Tensor, draw: torch.Generator) -> Tensor:
        """Rows in another look, in the shape of x [row, channel, *place] or [row, column]."""
        only_numbers(x)
        if x.ndim not in CONVOLUTIONS:
            return x + self.noise * x.std(0, unbiased=False) * torch.randn(x.shape, generator=draw).to(x)
        channels, side = x.shape[1], min(x.shape[2:])
        colour = torch.tanh(CONVOLUTIONS[x.ndim][0](x, *drawn(channels, 1, x, draw)))
        looks = [colour, *(self.remade(x, min(size, max(1, side - 1)), draw) for size in self.kernels), x]
        shares = torch.randn(len(looks), generator=draw)
        total = shares.sum()
        shares = shares / torch.where(total < 0, total.clamp(max=-self.floor), total.clamp(min=self.floor))
        return torch.stack([share * look for share, look in zip(shares.to(x), looks, strict=True)]).sum(0)

    def remade(self, x: Tensor, size: int, draw: torch.Generator) -> Tensor:
        """What a random autoencoder with a kernel of this size makes of x [row, channel, *place]."""
        shrink, grow = CONVOLUTIONS[x.ndim]
        channels = x.shape[1]
        code = standardised(shrink(x, *drawn(channels, size, x, draw)))
        weight = uniform((2 * channels, self.style), self.style, draw).to(x)
        given = torch.randn(len(x), self.style, generator=draw).to(x) @ weight.T + uniform((2 * channels,), self.style, draw).to(x)
        scale, shift = given.view(len(x), 2 * channels, *[1] * (x.ndim - 2)).chunk(2, 1)
        return torch.tanh(grow((1 + scale) * code + shift, *drawn(channels, size, x, draw)))


def drawn(channels: int, size: int, x: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weight and bias of a random convolution on x, as a new layer of torch has them."""
    shape, inputs = (channels, channels, *[size] * (x.ndim - 2)), channels * size ** (x.ndim - 2)
    return uniform(shape, inputs, draw).to(x), uniform((channels,), inputs, draw).to(x)


def uniform(shape: tuple[int, ...], inputs: int, draw: torch.Generator) -> Tensor:
    """Values spread evenly within 1 / sqrt(inputs) of 0."""
    return (2 * torch.rand(shape, generator=draw) - 1) * inputs**-0.5
