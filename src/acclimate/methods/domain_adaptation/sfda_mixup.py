"""SFDA mixup: source-free; every target row is mixed with its own translation into a generic domain while another method adapts.

Kundu et al. 2022, sections 3 and 4, https://arxiv.org/abs/2206.08009
Mixing keeps what tells the classes (discriminability) and drops what tells the domains (transferability); parts/generic.py measures both.
Works in both phases: domain_generalization.self_mixup trains the source model on mixtures and this method runs SHOT or NRC on mixtures of
the target, with the same ``level`` and ``share``, and predicts on them. Use "input" for images whose edges say what they are. A source
model that was not trained with self_mixup has no translator: then the feature level changes nothing, and the base method is left.
The paper's own share was not found; 0.9 is that of a re-implementation, github.com/FengHZ/CoSDA.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> learner.parts["translator"] = torch.nn.Linear(2, 2, bias=False)
>>> _ = torch.nn.init.zeros_(learner.parts["translator"].weight)  # the generic row is 0: all that mixing does is scale
>>> target = Batch(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), None, torch.zeros(2), torch.arange(2), [2])
>>> method = SfdaMixup(share=0.5, pseudo=0.0); method.refresh(learner, None, target)
>>> [round(loss.item(), 4) for loss, who in method.step(learner, target)]  # entropy of (e, 1) / (e + 1), less log 2
[-0.1109]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn

from ...kinds import DomainAdaptation
from ...method import Setting, load
from ...parts.generic import LEVELS, Mixed, Translator


class SfdaMixup(DomainAdaptation):
    """Where rows are mixed, in what share, and which method adapts on the mixtures."""

    level: Annotated[str, Setting("mix features with their translation, or images with their edges", choices=LEVELS)] = "feature"
    share: Annotated[float, Setting("share of the row itself in the mixture (lambda)", 0, 1)] = 0.9
    base: Annotated[str, Setting("the source-free method that sees the mixtures", choices=("shot", "nrc"))] = "shot"
    pseudo: Annotated[float, Setting("SHOT's weight of the loss on pseudo-labels (beta)", 0)] = 0.3
    training: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "schedule": "inverse", "batch": 64,
    }  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        self.adapts = load(f"domain_adaptation.{self.base}", **({"pseudo": self.pseudo} if self.base == "shot" else {}))

    def vendor(self) -> Any:
        """The source model is trained on mixtures too."""
        return load("domain_generalization.self_mixup", level=self.level, share=self.share)

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """A translator that changes nothing, where the source model has none."""
        return {"translator": Translator(learner.width)} if self.level == "feature" else {}

    def mixed(self, learner: Any) -> Mixed:
        """The learner as the base method sees it."""
        return Mixed(learner, self.level, self.share)

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """As the base method."""
        self.adapts.begin(self.mixed(learner), source, target)

    def refresh(self, learner: Any, source: Any, target: Any) -> None:
        """As the base method."""
        self.adapts.refresh(self.mixed(learner), source, target)

    def step(self, learner: Any, target: Any) -> Iterator[tuple[Tensor, Any]]:
        """The base method's losses, on mixtures."""
        yield from self.adapts.step(self.mixed(learner), target)

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """Scores of the mixture."""
        return self.adapts.predict(self.mixed(learner), x)
