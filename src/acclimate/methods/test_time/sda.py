"""SDA: test images and the model that reads them are both brought into a diffusion model's own domain, the model once and beforehand.

Guo et al. 2024, section 3, https://arxiv.org/abs/2406.04295 ; values from the authors' scripts, github.com/SHI-Labs/
Diffusion-Driven-Test-Time-Adaptation-via-Synthetic-Domain-Alignment
As DDA (which see, also for ``scale`` and batches), whose projection leaves traces that the source model never saw. So a copy of it is
tuned on images that a class-conditional diffusion model drew and that went through the same projection; the original reads test images as
they are, the copy their projections, and the logits are summed. One diffusion model serves for both here: classes are hidden from it in a
share ``drop`` of the rows. The copy learns in the last steps of training, by the engine's optimizer, where the authors take 15 to 30 epochs
of SGD at 5e-4; as the cosine course is nearly at its end by then, its rate is five times the others', 1.6e-4 on the mean. The synthetic
rows stay in ``learner.memory["synthetic"]`` until training ends.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity()); learner.progress = 0.9
>>> learner.parts["tuned"] = torch.nn.Identity()
>>> learner.memory["synthetic"] = [torch.tensor([[0.0, 0.0]]), torch.tensor([1])]
>>> batch = Batch(torch.ones(4, 2), torch.zeros(4), torch.zeros(4), torch.arange(4), [4])
>>> [(round(loss.item(), 4), who) for loss, who in Sda().step(learner, batch)]  # log 2, on the synthetic row
[(0.6931, 'tuned')]
"""

import copy
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ...method import Setting
from ...parts.diffusion import drawn
from .dda import Dda


class Sda(Dda):
    """How many synthetic rows there are, and when the copy learns from them."""

    drop: Annotated[float, Setting("share of rows whose class the diffusion model is not told in training", 0, 1)] = 0.5
    per_class: Annotated[int, Setting("synthetic rows of each class", 1)] = 50
    tuning: Annotated[float, Setting("share of the training steps, the last ones, in which the copy is tuned", 0, 1)] = 0.2
    training: ClassVar[dict[str, Any]] = {**Dda.training, "rates": {"tuned": 5.0}}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The diffusion model, and the copy."""
        return {**super().build(learner), "tuned": nn.Sequential(*(copy.deepcopy(part) for part in (learner.featurizer, learner.head)))}

    def step(self, learner: Any, domains: Any) -> Iterator[Any]:
        """As DDA; in the last steps the copy learns the synthetic rows."""
        if learner.progress < 1 - self.tuning:
            yield from super().step(learner, domains)
            return
        if "synthetic" not in learner.memory:
            learner.memory["synthetic"] = self.synthetic(learner)
            for own, part in zip(learner.parts["tuned"], (learner.featurizer, learner.head), strict=True):
                own.load_state_dict(part.state_dict())
        x, y = learner.memory["synthetic"]
        rows = torch.randint(len(y), (len(domains),), generator=learner.generator)
        yield learner.loss(learner.parts["tuned"](x[rows]), y[rows]), "tuned"

    def synthetic(self, learner: Any) -> list[Tensor]:
        """Rows of each class, drawn and projected [row, *shape], and their classes [row]."""
        net, y = learner.parts["generator"], torch.arange(learner.classes, device=learner.device).repeat_interleave(self.per_class)
        noise = torch.randn(len(y), *learner.sample.shape[1:], generator=learner.generator).to(learner.sample)
        parts = zip(noise.split(learner.block), y.split(learner.block), strict=True)
        x = torch.cat([drawn(net, some, classes, self.chain, learner.generator) for some, classes in parts])
        return [self.projected(learner, net.restored(x)), y]

    def end(self, learner: Any, source: Any, target: Any) -> None:
        """The rows have served."""
        learner.memory.pop("synthetic", None)

    def scores(self, learner: Any, x: Tensor, moved: Tensor) -> Tensor:
        """What the source model says of x and the copy of A(x), together [row, class]."""
        return self.together(learner, learner.parts["tuned"], x, moved)
