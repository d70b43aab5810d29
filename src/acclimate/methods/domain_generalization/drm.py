"""DRM: a head for each source and one for all, from which every row takes the one that is surest, or a mixture.

Zhang et al. 2022, section 4, https://arxiv.org/abs/2208.08661; steps and estimators as in the authors' code
For sources that contradict each other under a common encoder; heads cost next to nothing. A row's gap to a head is the entropy of the
head's prediction, 1 / the probability that a domain classifier gives the head's source, or the distance of its features to the mean of that
source's latest batches. ``gamma`` below 0 takes the head of least gap, else heads are weighed by gap^-gamma; 0 is their plain mean. Surest
is not always right: a shortcut that the sources share makes every head sure. On a stream (engines.online) heads go on learning from labels
that they are sure of; the paper's alpha is the stream's rate divided by that of training, and predictions are those before a step's update.
The public code takes one head per batch, leaves the shared head out of mixtures, and takes the domain of least cosine: here are each row's
own weights, ``include_shared``, and the nearest. The shared head has no domain, so only entropy can tell its gap.

>>> import torch
>>> scores = torch.tensor([[[2.0, 0.0]], [[0.0, 0.5]]])  # two heads, one row; entropies 0.3653 and 0.6629
>>> gaps = torch.stack([entropy(each) for each in scores])
>>> [round(steered(scores, gaps, gamma)[0].exp()[0].item(), 4) for gamma in (-1, 0, 1)]  # weights of the last: 0.6447, 0.3553
[0.8808, 0.6292, 0.702]
"""

from collections.abc import Generator, Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from ...errors import AcclimateError
from ...kinds import DomainGeneralization
from ...method import Setting
from ...parts.certainty import entropy
from ...parts.discrepancy import mean_and_covariance_gap
from ...parts.heads import HEADS, mlp

ESTIMATORS = ("entropy", "discriminator", "cosine", "distance")
SMALL = 1e-6


class Drm(DomainGeneralization):
    """How heads are chosen, and what they go on learning from."""

    gamma: Annotated[float, Setting("exponent of the gap in a head's weight; below 0 = the head of least gap alone")] = -1.0
    estimator: Annotated[str, Setting("what tells a row's gap to a head", choices=ESTIMATORS)] = "entropy"
    include_shared: Annotated[bool, Setting("whether the head of all sources may be chosen and mixed")] = True
    bank_batches: Annotated[int, Setting("latest batches whose features stand for a source (cosine, distance)", 1)] = 50
    hidden: Annotated[int, Setting("width of the domain classifier", 1)] = 64
    invariance: Annotated[float, Setting("weight of the gap between the sources' features (CORAL); 0 = none", 0)] = 0.0
    labels: Annotated[
        str,
        Setting("whose labels a stream teaches: each head's own, the plain mean's, the steered ones'", choices=("own", "mixed", "steered")),
    ] = "steered"
    beta: Annotated[float, Setting("least probability of a label that is learned from a stream; above 1 = no updates", 0)] = 1.1
    steps: Annotated[int, Setting("updates per batch of a stream", 1)] = 1
    full: Annotated[bool, Setting("whether all weights learn from a stream; off = the heads")] = False
    training: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 5e-5, "batch": 32}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """A head for each source; the learner's own is that of all."""
        if not learner.classes:
            raise AcclimateError("domain_generalization.drm chooses between classifiers, but values are predicted; choose d3g")
        parts: dict[str, nn.Module] = {
            "heads": nn.ModuleList([HEADS["linear"](learner.width, learner.classes) for _ in range(learner.sources)])
        }
        if self.estimator == "discriminator":
            parts["discriminator"] = mlp(learner.width, [self.hidden], learner.sources)
        return parts

    def step(self, learner: Any, domains: Any) -> Iterator[Tensor]:
        """Mean over sources of the mean loss of both heads, and what gaps need."""
        z = learner.features(domains.x)
        parts, y = domains.split(z), domains.split(domains.y)
        own = [learner.loss(head(rows), labels) for head, rows, labels in zip(learner.parts["heads"], parts, y, strict=True)]
        common = [learner.loss(learner.head(rows), labels) for rows, labels in zip(parts, y, strict=True)]
        loss = torch.stack(own + common).mean()
        if self.invariance:
            loss = loss + self.invariance * mean_and_covariance_gap(parts)
        if self.estimator == "discriminator":
            loss = loss + cross_entropy(learner.parts["discriminator"](z.detach()), domains.domain)
        elif self.estimator != "entropy":
            means = torch.stack([rows.detach().mean(0) for rows in parts])[None]  # [1, source, width]
            bank = learner.memory.get("bank", means[:0])
            learner.memory["bank"] = torch.cat([bank, means])[-self.bank_batches :]
        yield loss

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """Logarithm of the class probabilities of each row's head or mixture [row, class]."""
        z = learner.features(x)
        return self._steered(learner, z, heads(learner, z))

    def adapt(self, learner: Any, x: Tensor) -> Generator[tuple[Tensor, Any], None, Tensor]:
        """Sum over heads of the loss on labels that are sure enough; returns scores."""
        for _ in range(self.steps):
            z = learner.features(x)
            scores = heads(learner, z)
            found = self._steered(learner, z, scores)
            shares = scores.softmax(2)
            taught = {"own": shares, "mixed": shares.mean(0, keepdim=True), "steered": found.exp()[None]}[self.labels]
            sure, y = taught.detach().expand_as(scores).max(2)  # [head, row]
            known = sure >= self.beta
            losses = [cross_entropy(of[rows], to[rows]) for of, to, rows in zip(scores, y, known, strict=True) if rows.any()]
            if losses:
                yield torch.stack(losses).sum(), None if self.full else ("heads", "head")
        return found

    def gaps(self, learner: Any, z: Tensor, scores: Tensor) -> Tensor:
        """How far each head is from each row of features, of the sources' heads and (entropy) the shared one [head, row]."""
        sources = len(learner.parts["heads"])
        if self.estimator == "entropy":
            return torch.stack([entropy(each) for each in scores[: sources + self.include_shared]])
        if self.estimator == "discriminator":
            return 1 / learner.parts["discriminator"](z).softmax(1).T.clamp(min=SMALL)
        middle = learner.memory["bank"].mean(0).to(z)  # [source, width]
        if self.estimator == "cosine":
            return 1 - cosine_similarity(middle[:, None], z[None], dim=2)
        return (middle[:, None] - z[None]).norm(dim=2)

    def _steered(self, learner: Any, z: Tensor, scores: Tensor) -> Tensor:
        gaps = self.gaps(learner, z, scores)
        return steered(scores[: len(gaps)], gaps, self.gamma)


def heads(learner: Any, z: Tensor) -> Tensor:
    """Scores of every head, the shared one last [head, row, class]."""
    return torch.stack([head(z) for head in (*learner.parts["heads"], learner.head)])


def steered(scores: Tensor, gaps: Tensor, gamma: float) -> Tensor:
    """Logarithm of the mixture of softmax(scores) [head, row, class] by gaps [head, row]: the least one's, or weights gap^-gamma."""
    logs = scores.log_softmax(2)
    if gamma < 0:
        return logs[gaps.argmin(0), torch.arange(scores.shape[1], device=scores.device)]
    weights = (-gamma * gaps.clamp(min=SMALL).log()).log_softmax(0)
    return (weights[:, :, None] + logs).logsumexp(0)
