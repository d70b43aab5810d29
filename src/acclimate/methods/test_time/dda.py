"""DDA: test images are led into the source's domain by a diffusion model of it, and the source model, which stays as it is, reads both.

Gao et al. 2023, algorithm 1 and section 3.3, https://arxiv.org/abs/2207.03442 ; github.com/shiyegao/DDA
For corruptions of images (noise most of all) and streams in any order or batch size, as no weight changes. Slow: ``start`` passes of the
diffusion model, with gradients, for each batch. The diffusion model (models/unet.py) learns beside the source model, unconditionally; give
pretrained ones as ``learner.parts["generator"]``. ``scale`` was found for 256 x 256 x 3 entries; as it is the length of a move of all
entries together, it goes with the square root of their number, and falls with ``start``. The authors take the length of the gap over all
rows of a batch; here each row has its own, and its noise is drawn from its own entries, so that a projection depends on the row alone.
Vectors are their own low frequencies. The authors' code sums probabilities; ``ensemble`` has both sums.

>>> import torch
>>> from acclimate.engines.shift import Learner
>>> learner = Learner(torch.nn.Identity(), 1, width=1, head=torch.nn.Identity()); method = Dda(respaced=1, start=1, scale=0.0)
>>> learner.parts["generator"] = method.net(torch.zeros(1, 1), 1); learner.parts["generator"].fit_range(torch.tensor([0.0, 2.0]))
>>> _ = [weight.data.zero_() for weight in learner.parts["generator"].parameters()]
>>> method.adapt(learner, torch.tensor([[2.0], [3.0]])).flatten().tolist()  # it is silent, so A(x) is x_t, cut to the range 0 to 2
[4.0, 5.0]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ...kinds import TestTime
from ...method import Setting
from ...models.unet import noise_net
from ...parts.diffusion import SCHEDULES, Chain, noise_loss, own_noise, projected

ENSEMBLES = ("logits", "probabilities", "none")


class Dda(TestTime):
    """The chain, how far rows are noised, and what of them is kept on the way back."""

    steps: Annotated[int, Setting("steps of noise that the diffusion model learns", 1)] = 1000
    respaced: Annotated[int, Setting("steps that are taken in use, spread evenly", 1)] = 100
    schedule: Annotated[str, Setting("course of the noise; cosine for images of few pixels", choices=SCHEDULES)] = "linear"
    start: Annotated[int, Setting("step of these to which rows are noised (N)", 1)] = 50
    factor: Annotated[int, Setting("of the low-pass filter: how much smaller images are made (D)", 1)] = 4
    scale: Annotated[float, Setting("how strongly low frequencies are kept (s)", 0)] = 6.0
    ensemble: Annotated[str, Setting("sum of the scores of both rows, of their softmax, or the projection's alone", choices=ENSEMBLES)] = (
        "logits"
    )
    width: Annotated[int, Setting("width of the diffusion model", 8)] = 48
    drop: Annotated[float, Setting("share of rows whose class the diffusion model is not told in training", 0, 1)] = 1.0
    training: ClassVar[dict[str, Any]] = {"choose": "last", "schedule": "cosine", "batch": 64}

    @property
    def chain(self) -> Chain:
        """The steps that are taken in use."""
        return Chain.of(self.steps, self.respaced, self.schedule)

    def net(self, row: Tensor, classes: int) -> nn.Module:
        """A diffusion model for rows like this one."""
        return noise_net(row, classes, self.width, self.steps)

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The diffusion model."""
        return {"generator": self.net(learner.sample, learner.classes)}

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """The range of the source's rows."""
        if source is not None:
            learner.parts["generator"].fit_range(source.x)

    def step(self, learner: Any, domains: Any) -> Iterator[Any]:
        """The source model learns its classes, the diffusion model the noise in the same rows."""
        net, y = learner.parts["generator"], domains.y
        hidden = torch.rand(len(y), generator=learner.generator).to(domains.x) < self.drop
        told, chain = y.masked_fill(hidden, learner.classes), Chain.of(self.steps, 0, self.schedule)
        noise = noise_loss(net, net.scaled(domains.x), told, chain, learner.generator)
        yield [(learner.loss(learner(domains.x), y), ("featurizer", "head")), (noise, "generator")]

    def projected(self, learner: Any, x: Tensor) -> Tensor:
        """A(x): rows as the diffusion model would draw them, with the low frequencies of x [row, *shape]."""
        net, chain = learner.parts["generator"], self.chain
        noise = torch.stack([own_noise(row, self.start + 1) for row in x], 1)
        parts = zip(net.scaled(x).split(learner.block), noise.to(x).split(learner.block, 1), strict=True)
        return net.restored(torch.cat([projected(net, rows, some, chain, self.factor, self.scale) for rows, some in parts]))

    def adapt(self, learner: Any, x: Tensor) -> Tensor:
        """Scores of the rows and of their projections, together."""
        return self.scores(learner, x, self.projected(learner, x))

    def scores(self, learner: Any, x: Tensor, moved: Tensor) -> Tensor:
        """Of x and of A(x), which was made before [row, class]."""
        return self.together(learner, learner, x, moved)

    @torch.no_grad()
    def together(self, one: nn.Module, other: nn.Module, x: Tensor, moved: Tensor) -> Tensor:
        """What one model says of x and another of A(x), summed as ``ensemble`` says [row, class]."""
        if self.ensemble == "none":
            return other(moved)
        if self.ensemble == "logits":
            return one(x) + other(moved)
        return (one(x).softmax(1) + other(moved).softmax(1)).log()
