"""ITTA: two views inside the network must agree, in a sense learned so that it helps the task; small layers learn from it at test time.

Chen et al. 2023, sections 3.1 to 3.3, https://arxiv.org/abs/2304.04494 ; sizes, order and standardisation as in the authors' code
For sources and streams of images (or other maps [row, channel, *place]) of one size, in batches, as the second view takes channel
statistics of other rows of the batch (MixStyle). Vectors have no places: the style of one is the mean and deviation of its own entries
(ours). The agreement f_w is ten layers of a scale and a shift per feature, trained so that its gradient in the featurizer points where
the task's points; this second-order step doubles the time. As between any of these layers stands a ReLU and they start as the identity,
differences below zero are cut off at the start, as in the authors' code. At test time only Theta learns, layers like these over
[channel, *place] after each block; the network stays as it is, batch-norm uses running statistics. With Adam ``weight`` does little but
through epsilon. Rows of a batch are predicted after the update. ``learned`` = off and ``players`` = norms are rivals.

>>> import torch
>>> from acclimate.engines.shift import Learner
>>> learner, method = Learner(torch.nn.Identity(), 1, width=2, head=torch.nn.Identity()), Itta(weight=1.0, alpha=1e9)
>>> learner.sample = torch.zeros(1, 2, 2)
>>> learner.parts.update(method.build(learner))
>>> rows = torch.tensor([[[1.0, 3.0], [2.0, 2.0]], [[3.0, 9.0], [2.0, 2.0]]])  # channel 1: means 2, 6, deviations 1, 3; half way 4, 2
>>> sorted({round(next(method.adapt(learner, rows))[0].item(), 3) for _ in range(9)})  # no other, or [2, 6] - x: 1, 3, cut: 0, 0
[0.0, 1.25]
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import AcclimateError
from ...kinds import TestTime
from ...method import Setting
from ...parts.mixing import beta
from ...parts.norms import still_statistics
from ...parts.places import ends, passing, widths
from ...parts.style import mixstyle


class Itta(TestTime):
    """How agreement is learned, and what learns from it at test time."""

    depth: Annotated[int, Setting("layers of the learned agreement (of f_w)", 1)] = 10
    added: Annotated[int, Setting("layers after each block that learn at test time (of Theta)", 1)] = 5
    align: Annotated[float, Setting("weight of the gap between the standardised gradients of agreement and task", 0)] = 0.1
    alpha: Annotated[float, Setting("both parameters of the Beta distribution that shares of styles are drawn from", 0)] = 0.1
    weight: Annotated[float, Setting("what agreement counts at test time (ada_lr); 0.1 for DomainNet", 0)] = 1e-6
    steps: Annotated[int, Setting("updates per batch", 0)] = 1
    learned: Annotated[bool, Setting("whether the agreement is learned; off = squared differences as they are")] = True
    players: Annotated[str, Setting("who learns at test time: added layers, or scales and shifts", choices=("added", "norms"))] = "added"
    at: Annotated[tuple, Setting("names of the featurizer's blocks, in order; none = its stages, 4 at most")] = ()
    training: ClassVar[dict[str, Any]] = {"lr": 5e-5, "batch": 32, "rates": {"agreement": 0.1}}
    online: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 5e-6}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """f_w over features, and Theta over what comes out of each block."""
        if learner.sample is None:
            raise AcclimateError(f"{self.name} sizes its layers by a row, but has seen none; train the model with it, or pass source=")
        shapes = widths(learner.featurizer, self._names(learner), learner.sample)
        added = nn.ModuleList(Elementwise(shape[1:], self.added) for shape in shapes.values())
        return {"agreement": Elementwise((learner.width,), self.depth), "added": added}

    def step(self, learner: Any, domains: Any) -> Iterator[tuple[Tensor, Any]]:
        """The network learns task and agreement; then w learns, on a fresh pass, to pull the featurizer where the task does."""
        task, agreement = self.losses(learner, domains)
        yield task + agreement, ("featurizer", "head")
        weights = learner.weights("featurizer")
        if self.learned and weights:
            with still_statistics(learner):
                task, agreement = self.losses(learner, domains)
            main = torch.autograd.grad(task, weights, retain_graph=True, materialize_grads=True)
            own = torch.autograd.grad(agreement, weights, create_graph=True, materialize_grads=True)
            yield self.align * (standardised(own) - standardised(main).detach()).square().mean(), "agreement"

    def losses(self, learner: Any, domains: Any) -> tuple[Tensor, Tensor]:
        """Cross-entropy of both views, and their agreement."""
        z, other = self.views(learner, domains.x)
        task = learner.loss(learner.head(z), domains.y) + learner.loss(learner.head(other), domains.y)
        return task, self.agreement(learner, z, other)

    def agreement(self, learner: Any, z: Tensor, other: Tensor) -> Tensor:
        """L_c, the mean of f_w(z' - z)^2."""
        gap = other - z
        return (learner.parts["agreement"](gap) if self.learned else gap).square().mean()

    def views(self, learner: Any, x: Tensor, added: bool = False) -> tuple[Tensor, Tensor]:
        """Features z, and z' of the same rows in mixed style after the first or the second block [row, width] each."""
        names = self._names(learner)
        mixing = names[int(torch.randint(min(2, len(names)), (), generator=learner.generator))]
        z = self.features(learner, x, added)
        with still_statistics(learner):  # running ones are of rows as they are
            return z, self.features(learner, x, added, mixing)

    def features(self, learner: Any, x: Tensor, added: bool, mixing: str | None = None) -> Tensor:
        """Features of rows that may pass Theta, and take on other styles, on their way [row, width]."""
        names = self._names(learner)
        layers = dict(zip(names, learner.parts["added"], strict=True))

        def change(name: str, output: Tensor) -> Tensor:
            output = self.mixed(learner, output) if name == mixing else output
            return layers[name](output) if added else output

        with passing(learner.featurizer, names, change):
            return learner.features(x)

    def mixed(self, learner: Any, x: Tensor) -> Tensor:
        """Rows with statistics between their own and those of another row; a vector is one channel."""
        other, share = torch.randperm(len(x), generator=learner.generator), beta(self.alpha, len(x), learner.generator)
        return mixstyle(x, other, share) if x.ndim > 2 else mixstyle(x[:, None], other, share)[:, 0]

    def adapt(self, learner: Any, x: Tensor) -> Any:
        """The players learn agreement on the batch, which is predicted afterwards."""
        for _ in range(self.steps):
            z, other = self.views(learner, x, self.players == "added")
            yield self.weight * self.agreement(learner, z, other), self.players
        with torch.no_grad():
            return learner.head(self.features(learner, x, self.players == "added"))

    def _names(self, learner: Any) -> list[str]:
        return list(self.at) or ends(learner.featurizer)


class Elementwise(nn.Module):
    """Layers of a scale and a shift per entry, ReLU between them; at the start the identity for what is not negative."""

    def __init__(self, shape: Sequence[int], depth: int):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(depth, *shape)), nn.Parameter(torch.zeros(depth, *shape))

    def forward(self, x: Tensor) -> Tensor:
        """[row, *shape] -> [row, *shape]."""
        for number, (scale, shift) in enumerate(zip(self.scale, self.shift, strict=True)):
            x = scale * (x.relu() if number else x) + shift
        return x


def standardised(gradients: Sequence[Tensor]) -> Tensor:
    """Gradients as one vector of mean 0 and standard deviation 1; both count as constants.

    >>> standardised([torch.tensor([[1.0]]), torch.tensor([2.0, 3.0])]).tolist()
    [-1.0, 0.0, 1.0]
    """
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    return (flat - flat.mean().detach()) / flat.std().detach().clamp(min=1e-12)
