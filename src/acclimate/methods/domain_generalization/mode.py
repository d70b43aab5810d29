"""MODE: searches for each row the mixture of other rows' styles that hurts most, and trains on it beside the row itself.

Dai et al. 2023, section 3, https://arxiv.org/abs/2304.13976; steps of the search and defaults as in the authors' code
For shifts of style that leave the content alone; how far the search goes is set by ``steps``, ``mu`` and ``gamma``: 0 steps mix styles
evenly, many leave what can be trusted. Variant F: style is the amplitude of the Fourier transform, content its phase. Variant A: mean and
deviation of an encoder's maps, with a decoder back to rows; both learn to redraw rows in the first part of the run (``drawing``) and stay
as they are afterwards. The paper takes a trained VGG and decoder: put such into ``learner.parts`` as encoder and decoder, and set drawing
to 0. Vectors: mean and deviation of the row's domain in the batch (ours). A row's styles are its own and ``num_mix`` - 1 others: one of
each domain where there are as many, else any of the batch. A step costs about ``steps`` + 2 of plain training.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=1, head=torch.nn.Linear(1, 2, bias=False))
>>> _ = learner.head.weight.data.copy_(torch.tensor([[1.0], [0.0]]))
>>> batch = Batch(torch.tensor([[1.0], [3.0], [-4.0], [-2.0]]), torch.tensor([0, 0, 0, 0]), None, torch.arange(4), [2, 2])
>>> found, weights, losses = Mode(num_mix=3, steps=2).explore(learner, batch)  # domains of mean 2 and -3; the second one hurts
>>> [round(weight, 3) for weight in weights[0].tolist()]  # 1/3 - 0.1 twice, 1/3 + 0.1
[0.259, 0.259, 0.481]
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ...kinds import DomainGeneralization
from ...method import Setting
from ...parts.style import channel_statistics, from_spectrum, spectrum

CONVOLUTIONS: dict[int, Callable[..., nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d}  # by dimensions of a batch
WIDTH = 16  # of the autoencoder


class Mode(DomainGeneralization):
    """What style is, and how far it is explored."""

    variant: Annotated[str, Setting("style: amplitudes (F), or statistics of an encoder's maps (A)", choices=("F", "A"))] = "F"
    num_mix: Annotated[int, Setting("styles that are mixed, the row's own among them (M)", 2)] = 4
    steps: Annotated[int, Setting("steps of the search; 0 = even mixtures (K)", 0)] = 10
    mu: Annotated[float, Setting("how far a weight of the mixture moves in a step", 0)] = 0.05
    gamma: Annotated[float, Setting("share of the mixture in the style that is used, the rest being the row's own", 0, 1)] = 1.0
    beta: Annotated[float, Setting("weight of the loss on what was found, the rest being that of the row itself", 0, 1)] = 0.4
    drawing: Annotated[float, Setting("share of the run in which variant A's autoencoder learns, and nothing is explored", 0, 1)] = 0.25
    training: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd", "lr": 5e-3, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine", "batch": 32,
    }  # fmt: skip

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """Variant A's encoder and decoder, at half the resolution."""
        if self.variant == "F" or learner.sample.ndim not in CONVOLUTIONS:
            return {}
        layer, channels = CONVOLUTIONS[learner.sample.ndim], learner.sample.shape[1]
        encoder = nn.Sequential(layer(channels, WIDTH, 3, 1, 1), nn.ReLU(), layer(WIDTH, 2 * WIDTH, 3, 2, 1), nn.ReLU())
        decoder = nn.Sequential(nn.Upsample(scale_factor=2), layer(2 * WIDTH, WIDTH, 3, 1, 1), nn.ReLU(), layer(WIDTH, channels, 3, 1, 1))
        return {"encoder": encoder, "decoder": decoder}

    def step(self, learner: Any, domains: Any) -> Iterator[Tensor | list[tuple[Tensor, Any]]]:
        """(1 - beta) x loss on the rows + beta x loss on what was found, in one batch."""
        x, y = domains.x, domains.y
        if "encoder" in learner.parts and learner.progress < self.drawing:
            drawn = self._decoded(learner, learner.parts["encoder"](x), x)
            yield [(learner.loss(learner(x), y), ("featurizer", "head")), (mse_loss(drawn, x), ("encoder", "decoder"))]
            return
        found, weights, losses = self.explore(learner, domains)
        learner.memory["explored"] = {"weights": weights, "losses": losses, "rows": domains.rows}
        plain, moved = learner(torch.cat([x, found])).chunk(2)
        yield (1 - self.beta) * learner.loss(plain, y) + self.beta * learner.loss(moved, y)

    def explore(self, learner: Any, batch: Any) -> tuple[Tensor, Tensor, list[float]]:
        """Rows in the style that was found, the mixture's weights [row, style], and the mean loss before each step of the search."""
        was = learner.training
        learner.eval()
        own, together = self._apart(learner, batch)
        others = self._others(batch, learner.generator)
        styles = torch.stack([own, *(own[rows] for rows in others)], 1)  # [row, style, ...]

        def rendered(a: Tensor) -> Tensor:
            mixed = torch.einsum("rm,rm...->r...", shares(a), styles)
            return together((1 - self.gamma) * own + self.gamma * mixed)

        a, losses = own.new_full((len(own), self.num_mix), 1 / self.num_mix), []
        for _ in range(self.steps):
            a.requires_grad_()
            loss = learner.loss(learner(rendered(a)), batch.y)
            (slope,) = torch.autograd.grad(loss, a)
            a = (a.detach() + self.mu * slope.sign()).clamp(0, 1)
            losses.append(loss.item())
        with torch.no_grad():
            found = rendered(a)
        learner.train(was)
        return found, shares(a), losses

    def _apart(self, learner: Any, batch: Any) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The style of each row [row, ...], and what makes rows of styles, the content being kept."""
        x = batch.x
        if x.ndim > 2 and self.variant == "F":
            amplitude, phase = spectrum(x)
            return amplitude, lambda style: from_spectrum(style, phase).to(x.dtype)
        maps = learner.parts["encoder"](x).detach() if "encoder" in learner.parts else x
        mean, deviation = channel_statistics(maps, batch.sizes)
        content = (maps - mean) / deviation

        def together(style: Tensor) -> Tensor:
            made = content * style[:, 1] + style[:, 0]
            return self._decoded(learner, made, x) if "encoder" in learner.parts else made

        return torch.stack([mean, deviation], 1), together

    def _others(self, batch: Any, draw: torch.Generator) -> Tensor:
        """Rows whose styles are mixed with a row's own [style, row]."""
        count = self.num_mix - 1
        if count != len(batch.sizes):
            return torch.randint(len(batch.x), (count, len(batch.x)), generator=draw)
        starts = [sum(batch.sizes[:place]) for place in range(count)]
        return torch.stack(
            [start + torch.randint(size, (len(batch.x),), generator=draw) for start, size in zip(starts, batch.sizes, strict=True)]
        )

    def _decoded(self, learner: Any, maps: Tensor, x: Tensor) -> Tensor:
        """Rows of the shape of x."""
        made = learner.parts["decoder"](maps)
        return made[(..., *(slice(side) for side in x.shape[2:]))]


def shares(a: Tensor) -> Tensor:
    """Weights that sum to 1 in each row."""
    return a / a.sum(1, keepdim=True).clamp(min=1e-6)
