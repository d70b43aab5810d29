"""M3SDA: pulls the moments of several sources and a target together, with a pair of heads for each source and a weighted vote.

Peng et al. 2019, moment distance (equation 1), M3SDA and M3SDA-beta, https://arxiv.org/abs/1812.01754
For several sources that differ from each other: sources are aligned with the target and with each other, raw moments of the features up to
``orders``. ``pairs`` is the paper's M3SDA-beta: a second head per source, and the three-step game of MCD; without it one head per source.
Little use where classes have other shares in the domains. The learner's own head is left alone: each source has heads of its own.
The vote is weighed by how right a model of each source alone is: give ``accuracies``, measured without labels of the target (as
engines.shift.alone does, on held-out rows of the other sources), or nothing for a plain mean. The public code for digits centres
features before the first order, goes up to order 5 and shares one pair of heads: here are the paper's equations.

>>> import torch
>>> z = [torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [0.0]])]  # sources: means 2, 0; mean squares 5, 0
>>> moments(z, torch.tensor([[1.0], [1.0]]), orders=2).item()  # order 1: (1 + 1) / 2 + 2, order 2: (4 + 1) / 2 + 5
10.5
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import AcclimateError
from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.discrepancy import disagreement, moment_gap
from ...parts.heads import HEADS


class M3sda(DomainAdaptation):
    """The price of the moments, the game between the heads, and the vote."""

    weight: Annotated[float, Setting("weight of the moment distance (lambda)", 0)] = 0.5
    orders: Annotated[int, Setting("moments of order 1 to this one are matched", 1, 5)] = 2
    pairs: Annotated[bool, Setting("two heads per source that disagree about the target while the encoder makes them agree (beta)")] = True
    inner: Annotated[int, Setting("updates of the encoder per step of the game", 1)] = 4
    accuracies: Annotated[tuple, Setting("of a model of each source alone, by which heads are weighed; none = all alike", 0, 1)] = ()
    training: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 2e-4, "weight_decay": 5e-4, "batch": 128, "target_batch": 128}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """Heads by source: ``first``, and ``second`` where they come in pairs."""
        sources = len(learner.domains) - 1
        if self.accuracies and (len(self.accuracies) != sources or not sum(self.accuracies)):
            raise AcclimateError(f"accuracies = {self.accuracies!r}, but must be one number per source ({sources}), and not all 0")
        heads = ("first", "second") if self.pairs else ("first",)
        return {name: nn.ModuleList([HEADS["linear"](learner.width, learner.classes) for _ in range(sources)]) for name in heads}

    def refresh(self, learner: Any, source: Any, target: Any) -> None:
        """Notes the moment distance of each pair of domains, the target last: {step, distances [domain, domain]}."""
        z = [*source.split(learner.outputs(source.x)[0]), learner.outputs(target.x)[0]]
        apart = torch.stack([torch.stack([moments([a], b, self.orders) for b in z]) for a in z]).cpu()
        learner.memory.setdefault("apart", []).append({"step": learner.step, "distances": apart})

    def step(self, learner: Any, source: Any, target: Any) -> Iterator[Tensor | tuple[Tensor, Any]]:
        """Classes and moments; then heads against encoder."""
        z, z_t = source.split(learner.features(source.x)), learner.features(target.x)
        yield self._task(learner, z, source) + self.weight * moments(z, z_t, self.orders)
        if not self.pairs:
            return
        z = source.split(learner.features(source.x))
        yield self._task(learner, z, source) - self._gap(learner, target), ("first", "second")
        for _ in range(self.inner):
            yield self._gap(learner, target), "featurizer"

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """Logarithm of the class probabilities, mean over a source's heads, weighted mean over sources [row, class]."""
        z, heads = learner.features(x), [learner.parts[name] for name in ("first", "second") if name in learner.parts]
        logs = torch.stack([torch.stack([head(z) for head in each]) for each in heads]).log_softmax(-1)  # [head, source, row, class]
        weight = torch.tensor(self.accuracies or [1.0] * logs.shape[1], dtype=logs.dtype, device=logs.device)
        return (logs + (weight / weight.sum() / len(heads)).log()[:, None, None]).flatten(0, 1).logsumexp(0)

    def _task(self, learner: Any, z: Sequence[Tensor], source: Any) -> Tensor:
        """Each source's rows under its own heads: sum of the losses."""
        heads = [learner.parts["first"], *([learner.parts["second"]] if self.pairs else [])]
        return sum(learner.loss(head(rows), y) for each in heads for head, rows, y in zip(each, z, source.split(source.y), strict=True))

    def _gap(self, learner: Any, target: Any) -> Tensor:
        """How much the two heads of each source disagree about the target, summed over sources."""
        z = learner.features(target.x)
        pairs = zip(learner.parts["first"], learner.parts["second"], strict=True)
        return torch.stack([disagreement(one(z), two(z)) for one, two in pairs]).sum()


def moments(sources: Sequence[Tensor], target: Tensor, orders: int) -> Tensor:
    """Distance of raw moments [row, width]: mean over sources to the target + mean over pairs of sources, summed over orders."""
    total = target.new_zeros(())
    for order in range(1, orders + 1):
        total = total + torch.stack([moment_gap(z, target, order) for z in sources]).mean()
        if len(sources) > 1:
            total = total + torch.stack([moment_gap(a, b, order) for a, b in combinations(sources, 2)]).mean()
    return total
