"""UniOT: carries target rows to the source classes by optimal transport; rows that little mass leaves, or none surely, are unknown.

Chang et al. 2022, equations 3 to 12, https://arxiv.org/abs/2210.17067; github.com/changwxx/UniOT-for-UniDA
Two transports. To class vectors of the source, with marginals that need not be kept: rows with more than the mean mass in one class, of a
class with more than the mean mass, learn that class (common classes); an average of the column masses remains from step to step. To
``clusters`` vectors of the target's own, evenly: each row and its nearest neighbour learn each other's assignment (private classes).
So that the mean separates, the rarer of likely and unlikely rows (cosine above ``likely``) are filled up first, by surely known rows or by
rows mixed with the class farthest off. The threshold is that mean: nothing is tuned. Differences from the authors' code: a bank of the
latest features of all target rows instead of a queue of 2,000, and the last transport is solved on all target rows seen in training, from
whose class scalings a new row's mass follows, so that answers do not depend on which rows are asked about together.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=3)
>>> method = Uniot(likely=0.5); learner.parts.update(method.build(learner))
>>> with torch.no_grad(): _ = learner.parts["classes"].weight.copy_(torch.eye(3)[:2])
>>> x = torch.tensor([[1.0, 0.0, 0.1], [0.9, 0.1, 0.0], [0.0, 1.0, 0.1], [0.3, 0.4, 0.9], [0.4, 0.3, 0.9], [0.1, 1.0, 0.0]])
>>> method.end(learner, None, Batch(x, None, torch.ones(6), torch.arange(6), [6]))
>>> method.predict(learner, x).argmax(1).tolist()
[0, 0, 1, 2, 2, 1]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.heads import Cosine
from ...parts.openness import with_unknown
from ...parts.transport import balanced, column_scaling, row_plan

SMOOTH, RELAXED = 0.01, 0.5  # of the transport to classes: entropy (epsilon), divergence of the marginals (kappa)


class Uniot(DomainAdaptation):
    """The weight of both transports, the target's own clusters, and what is filled up."""

    weight: Annotated[float, Setting("weight of the losses of both transports (lambda)", 0)] = 0.1
    clusters: Annotated[int, Setting("vectors for the target's own classes (K)", 2)] = 50
    temperature: Annotated[float, Setting("temperature of cosines (tau)", 0.001)] = 0.1
    likely: Annotated[float, Setting("cosine with a class from which a row is likely known (gamma)", -1, 1)] = 0.7
    keep: Annotated[float, Setting("share of the classes' old masses that is kept at each step (mu)", 0, 1)] = 0.7
    fill: Annotated[int, Setting("rows of the bank beside the batch in the transport to classes", 0)] = 500
    wait: Annotated[float, Setting("share of the run before target rows learn classes", 0, 1)] = 0.1
    open: ClassVar[bool] = True
    exempt: ClassVar[dict[str, str]] = {
        "beats_source_only": 'the toy has no class of the target\'s own, where the answer "unknown" can only be wrong'
    }
    training: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "schedule": "inverse", "batch": 36,
    }  # fmt: skip

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """Vectors of the source classes and of the target's clusters, compared by cosine; the learner's own head is left alone."""
        heads = {
            name: Cosine(learner.width, n, 1 / self.temperature) for name, n in (("classes", learner.classes), ("clusters", self.clusters))
        }
        for head in heads.values():
            head.scale.requires_grad_(False)
        return dict(heads)

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """The bank of features, of length 1, and even masses of the classes."""
        z = learner.outputs(target.x)[0]
        learner.memory |= {"bank": normalize(z), "masses": z.new_full((learner.classes,), 1 / learner.classes)}

    def step(self, learner: Any, source: Any, target: Any) -> Iterator[Tensor]:
        """Class loss on the source + the losses of both transports on the target."""
        z = learner.features(target.x)
        bank, unit = learner.memory["bank"], normalize(z).detach()
        loss = self.private(learner, z, unit, target.rows, bank)
        if learner.progress >= self.wait:
            filled = torch.cat([bank[self._some(learner, len(bank), self.fill)], unit])
            mass, labels = self.common(learner, filled, learner.memory["masses"])
            learner.memory["masses"] = self.keep * learner.memory["masses"] + (1 - self.keep) * mass
            labels = labels[-len(z) :]
            if (labels < learner.classes).any():
                loss = loss + cross_entropy(learner.parts["classes"](z), labels, ignore_index=learner.classes)
        bank[target.rows] = unit
        yield learner.loss(learner.parts["classes"](learner.features(source.x)), source.y) + self.weight * loss

    @torch.no_grad()
    def end(self, learner: Any, source: Any, target: Any) -> None:
        """Transport of all target rows: the scalings of the classes, how many rows there were (filled ones too), the whole mass."""
        z = normalize(learner.outputs(target.x)[0])
        masses = learner.memory.get("masses", z.new_full((learner.classes,), 1 / learner.classes))
        cosine = self._cosine(learner, self.filled_up(learner, z, masses))
        v = column_scaling(cosine, masses, SMOOTH, RELAXED)
        mean = row_plan(cosine, v, len(cosine), SMOOTH, RELAXED).sum() / len(cosine)
        learner.memory |= {"scalings": v, "rows": len(cosine), "mean": float(mean)}

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """Logarithm of each class's mass and of the mean that a known row must exceed [row, class + 1]; before the end plain scores."""
        z = learner.features(x)
        if "scalings" not in learner.memory:
            scores = learner.parts["classes"](z)
            return with_unknown(scores, scores.amax(1), -torch.inf)
        plan = row_plan(self._cosine(learner, normalize(z)), learner.memory["scalings"], learner.memory["rows"], SMOOTH, RELAXED)
        return torch.cat([plan, torch.full_like(plan[:, :1], learner.memory["mean"])], 1).log().to(z)

    def private(self, learner: Any, z: Tensor, unit: Tensor, rows: Tensor, bank: Tensor) -> Tensor:
        """Rows and their nearest neighbours learn each other's clusters, and rows their own, as an even transport assigns them."""
        near = bank[(unit @ bank.T).scatter(1, rows[:, None], -torch.inf).argmax(1)]
        heads, count = learner.parts["clusters"], len(z)
        scores, others = heads(z), heads(near)
        with torch.no_grad():
            fill = heads(bank[self._some(learner, len(bank), self.clusters)])
            shares = balanced(torch.cat([scores, others, fill]) * self.temperature)
        own, theirs = shares[:count], shares[count : 2 * count]
        swapped = (cross_entropy(scores, theirs) + cross_entropy(others, own)) / 2
        return (cross_entropy(scores, own) + swapped) / 2

    @torch.no_grad()
    def common(self, learner: Any, z: Tensor, masses: Tensor, fill: bool = True) -> tuple[Tensor, Tensor]:
        """Masses of the classes [class], and the class that each row surely is of (their number where none) [row]."""
        cosine = self._cosine(learner, self.filled_up(learner, z, masses) if fill else z)
        plan = row_plan(cosine, column_scaling(cosine, masses, SMOOTH, RELAXED), len(cosine), SMOOTH, RELAXED)
        plan = plan / plan.sum()
        mass, (most, labels) = plan.sum(0), plan[-len(z) :].max(1)
        known = (most > 1 / len(plan)) & (mass[labels] >= 1 / len(mass))
        return mass.to(masses), labels.where(known, torch.full_like(labels, len(mass)))

    @torch.no_grad()
    def filled_up(self, learner: Any, z: Tensor, masses: Tensor) -> Tensor:
        """As many likely as unlikely rows, the rows themselves last: surely known ones again, or ones mixed with the farthest class."""
        cosine = self._cosine(learner, z)
        likely = int((cosine.amax(1) > self.likely).sum())
        short = abs(len(z) - 2 * likely)
        if 2 * likely > len(z):
            more = normalize(z + normalize(learner.parts["classes"].weight)[cosine.argmin(1)])
        else:
            more = z[self.common(learner, z, masses, fill=False)[1] < len(masses)]
        return torch.cat([more[self._some(learner, len(more), short)], z]) if len(more) else z

    @staticmethod
    def _cosine(learner: Any, unit: Tensor) -> Tensor:
        return unit @ normalize(learner.parts["classes"].weight).T

    @staticmethod
    def _some(learner: Any, count: int, wanted: int) -> Tensor:
        return torch.randint(count, (wanted,), generator=learner.generator)
