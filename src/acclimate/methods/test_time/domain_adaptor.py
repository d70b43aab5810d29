"""DomainAdaptor: mixes source and batch statistics by how far they lie apart, then makes predictions surer at a temperature of their own.

Zhang et al. 2023, sections on AdaMixBN, statistic transformation and generalized entropy minimization, https://arxiv.org/abs/2308.10297
For networks with batch-norm and batches of one domain, small ones too. Every batch starts from the source model again: nothing is learned
over a stream, and the order of batches does not matter. Without batch-norm only the entropy step on other normalisation layers is left.
Left out: the authors' variant trained by meta-learning. The batch's own rows give the statistics also where views are looked at (gem-aug);
variances are divided by the number of values, where the authors' code divides by one less.

>>> import torch
>>> from acclimate.engines.shift import Learner
>>> learner = Learner(torch.nn.BatchNorm1d(2), 2, width=2, head=torch.nn.Identity()).eval()
>>> loss, who = next(DomainAdaptor(mix=False).adapt(learner, torch.tensor([[4.0, 0.0], [0.0, 4.0]])))  # normalised: 1, -1 and -1, 1
>>> round(loss.item(), 4), who  # T = 2 sqrt(2), T^2 = 8, entropy of softmax(1 / T, -1 / T) = 0.6343
(5.0748, 'norms')
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ...kinds import TestTime
from ...method import Setting
from ...parts.norms import batch_norms, batch_statistics
from ...parts.views import random_view

LOSSES = ("gem-t", "gem-skd", "gem-aug")


class DomainAdaptor(TestTime):
    """Which entropy, how many steps, whether statistics are mixed."""

    loss: Annotated[
        str,
        Setting(
            "target of the softened predictions: themselves (gem-t), the ones at temperature 1 (gem-skd), views' (gem-aug)", choices=LOSSES
        ),
    ] = "gem-t"
    steps: Annotated[int, Setting("updates per batch; 0 = mixed statistics alone (AdaMixBN)", 0)] = 1
    mix: Annotated[bool, Setting("whether source statistics are mixed in; off = those of the batch alone")] = True
    views: Annotated[int, Setting("augmented views per row of gem-aug", 1)] = 3
    online: ClassVar[dict[str, Any]] = {"optimizer": "sgd", "lr": 1e-3, "momentum": 0.0}

    def adapt(self, learner: Any, x: Tensor) -> Iterator[tuple[Tensor, str]]:
        """Generalized entropy of the batch; scales and shifts learn, predict the same batch, and are what they were before it."""
        weights = learner.weights("norms")
        kept = [weight.detach().clone() for weight in weights]
        try:
            shares: list[Tensor] = []
            with batch_statistics(learner), folding(learner, shares, self.mix):
                scores = learner(x)
            learner.memory["shares"] = torch.stack(shares) if shares else x.new_zeros(0)  # [layer]
            for _ in range(self.steps):
                yield self.entropy(scores, self.seen(learner, x) if self.loss == "gem-aug" else scores), "norms"
                with batch_statistics(learner):
                    scores = learner(x)
            return scores
        finally:
            with torch.no_grad():
                for weight, source in zip(weights, kept, strict=True):
                    weight.copy_(source)

    def entropy(self, scores: Tensor, target: Tensor) -> Tensor:
        """-T^2 sum q log softmax(z / T), the mean over rows: z centred, T twice its deviation, both without gradient."""
        z = scores - scores.mean(1, keepdim=True).detach()
        temperature = (2 * z.std(1, keepdim=True)).detach().clamp(min=1e-3)
        logs = (z / temperature).log_softmax(1)
        aim = logs.exp() if self.loss == "gem-t" else target.softmax(1).detach()
        return -(temperature.square() * aim * logs).sum(1).mean()

    @torch.no_grad()
    def seen(self, learner: Any, x: Tensor) -> Tensor:
        """Mean scores of augmented views [row, class]."""
        with batch_statistics(learner):
            return torch.stack([learner(random_view(x, learner.generator)) for _ in range(self.views)]).mean(0)


@contextmanager
def folding(net: torch.nn.Module, shares: list[Tensor], mix: bool = True) -> Iterator[None]:
    """Batch-norm layers fold the source's part of the statistics into scale and shift when the batch reaches them; ``shares`` tells it."""

    @torch.no_grad()
    def fold(layer: Any, given: tuple[Tensor]) -> None:
        x, over = given[0], [0, *range(2, given[0].ndim)]
        if x.numel() == x.shape[1]:  # a single value per channel: running statistics alone
            return
        mean, variance = x.mean(over), x.var(over, unbiased=False)
        share = source_share(x, mean, variance, layer.running_mean, layer.running_var)
        mixed = share * layer.running_var + (1 - share) * variance
        deviation = (variance + layer.eps).sqrt()
        layer.weight.mul_(deviation / (mixed + layer.eps).sqrt())
        layer.bias.add_(share * (mean - layer.running_mean) / deviation * layer.weight)
        shares.append(share)

    layers = [layer for layer in batch_norms(net) if mix and layer.affine and layer.track_running_stats]
    hooks = [layer.register_forward_pre_hook(fold) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def source_share(x: Tensor, mean: Tensor, variance: Tensor, source_mean: Tensor, source_variance: Tensor) -> Tensor:
    """How much the source's statistics count, from distances of instance, batch and source [channel] each. Scalar.

    >>> x, zero, one = torch.tensor([[[0.0, 2.0]], [[2.0, 4.0]]]), torch.zeros(1), torch.ones(1)
    >>> share = source_share(x, x.mean((0, 2)), x.var((0, 2), unbiased=False), zero, one)
    >>> round(share.item(), 4)  # d_st = 4 + 0.1716; each row: d_it = 1 + 0.1716, d_is = 1 or 9
    0.5258
    """
    places = x.reshape(*x.shape[:2], -1)
    own = torch.stack([places.mean(2), places.std(2, unbiased=False)])  # [2, row, channel]; one place: a deviation of 0
    batch, source = torch.stack([mean, variance.sqrt()])[:, None], torch.stack([source_mean, source_variance.sqrt()])[:, None]

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().sum(0).mean(-1)

    between, to_batch, to_source = distance(batch, source), distance(own, batch), distance(own, source)
    return (1 - between / (between + to_batch + to_source).clamp(min=1e-12)).clamp(0, 1).mean()
