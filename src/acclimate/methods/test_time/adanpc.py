"""AdaNPC: votes of the nearest training rows, and of the stream's sure rows, which join the memory with the labels they were given.

Zhang et al. 2023, training with neighbours, memory and prediction; details as in the authors' code, https://arxiv.org/abs/2304.12566
No gradient at test time; made for long series of domains that move step by step. Any featurizer; the linear head is not used. Mistakes
that look sure stay in the memory until ``reset``, so it does badly where the first domain is far off. Confidence is the largest value of
softmax(p) of a probability vector p, as in the authors' code, which lies between 1 / C and e / (e + C - 1): ``beta`` is a share of this
range. Choose k, temperature and beta on held-out source rows (engines.online.chosen). The search is exact. Differs: the queue starts with
source rows under the first weights, not with random vectors; with ``steps`` the source rows in the memory are normalised as well.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner, method = Learner(torch.nn.Identity(), 2, width=2), Adanpc(k=2, temperature=0.5, beta=0.0)
>>> method.begin(learner, Batch(torch.eye(2), torch.tensor([0, 1]), torch.zeros(2), torch.arange(2), [2]), None)
>>> [round(v, 3) for v in method.adapt(learner, torch.tensor([[4.0, 3.0]])).exp()[0].tolist()]  # softmax(0.8 / 0.5, 0.6 / 0.5)
[0.599, 0.401]
>>> [round(v, 3) for v in method.adapt(learner, torch.tensor([[3.0, 4.0]])).exp()[0].tolist()]  # that row, now of class 0, is nearer
[0.579, 0.421]
"""

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ...errors import AcclimateError
from ...kinds import TestTime
from ...method import Setting
from ...parts.certainty import entropy
from ...parts.norms import batch_statistics


class Adanpc(TestTime):
    """How the memory is trained for, asked and filled."""

    train: Annotated[str, Setting("loss of the source model: of the neighbours' votes, or cross-entropy", choices=("votes", "plain"))] = (
        "votes"
    )
    queue: Annotated[int, Setting("rows that training votes with, the latest ones (Q); 1000 for small images", 1)] = 3500
    k_train: Annotated[int, Setting("neighbours that vote in training; 10 for small images", 1)] = 150
    k: Annotated[int, Setting("neighbours that vote at test time; the paper looks from 1 to 200", 1)] = 10
    temperature: Annotated[float, Setting("temperature of the votes at test time (T); the paper looks from 0.01 to 0.5", 1e-4)] = 0.1
    beta: Annotated[float, Setting("sureness from which a row is added, as a share of its range; 0 = all rows, above 1 = none", 0)] = 0.25
    most: Annotated[int, Setting("rows of the stream in the memory; the oldest leave first; 0 = no limit", 0)] = 0
    steps: Annotated[int, Setting("updates per batch of a batch-norm on the features, on the entropy of votes; 0 = no such layer", 0)] = 0
    training: ClassVar[dict[str, Any]] = {"lr": 1e-4}
    online: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 1e-4}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The batch-norm of the variant that learns at test time."""
        return {"norm": nn.BatchNorm1d(learner.width)} if self.steps else {}

    @torch.no_grad()
    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """All training rows, in an order drawn anew."""
        if source is None and "memory" not in learner.memory:
            raise AcclimateError(f"{self.name} votes with the training rows, but none are given; pass source=, or train the model with it")
        if source is None:
            return
        order = torch.randperm(len(source), generator=learner.generator)
        z = learner.outputs(source.x[order])[0]
        if self.steps:
            norm = learner.parts["norm"]
            norm.running_mean.copy_(z.mean(0))
            norm.running_var.copy_(z.var(0, unbiased=False))
            z = nn.functional.batch_norm(z, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
        learner.memory["memory"] = {"z": normalize(z), "y": source.y[order], "source": len(z)}

    end = begin  # with the weights that were kept

    def step(self, learner: Any, domains: Any) -> Any:
        """-log of the votes for the label, from a queue of earlier rows, at a temperature that falls from 1 to 0.1; then the rows queue."""
        z = learner.features(domains.x)
        held = learner.memory["memory"]
        if self.train == "votes":
            held = {**held, "z": held["z"][-self.queue :], "y": held["y"][-self.queue :]}
            votes = self.votes(learner, z, held, self.k_train, 1 - 0.9 * learner.progress)
            yield -votes.gather(1, domains.y[:, None]).log().mean()
        else:
            yield learner.loss(learner.head(z), domains.y)
        held = self.add(held, z.detach(), domains.y)
        held = {name: held[name][-self.queue :] for name in ("z", "y")}
        learner.memory["memory"] = {**held, "source": len(held["z"])}

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """Logarithms of the votes [row, class]; nothing is added."""
        return self.votes(learner, self.normed(learner, learner.features(x)), learner.memory["memory"]).log()

    def adapt(self, learner: Any, x: Tensor) -> Any:
        """Logarithms of the votes; sure rows join the memory afterwards."""
        return self.moving(learner, x) if self.steps else self.grown(learner, x)

    def moving(self, learner: Any, x: Tensor) -> Any:
        """The batch-norm learns before it predicts."""
        for _ in range(self.steps):
            with torch.no_grad():
                z = learner.features(x)
            with batch_statistics(learner.parts["norm"]):
                votes = self.votes(learner, self.normed(learner, z), learner.memory["memory"])
            yield entropy(votes).mean(), "norm"
        with batch_statistics(learner.parts["norm"]):
            return self.grown(learner, x)

    @torch.no_grad()
    def grown(self, learner: Any, x: Tensor) -> Tensor:
        """The votes of the memory as it is, to which the sure rows are added."""
        z, held = self.normed(learner, learner.features(x)), learner.memory["memory"]
        votes = self.votes(learner, z, held)
        sure, label = votes.softmax(1).max(1)  # of a probability vector
        low, high = 1 / learner.classes, torch.e / (torch.e + learner.classes - 1)
        added = sure >= low + self.beta * (high - low) - 1e-6
        held = self.add(held, z[added], label[added])
        if self.most and len(held["z"]) > held["source"] + self.most:
            kept = [*range(held["source"]), *range(len(held["z"]) - self.most, len(held["z"]))]
            held = {**held, "z": held["z"][kept], "y": held["y"][kept]}
        learner.memory["memory"] = held
        return votes.log()

    def votes(self, learner: Any, z: Tensor, held: dict, k: int = 0, temperature: float = 0.0) -> Tensor:
        """Share of each class among the k nearest rows, weighted by softmax(cosine / T) [row, class]."""
        near, place = self.neighbours(z, held, k or self.k)
        weight = (near / (temperature or self.temperature)).softmax(1)
        share = weight.new_zeros(len(z), learner.classes).scatter_add(1, held["y"][place], weight)
        return (share + 1e-5).clamp(max=1)

    def neighbours(self, z: Tensor, held: dict, k: int) -> tuple[Tensor, Tensor]:
        """Cosines of the k nearest rows of the memory, and their places in it [row, k]: who speaks for a prediction."""
        return (normalize(z) @ held["z"].T.to(z.dtype)).topk(min(k, len(held["z"])), 1)

    def normed(self, learner: Any, z: Tensor) -> Tensor:
        """Features as they are compared."""
        return learner.parts["norm"](z) if self.steps else z

    def add(self, held: dict, z: Tensor, y: Tensor) -> dict:
        """The memory with more rows."""
        return {**held, "z": torch.cat([held["z"], normalize(z).to(held["z"].dtype)]), "y": torch.cat([held["y"], y])}
