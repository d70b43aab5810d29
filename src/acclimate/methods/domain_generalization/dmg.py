"""DMG: one network in which each source has a learned mask over neurons, some of them shared and some its own.

Chattopadhyay et al. 2020, section 3, https://arxiv.org/abs/2008.12839; overlap on probabilities and sizes as in the authors' code
For sources that shall stay good themselves while an unseen domain is served as well. In training each row draws a mask of its domain, which
passes gradients straight through; an overlap penalty makes masks differ. A trained domain is predicted with the neurons whose probability
is above a half, an unseen one with each source's probabilities as factors, the mean of the class probabilities over sources (scores of
values likewise). Masked are the features, or the outputs of the layers named in ``at`` (by channel; name layers after their activation).
The learner's dropout on features is left out; leave it out of masked layers too. Logits start between 0 and 1, so every neuron is on at
first: masks need a rate and a length of training that let them cross 0 (``rates: {masks: 10}`` in short runs); a large overlap weight can
turn all neurons of a layer off. Weight decay is on masks, too.

>>> import torch
>>> round(overlap(torch.tensor([[1.0, 0.5], [0.5, 0.0]])).item(), 4)  # 0.5 / (1 + 0.5)
0.3333
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ...kinds import DomainGeneralization
from ...method import Setting
from ...parts.places import passing, widths

SMALL = 1e-6


class Dmg(DomainGeneralization):
    """Which layers are masked, and what overlap costs."""

    overlap: Annotated[float, Setting("weight of the overlap of the masks (lambda_o)", 0)] = 0.1
    sparsity: Annotated[float, Setting("weight of the number of neurons that are on (lambda_s)", 0)] = 0.0
    at: Annotated[tuple, Setting("names of the featurizer's layers whose outputs are masked; none = the features")] = ()
    least = 2
    training: ClassVar[dict[str, Any]] = {
        "optimizer": "adam", "lr": 1e-4, "weight_decay": 1e-5, "batch": 21, "schedule": "exponential", "alpha": 1.5,
    }  # fmt: skip

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """Logits of the masks of each layer [domain, neuron]."""
        sizes = [shape[1] for shape in widths(learner.featurizer, self._names(), learner.sample).values()]
        return {"masks": nn.ParameterList([torch.rand(learner.sources, size) for size in sizes])}

    def step(self, learner: Any, domains: Any) -> Iterator[Tensor]:
        """Loss under drawn masks + overlap and size of the masks."""
        shares = self.shares(learner)
        drawn = []
        for share in shares:
            p = share[domains.domain]  # [row, neuron]
            draws = torch.rand(p.shape, generator=learner.generator).to(p)
            drawn.append(((draws < p).to(p) - p).detach() + p)
        loss = learner.loss(self._masked(learner, domains.x, drawn), domains.y)
        loss = loss + self.overlap * torch.stack([overlap(share) for share in shares]).sum()
        yield loss + self.sparsity * torch.stack([share.sum() for share in shares]).sum()

    def predict(self, learner: Any, x: Tensor, where: Any = None) -> Tensor:
        """Scores under a trained domain's own mask; of others the logarithm of the mean over the sources' soft masks [row, class]."""
        shares = self.shares(learner)
        if where is not None and where.number is not None and where.number < len(shares[0]):
            return self._masked(learner, x, [(share[where.number] > 0.5).to(share)[None] for share in shares])
        scores = torch.stack([self._masked(learner, x, [share[None, source] for share in shares]) for source in range(len(shares[0]))])
        return (scores.softmax(2).mean(0) + SMALL).log() if learner.classes else scores.mean(0)

    def shares(self, learner: Any) -> list[Tensor]:
        """Probability that a neuron is on, by layer [domain, neuron]."""
        return [logits.sigmoid() for logits in learner.parts["masks"]]

    @torch.no_grad()
    def shared(self, learner: Any) -> dict[str, list[list[float]]]:
        """Intersection over union of the neurons that are on in two domains, by layer [domain, domain]."""
        found = {}
        for name, share in zip(self._names(), self.shares(learner), strict=True):
            on = (share > 0.5).to(share)
            found[name or "features"] = [[alike(one, other).item() for other in on] for one in on]
        return found

    def _names(self) -> list[str]:
        return list(self.at) or [""]

    def _masked(self, learner: Any, x: Tensor, masks: list[Tensor]) -> Tensor:
        """Scores with the outputs of the layers times masks [row or 1, neuron]."""
        by_name = dict(zip(self._names(), masks, strict=True))

        def change(name: str, output: Tensor) -> Tensor:
            return output * by_name[name].view(*by_name[name].shape, *[1] * (output.ndim - 2))

        with passing(learner.featurizer, self._names(), change):
            return learner.head(learner.featurizer(x))


def alike(p: Tensor, q: Tensor) -> Tensor:
    """Soft intersection over union of probabilities [neuron]: scalar."""
    return ((p * q).sum() + SMALL) / ((p + q - p * q).sum() + SMALL)


def overlap(shares: Tensor) -> Tensor:
    """Mean over pairs of domains of the soft intersection over union [domain, neuron]: scalar."""
    pairs = [alike(p, q) for p, q in combinations(shares, 2)]
    return torch.stack(pairs).mean()
