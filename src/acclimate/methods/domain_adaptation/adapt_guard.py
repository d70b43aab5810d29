"""AdaptGuard: gives a received source model's knowledge, and not its weights, to a new network that resists small perturbations.

Sheng et al. 2023, sections 3.2 to 3.4, https://arxiv.org/abs/2303.10594; github.com/TomSheng21/AdaptGuard
For source models of unknown origin, which may carry a backdoor or be weak to universal perturbations: purify first, then run SHOT or any
other source-free method on the result as if it were the source model. The student must not start from the source model's weights: give it
pretrained weights of another origin. It sees of the source model only a table of class probabilities of the target rows, which ``adopt``
makes before training; where the model is a black box, fill ``learner.memory["teacher"]`` [row, class] yourself. Inputs lie in ``bounds``
and are not normalised (the network does that), as the radius is in their unit.
The radius grows from 0 with progress; the authors count from 1, so theirs is one step ahead. The table moves between passes over the
target, so a run of fewer than ten has fewer refreshes. ``temperature`` softens both sides, where the authors' code divides the table by it.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> target = Batch(torch.tensor([[0.5, 0.5]]), None, torch.zeros(1), torch.arange(1), [1])
>>> learner.memory["teacher"] = torch.tensor([[0.75, 0.25]]); learner.progress = 0.5; method = AdaptGuard(radius=0.2, refreshes=1)
>>> method.begin(learner, None, target)
>>> [round(loss.item(), 4) for loss in method.step(learner, target)]  # half of 0.1308 at (0.5, 0.5) and of 0.1857 at (0.4, 0.6)
[0.1583]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from ...errors import AcclimateError
from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.attacks import pgd


class AdaptGuard(DomainAdaptation):
    """The attack, the weights of both divergences, and how the table follows the student."""

    radius: Annotated[float, Setting("largest change of an input entry at the end (epsilon)", 0)] = 4 / 255
    growing: Annotated[bool, Setting("the radius grows with progress; off = it is the largest from the start")] = True
    attacks: Annotated[int, Setting("steps of an attack (projected gradient descent)", 1)] = 7
    clean: Annotated[float, Setting("weight of the divergence on rows as they are", 0)] = 0.5
    attacked: Annotated[float, Setting("weight of the divergence on attacked rows; 0 = plain distillation", 0)] = 0.5
    keep: Annotated[float, Setting("share of the old table that a refresh keeps", 0, 1)] = 0.6
    refreshes: Annotated[int, Setting("shares of the run after each of which the table moves to the student", 1)] = 10
    top: Annotated[int, Setting("how many of the source model's classes are believed, the rest alike; 0 = all", 0)] = 0
    temperature: Annotated[float, Setting("temperature of the distillation", 0.01)] = 1.0
    bounds: Annotated[tuple | None, Setting("least and largest value of an input entry; none = any")] = (0.0, 1.0)
    fresh: ClassVar[bool] = True
    exempt: ClassVar[dict[str, str]] = {
        name: "it hands on what the source model knows, mistakes included; what runs on the result adapts"
        for name in ("learns", "beats_source_only")
    }
    training: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "rates": {"featurizer": 0.1},
        "schedule": "inverse", "power": 1.5, "batch": 64,
    }  # fmt: skip

    def adopt(self, learner: Any, model: Any, x: Tensor) -> None:
        """The source model's class probabilities of all target rows, the only thing that is taken over."""
        learner.memory["teacher"] = believed(model.outputs(x)[1].softmax(1), self.top)

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """Nothing can be learned without the table."""
        table = learner.memory.get("teacher")
        if table is None or len(table) != len(target):
            raise AcclimateError(
                f"adapt_guard learns from a source model's probabilities of the {len(target)} target rows, but "
                f'learner.memory["teacher"] holds {"none" if table is None else len(table)}; call adopt(learner, model, x) first'
            )
        learner.memory["refreshed"] = 0

    def refresh(self, learner: Any, source: Any, target: Any) -> None:
        """The table moves to the student at the first pass after each share of the run."""
        due = int(learner.progress * self.refreshes + 1e-6)
        if due > learner.memory["refreshed"]:
            now = learner.outputs(target.x)[1].softmax(1)
            learner.memory |= {"teacher": self.keep * learner.memory["teacher"] + (1 - self.keep) * now, "refreshed": due}

    def step(self, learner: Any, target: Any) -> Iterator[Tensor]:
        """clean x KL(table || student) + attacked x KL(table || student on attacked rows)."""
        wanted = learner.memory["teacher"][target.rows]
        loss = self.clean * self.divergence(wanted, learner(target.x))
        if self.attacked:
            loss = loss + self.attacked * self.divergence(wanted, learner(self.attack(learner, target.x, wanted.argmax(1))))
        yield loss

    def attack(self, learner: Any, x: Tensor, labels: Tensor) -> Tensor:
        """Rows moved away from the labels, by a student in evaluation mode."""
        radius, was = self.radius * (learner.progress if self.growing else 1.0), learner.training
        learner.eval()
        moved = pgd(
            lambda a: cross_entropy(learner(a), labels, reduction="none"), x, radius, self.attacks, 2.5 * radius / self.attacks, self.bounds
        )
        learner.train(was)
        return moved

    def divergence(self, wanted: Tensor, scores: Tensor) -> Tensor:
        """Mean KL(wanted || student), both softened."""
        soft = (wanted.clamp(min=1e-12).log() / self.temperature).softmax(1)
        return kl_div((scores / self.temperature).log_softmax(1), soft, reduction="batchmean")


def believed(probabilities: Tensor, top: int) -> Tensor:
    """The ``top`` largest of each row's probabilities as they are, the others at their mean; all as they are for 0 [row, class].

    >>> import torch
    >>> believed(torch.tensor([[0.5, 0.25, 0.125, 0.125, 0.0]]), 2).round(decimals=4).tolist()
    [[0.5, 0.25, 0.08330000191926956, 0.08330000191926956, 0.08330000191926956]]
    """
    classes = probabilities.shape[1]
    if not 0 < top < classes:
        return probabilities
    values, places = probabilities.topk(top, 1)
    rest = ((1 - values.sum(1, keepdim=True)) / (classes - top)).expand(-1, classes)
    return rest.scatter(1, places, values)
