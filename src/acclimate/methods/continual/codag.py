"""CoDAG: two models take turns over unlabelled domains; one adapts and labels, the other learns from that and generalises.

Cho et al. 2023, https://arxiv.org/abs/2303.15833; learning from false labels: Kim et al. 2019 (SelNLPL), https://arxiv.org/abs/1908.07387
Only the first domain has labels; later ones come as ``target``. In each, for the first ``adapting`` of the steps, a copy of the model is
adapted source-free, its head being frozen. Then the model itself learns from the copy's predictions by ``generalises``, whose loss is
replaced: for a third of the steps left "this is not class k" for a random k (NL), then the same where p(label) > 1 / classes (SelNL), then
cross-entropy where p(label) > ``sure`` (SelPL). To that come the loss on kept rows and the divergence from the model as it was before the
domain. The model that generalises is the one that predicts. Keep rows with Memory(rows=200, choose="herding"). Wrong where domains bring
new classes. The authors' code was not at hand: the length of the phases, rate and weights are our reading. Adapters with parts of their
own, and generalisers that need several domains or play several losses, cannot be plugged in.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner, target = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity()), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
>>> batch = Batch(target, None, torch.zeros(2), torch.arange(2), [2])
>>> method = Codag(generalises="erm"); learner.parts.update(method.build(learner)); method.begin(learner, None, batch)
>>> learner.progress = 0.5
>>> [round(loss.item(), 4) for loss in method.step(learner, target=batch)]  # of two classes k is the other: log 1 + e^-2, log 1 + e^-1
[0.2201]
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ...engines.shift import Learner
from ...engines.shift.plays import as_plays
from ...kinds import Continual
from ...method import Setting, load
from ...parts.false_labels import PHASES, Doubting
from ...parts.teachers import cross_entropy_of, teacher_of


class Codag(Continual):
    """Who adapts, who generalises, and how pseudo-labels are learned from."""

    adapts: Annotated[str, Setting("source-free method of domain_adaptation that adapts the copy", choices=("shot", "nrc"))] = "shot"
    generalises: Annotated[str, Setting("method of domain_generalization that trains the model")] = "randmix"
    adapting: Annotated[float, Setting("share of a domain's steps in which the copy adapts", 0, 1)] = 0.5
    sure: Annotated[float, Setting("probability of its label above which a row is learned from at last", 0, 1)] = 0.5
    distilled: Annotated[float, Setting("weight of the divergence from the model before the domain", 0)] = 1.0
    noisy: Annotated[bool, Setting("pseudo-labels may be false (three phases); otherwise plain cross-entropy")] = True
    apart: Annotated[bool, Setting("two models; otherwise the one that predicts is itself adapted and labels for itself")] = True
    training: ClassVar[dict[str, Any]] = {"optimizer": "sgd", "lr": 5e-3, "batch": 64}
    exempt: ClassVar[dict[str, str]] = {
        "first_task_is_plain_training": "the first domain is learned with the generaliser's augmentation; with 'erm' it is plain training",
    }

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The copy that adapts, and the model before the domain."""
        adapted = {"adapted_featurizer": learner.featurizer, "adapted_head": learner.head}
        return {**{name: copy.deepcopy(part) for name, part in adapted.items()}, "before": teacher_of(learner.featurizer, learner.head)}

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """Both start as the model is now."""
        if target is not None:
            for name, part in (("featurizer", learner.featurizer), ("head", learner.head)):
                learner.parts[f"adapted_{name}"].load_state_dict(part.state_dict())
            learner.parts["before"].load_state_dict(nn.Sequential(learner.featurizer, learner.head).state_dict())
            learner.memory["adapted"] = {}
            self.base().begin(self.adapted(learner), source, target)

    def refresh(self, learner: Any, source: Any, target: Any) -> None:
        """What the adapting method does before every pass."""
        if target is not None and learner.progress < self.adapting:
            self.base().refresh(self.adapted(learner), None, target)

    def step(self, learner: Any, domains: Any = None, target: Any = None, replay: Any = None) -> Iterator[Any]:
        """The copy's losses, then the model's; where there are labels, the generaliser's."""
        base = load(f"domain_generalization.{self.generalises}")
        if target is None:
            yield from base.step(learner=learner, domains=domains)
        elif learner.progress < self.adapting:
            for given in self.base().step(learner=self.adapted(learner), target=target):
                plays = [(loss, self.players(who)) for loss, who in as_plays(given)]
                yield plays if self.apart or replay is None else [*plays, (self.kept(learner, replay), None)]
        else:
            batch = replace(target, y=self.labels(learner, target.x))
            seen = target.x if replay is None else torch.cat([target.x, replay.x])
            doubting = Doubting(learner, self.phase(learner.progress), self.sure)
            (loss,) = base.step(learner=doubting if self.noisy else learner, domains=batch)
            yield loss + self.kept(learner, replay) + self.distilled * self.drift(learner, seen)

    def kept(self, learner: Any, replay: Any) -> Tensor | float:
        """Loss on kept rows, where there are any: scalar."""
        return 0.0 if replay is None else learner.loss(learner(replay.x), replay.y)

    def drift(self, learner: Any, x: Tensor) -> Tensor:
        """KL divergence of the model's answers [row, class] from those of the model before the domain: scalar."""
        with torch.no_grad():
            old = learner.parts["before"].eval()(x)
        return (cross_entropy_of(old, learner(x)) - cross_entropy_of(old, old)).mean()

    @torch.no_grad()
    def labels(self, learner: Any, x: Tensor) -> Tensor:
        """Pseudo-labels by the adapted model [row]."""
        made = self.adapted(learner)
        made.eval()
        found = self.base().predict(made, x).argmax(1)
        made.train(learner.training)
        return found

    def phase(self, progress: float) -> str:
        """Which of the three kinds of learning a share of the run belongs to."""
        return PHASES[min(2, int(3 * (progress - self.adapting) / max(1e-9, 1 - self.adapting)))]

    def base(self) -> Any:
        """The adapting method."""
        return load(f"domain_adaptation.{self.adapts}")

    def players(self, who: Any) -> Any:
        """The adapting method's players by the names they have here."""
        names = ["featurizer", "head"] if who is None else [who] if isinstance(who, str) else list(who)
        return [f"adapted_{name}" for name in names] if self.apart else who

    def adapted(self, learner: Any) -> Any:
        """The copy as a learner of its own; it lives in this learner's parts and memory."""
        own = learner.parts
        featurizer, head = (own["adapted_featurizer"], own["adapted_head"]) if self.apart else (learner.featurizer, learner.head)
        made = Learner(featurizer, learner.names, width=learner.width, head=head, dropout=learner.dropout.p)
        made.memory, made.generator, made.step = learner.memory["adapted"], learner.generator, learner.step
        made.progress = min(1.0, learner.progress / max(1e-9, self.adapting))
        made.domains = learner.domains
        return made.train(learner.training)
