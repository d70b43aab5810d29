"""CCFP: two networks that must agree, one of which sees features whose style is moved as far as can be.

Li et al. 2023, section 3, https://arxiv.org/abs/2307.12502; order of the updates and Gram matrices as in the authors' code
For one or more sources; which domain a row is of is not asked. A second network, started as a copy with a head of its own, moves the
channel statistics of its rows at several places: (x - mean) / std x (std + gamma) + mean + beta, gamma and beta learned. First both
networks learn the classes and each other's scores; then gamma and beta alone move away from the clean network's style. The second network
predicts. gamma and beta are sums of two parts, one for each update that moves them, so that each has an optimizer's state of its own as in
the authors' code: with Adam they go the rate x the steps at most, whatever ``style`` is, so mind the rate of "away" (0.25 in the paper). A
step costs about three of plain training. Outputs of layers are [row, channel, *place]; ``tokens`` says that those of three dimensions are
[row, token, width]. Vectors, which have no places, take their statistics over the batch, and running ones to predict (ours). ``drawn`` is
a rival: moved at random once for all.

>>> import torch
>>> clean, shift, away = torch.tensor([[[1.0, 3.0]]]), Shift(1, dimensions=3), Shift(1, dimensions=3)  # one channel: Gram (1 + 9) / 2
>>> _ = [weight.data.fill_(0.5) for weight in (*shift.parameters(), *away.parameters())]  # gamma, beta 1: [1, 5], Gram (1 + 25) / 2
>>> round(distance([clean], [shift(clean, away)]).item(), 3)
8.0
"""

import copy
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ...kinds import DomainGeneralization
from ...method import Setting
from ...parts.norms import batch_norms, still_statistics
from ...parts.places import passing, stages, widths
from ...parts.style import gram, standardised


class Ccfp(DomainGeneralization):
    """The price of disagreement, the worth of another style, and where it is made."""

    semantic: Annotated[float, Setting("weight of the squared difference of both networks' scores (lambda_sem)", 0)] = 1.0
    style: Annotated[float, Setting("weight of the distance between Gram matrices, which is raised (lambda_dis)", 0)] = 1.0
    at: Annotated[tuple, Setting("names of the featurizer's layers after which style is moved; none = stages but the last, 5 at most")] = ()
    tokens: Annotated[bool, Setting("outputs of three dimensions are [row, token, width]")] = False
    frozen_norms: Annotated[bool, Setting("batch-norm layers keep their running statistics and use them (pretrained backbones)")] = False
    drawn: Annotated[float, Setting("gamma and beta are drawn once, normal with this width; 0 = they are learned", 0)] = 0.0
    training: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 5e-5, "batch": 32}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The second network, and gamma and beta of each place: what it moves itself, and what moves away from the other's style."""
        shapes = widths(learner.featurizer, self._names(learner), learner.sample)
        channels = {key(name): (shape[-1 if self._tokens(shape) else 1], len(shape)) for name, shape in shapes.items()}
        shifts, away = (nn.ModuleDict({name: Shift(*each) for name, each in channels.items()}) for _ in range(2))
        if self.drawn:
            for weight in shifts.requires_grad_(False).parameters():
                nn.init.normal_(weight, std=self.drawn)
            away.requires_grad_(False)
        head = copy.deepcopy(learner.head)
        for layer in head.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        return {"perturbed": copy.deepcopy(learner.featurizer), "perturbed_head": head, "shifts": shifts, "away": away}

    def step(self, learner: Any, domains: Any) -> Iterator[list[tuple[Tensor, Any]] | tuple[Tensor, str]]:
        """Both networks at once, then gamma and beta."""
        if self.frozen_norms:
            for layer in batch_norms(learner.featurizer) + batch_norms(learner.parts["perturbed"]):
                layer.eval()
        scores, moved = learner(domains.x), self._perturbed(learner, domains.x)[0]
        clean_loss = learner.loss(scores, domains.y) + self.semantic * mse_loss(scores, moved.detach())
        moved_loss = learner.loss(moved, domains.y) + self.semantic * mse_loss(moved, scores.detach())
        yield [(clean_loss, ("featurizer", "head")), (moved_loss, ("perturbed", "perturbed_head", "shifts"))]
        if self.drawn or not self.style:
            return
        with still_statistics(learner):
            with torch.no_grad(), passing(learner.featurizer, self._names(learner)) as seen:
                learner.featurizer(domains.x)
            _, styled = self._perturbed(learner, domains.x)
        apart = distance([self._channels(seen[name]) for name in seen], [self._channels(styled[name]) for name in seen])
        learner.memory.setdefault("distances", []).append(apart.item())
        yield -self.style * apart, "away"

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """Scores of the second network, style moved."""
        return self._perturbed(learner, x)[0]

    def _names(self, learner: Any) -> list[str]:
        return list(self.at) or stages(learner.featurizer)

    def _perturbed(self, learner: Any, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores of the second network, and the moved outputs by place."""
        shifts, away, net = (learner.parts[name] for name in ("shifts", "away", "perturbed"))

        def change(name: str, output: Tensor) -> Tensor:
            return self._channels(shifts[key(name)](self._channels(output), away[key(name)]))

        with passing(net, self._names(learner), change) as seen:
            z = learner.dropout(net(x))
        return learner.parts["perturbed_head"](z), seen

    def _tokens(self, shape: Any) -> bool:
        return self.tokens and len(shape) == 3

    def _channels(self, x: Tensor) -> Tensor:
        """Channels second, and back."""
        return x.transpose(1, 2) if self._tokens(x.shape) else x


class Shift(nn.Module):
    """gamma and beta of one place: how far standard deviations and means of its channels are moved."""

    def __init__(self, channels: int, dimensions: int):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))
        self.norm = nn.BatchNorm1d(channels, affine=False) if dimensions == 2 else None  # vectors: over the batch, running ones to predict

    def forward(self, x: Tensor, more: "Shift") -> Tensor:
        """Maps [row, channel, *place] or vectors [row, channel] in another style, ``more`` being added to gamma and beta."""
        gamma, beta = ((a + b).view(-1, *[1] * (x.ndim - 2)) for a, b in ((self.gamma, more.gamma), (self.beta, more.beta)))
        return x + gamma * (standardised(x) if self.norm is None else self.norm(x)) + beta  # the equation, multiplied out


def distance(clean: Iterable[Tensor], moved: Iterable[Tensor]) -> Tensor:
    """Sum over places of the Frobenius norm of the difference of Gram matrices, over all rows together."""
    return torch.stack([(gram(a.detach()) - gram(b)).norm() for a, b in zip(clean, moved, strict=True)]).sum()


def key(name: str) -> str:
    """A layer's name as that of a part."""
    return name.replace(".", "/") or "features"
