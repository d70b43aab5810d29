"""Thresholding: any method for closed classes, and "unknown" where its classifier is less sure than nearly all source rows.

Hendrycks & Gimpel 2017 (confidence), https://arxiv.org/abs/1610.02136; Liu et al. 2020 (energy), https://arxiv.org/abs/2010.03759; as the
baselines of Kim et al. 2023, https://arxiv.org/abs/2310.14849
What every method for open classes has to beat; where domains differ little it often stays ahead. ``over`` is trained as it is, with its own
training settings. The threshold is fixed without a label of the target: ``share`` of the held-out source rows (of all source rows where
none are held out) lie above it. Until the end of training nothing is unknown, so that held-out rows choose the best closed classifier.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> source = Batch(torch.tensor([[float(n), 0.0] for n in range(1, 5)]), torch.zeros(4), torch.zeros(4), torch.arange(4), [4])
>>> method = Thresholding(by="energy", share=0.5); method.end(learner, source, None)
>>> method.predict(learner, torch.tensor([[0.0, 2.0], [0.0, 3.0]])).argmax(1).tolist()  # between the energies of 2 and 3; 2 is unknown
[2, 1]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ...kinds import DomainAdaptation
from ...method import Setting, arguments, load
from ...parts.certainty import sureness
from ...parts.openness import with_unknown

BASES = {
    "erm": "domain_generalization.erm", "coral": "domain_generalization.coral", "mmd": "domain_generalization.mmd",
    "dann": "domain_adaptation.dann", "cdan": "domain_adaptation.cdan", "mcd": "domain_adaptation.mcd",
}  # fmt: skip


class Thresholding(DomainAdaptation):
    """Which method is trained, by what it counts as sure, and how many source rows stay known."""

    over: Annotated[str, Setting("the method for closed classes that is trained", choices=tuple(BASES))] = "erm"
    by: Annotated[str, Setting("how sure a row is", choices=("confidence", "entropy", "energy"))] = "confidence"
    share: Annotated[float, Setting("share of held-out source rows that stay above the threshold", 0, 1)] = 0.95
    open: ClassVar[bool] = True
    exempt: ClassVar[dict[str, str]] = {
        "beats_source_only": 'the toy has no class of the target\'s own, where the answer "unknown" can only be wrong'
    }

    def __post_init__(self):
        super().__post_init__()
        self.base = load(BASES[self.over])
        self.training = self.base.training  # type: ignore[misc]

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """As the base method."""
        return self.base.build(learner)

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """As the base method."""
        self.base.begin(learner, source, target)

    def refresh(self, learner: Any, source: Any, target: Any) -> None:
        """As the base method."""
        self.base.refresh(learner, source, target)

    def step(self, learner: Any, source: Any, target: Any = None) -> Iterator[Any]:
        """The base method's losses."""
        words = {"learner": learner, "source": source, "domains": source, "target": target}
        asked = arguments(type(self.base), "step")
        yield from self.base.step(**{word: words[word] for word in asked if words.get(word) is not None})

    @torch.no_grad()
    def end(self, learner: Any, source: Any, target: Any, validation: Any = None) -> None:
        """The threshold."""
        self.base.end(learner, source, target)
        x = (validation or source).x
        sure = torch.cat([sureness(self.base.predict(learner, rows), self.by) for rows in x.split(learner.block)])
        learner.memory["threshold"] = float(sure.double().quantile(1 - self.share))

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """The base method's scores, and how far the row is from known [row, class + 1]."""
        scores = self.base.predict(learner, x)
        return with_unknown(scores, sureness(scores, self.by), learner.memory.get("threshold", -torch.inf))
