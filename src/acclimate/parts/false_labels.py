"""Learning from labels of which some are false: what a row is not, before what it is.

Kim et al. 2019, equations 2 and 3, section 3.3 (SelNLPL), https://arxiv.org/abs/1908.07387"""

from typing import Any

import torch
from torch import Tensor

PHASES = ("negative", "sure negative", "sure positive")


def negative_positive(scores: Tensor, y: Tensor, phase: str, sure: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each row's loss and whether it counts, [row] each: scores [row, class] under labels that may be false.

    negative: -log(1 - p) of a random other class; sure negative: the same, where the label has p > 1 / classes; sure positive: -log p of
    the label, where p > ``sure``.

    >>> scores, y = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 0])  # the second row's label has p = 0.05
    >>> draw = torch.Generator().manual_seed(0)
    >>> [negative_positive(scores, y, phase, 0.5, draw)[1].tolist() for phase in PHASES]
    [[True, True], [True, False], [True, False]]
    >>> negative_positive(scores, y, "negative", 0.5, draw)[0].round(decimals=4).tolist()  # of two classes k is the other one
    [0.12690000236034393, 3.0485999584198]
    """
    classes = scores.shape[1]
    own = scores.log_softmax(1).gather(1, y[:, None])[:, 0]
    if phase == "sure positive":
        return -own, own.exp() > sure
    other = (y + torch.randint(1, max(2, classes), y.shape, generator=draw).to(y)) % classes
    loss = scores.logsumexp(1) - scores.scatter(1, other[:, None], -torch.inf).logsumexp(1)
    return loss, own.exp() > (1 / classes if phase == "sure negative" else -1.0)


class Doubting:
    """A learner to which any method can be applied as if labels were true: its loss is that of a phase; in all else it is itself."""

    def __init__(self, learner: Any, phase: str, sure: float):
        self.learner, self.phase, self.sure = learner, phase, sure

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)

    def __call__(self, x: Tensor) -> Tensor:
        """Scores [row, class]."""
        return self.learner(x)

    def loss(self, scores: Tensor, y: Tensor, each: bool = False) -> Tensor:
        """Mean over the rows that count (0 if none does), or each row's loss, 0 where it does not count."""
        values, count = negative_positive(scores, y, self.phase, self.sure, self.learner.generator)
        values = values * count
        return values if each else values.sum() / count.sum().clamp(min=1)
