"""MCD: two heads that disagree about target rows as much as they can, and an encoder that makes them agree.

Saito et al. 2018, section 3.3, https://arxiv.org/abs/1712.02560
Aligns near the borders between classes rather than as a whole. Three updates per step: all on the source; the heads for disagreement, the
source still being right; the encoder, several times, for agreement. Predicts with the mean of both heads.

>>> import torch
>>> disagreement(torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 0.0]])).item()  # mean of |1 - 0.5| and |0 - 0.5|
0.5
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn

from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.discrepancy import disagreement
from ...parts.heads import HEADS


class Mcd(DomainAdaptation):
    """How often the encoder moves in a step."""

    exempt: ClassVar[dict[str, str]] = {
        "beats_source_only": "on the toy's eight features the game of the two heads ends on either side of the source model, by seed; "
        "their moments keep it apart in moment matching (m3sda), which wins by every seed"
    }

    inner: Annotated[int, Setting("updates of the encoder per step (n)", 1)] = 4
    training: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 2e-4, "weight_decay": 5e-4, "batch": 128}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The second head."""
        return {"second": HEADS["linear"](learner.width, learner.classes)}

    def step(self, learner: Any, source: Any, target: Any) -> Iterator[Tensor | tuple[Tensor, Any]]:
        """Steps A, B and C of the paper."""
        yield self._task(learner, source)
        yield self._task(learner, source) - self._gap(learner, target), ("head", "second")
        for _ in range(self.inner):
            yield self._gap(learner, target), "featurizer"

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """Mean scores of both heads."""
        z = learner.features(x)
        return (learner.head(z) + learner.parts["second"](z)) / 2

    def _task(self, learner: Any, source: Any) -> Tensor:
        z = learner.features(source.x)
        return learner.loss(learner.head(z), source.y) + learner.loss(learner.parts["second"](z), source.y)

    def _gap(self, learner: Any, target: Any) -> Tensor:
        z = learner.features(target.x)
        return disagreement(learner.head(z), learner.parts["second"](z))
