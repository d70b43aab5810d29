"""OnDA: follows conditions that come and go, with labels from prototypes and from whichever of two models suits the present.

Panagiotakopoulos et al. 2022, section 3, https://arxiv.org/abs/2207.10667; constants and details as in github.com/theo2021/OnDA
For segmentation and classification on a stream whose conditions change slowly and return (weather, hours of the day). The network keeps
batch-norm's source statistics. A slow teacher's features are compared with class prototypes; the likelihood times a prior gives the label.
The prior is that of the source model (static) while it is sure, or of an earlier student (dynamic) where it is not. Rows of the source are
replayed, so they must be at hand. Not for sudden changes: the switch looks at ``window`` batches, and the constants are for long streams.
Between the two limits the last clear direction counts. Sureness is the mean over the window, where the authors take the median. Returned
are the student's scores before its update. Left out: the authors' options to put target rows into the buffer and to change the temperature.

>>> import torch
>>> prototypes = {"mean": torch.tensor([[0.0], [2.0]]), "square": torch.tensor([[1.0], [5.0]]), "count": torch.tensor([1.0, 1.0])}
>>> q = corrected(torch.tensor([[0.5]]), torch.tensor([[0.5, 0.5]]), prototypes, 1.0)  # deviation sqrt(3 - 1), distances 0.3536 and 1.0607
>>> [round(v, 4) for v in q[0].tolist()]  # softmax(0, -0.7071)
[0.6698, 0.3302]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ...errors import AcclimateError
from ...kinds import TestTime
from ...method import Setting
from ...parts.segmentation import places
from ...parts.teachers import follow, teacher_of

MODELS = ("teacher", "static", "dynamic")


class Onda(TestTime):
    """Labels, the switch, the weights of the losses, and what moves how slowly."""

    prior: Annotated[str, Setting("whose predictions are the prior", choices=("switch", *MODELS))] = "switch"
    prototypes: Annotated[bool, Setting("whether prototypes correct the prior; off = the prior alone")] = True
    temperature: Annotated[float, Setting("temperature of the distances to prototypes (tau)", 1e-6)] = 1.0
    threshold: Annotated[float, Setting("probability below which a label is left out", 0, 1)] = 0.3
    low: Annotated[float, Setting("the source model's sureness below which the prior is dynamic", 0, 1)] = 0.83
    high: Annotated[float, Setting("its sureness above which the prior is static", 0, 1)] = 0.9
    change: Annotated[float, Setting("change of the smoothed sureness in a batch that counts as a direction", 0)] = 2e-4
    window: Annotated[int, Setting("batches over which sureness is averaged", 3)] = 200
    wait: Annotated[int, Setting("batches after which the dynamic model may be renewed, where sureness changes", 0)] = 500
    keep: Annotated[float, Setting("share of the teacher that stays at every step", 0, 1)] = 0.999
    keep_prototypes: Annotated[float, Setting("share of a prototype that stays at every step", 0, 1)] = 0.9995
    ce: Annotated[float, Setting("weight of the cross-entropy on labels found (alpha)", 0)] = 0.1
    rce: Annotated[float, Setting("weight of the reverse cross-entropy (beta)", 0)] = 1.0
    even: Annotated[float, Setting("weight of the divergence from even predictions", 0)] = 0.1
    replay: Annotated[int, Setting("source rows that are kept; as many as in the batch are replayed; 0 = none", 0)] = 1000
    online: ClassVar[dict[str, Any]] = {"optimizer": "sgd", "lr": 1e-5, "momentum": 0.9}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The slow teacher, the source model, and an earlier student."""
        return {name: teacher_of(learner.featurizer, learner.head) for name in MODELS}

    @torch.no_grad()
    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """All models are the source model; its prototypes are counted, and source rows drawn that stay."""
        if source is None and "prototypes" not in learner.memory:
            raise AcclimateError(f"{self.name} needs source rows for prototypes and replay; pass source=, or train the model with it")
        for name in MODELS:
            learner.parts[name].load_state_dict(teacher_of(learner.featurizer, learner.head).state_dict())
        learner.memory |= {"sureness": [], "now": "static", "direction": "static", "waited": 0, "trace": []}
        if source is None:
            return
        sums = [self.sums(learner, learner.parts["static"][0](x), y) for x, y in zip(source.x.split(64), source.y.split(64), strict=True)]
        mean, square, count = (torch.stack(parts).sum(0) for parts in zip(*sums, strict=True))
        kept = torch.randperm(len(source.x), generator=learner.generator)[: self.replay]
        learner.memory |= {
            "prototypes": {"mean": mean / count.clamp(min=1)[:, None], "square": square / count.clamp(min=1)[:, None], "count": count},
            "replay": [source.x[kept], source.y[kept]],
        }  # fmt: skip

    end = begin  # with the weights that were kept

    def adapt(self, learner: Any, x: Tensor) -> Iterator[Tensor]:
        """ce x CE + rce x reverse CE on labels found + even x mean(-log p) + CE on replayed rows; then the teacher follows."""
        labels = self.labels(learner, x)
        scores = learner(x)
        logs = places(scores).log_softmax(1)
        own, known = logs.gather(1, labels.clamp(min=0)[:, None])[:, 0], labels >= 0
        reverse = (own.exp() - 1) * torch.tensor(1e-4).log().to(logs)  # -sum_c p_c log(1e-4) over the classes that are not the label
        each = -self.ce * own + self.rce * reverse
        loss = (each * known).sum() / known.sum().clamp(min=1) - self.even * logs.mean()
        rows, truth = learner.memory["replay"]
        if len(rows):
            drawn = torch.randperm(len(rows), generator=learner.generator)[: len(x)]
            loss = loss + learner.loss(learner(rows[drawn].to(x)), truth[drawn])
        yield loss
        follow(learner.parts["teacher"].parameters(), [*learner.featurizer.parameters(), *learner.head.parameters()], self.keep)
        return scores

    @torch.no_grad()
    def labels(self, learner: Any, x: Tensor) -> Tensor:
        """Labels of all places, -100 where none is sure enough [row x place]; the switch and the prototypes move on."""
        teacher, static = learner.parts["teacher"], learner.parts["static"](x).softmax(1)
        z = teacher[0](x)
        found = teacher[1](z)
        now = self.switch(learner, static.amax(1).mean().item()) if self.prior == "switch" else self.prior
        learner.memory["trace"].append(now)
        q = places({"static": static, "teacher": found.softmax(1)}[now] if now != "dynamic" else learner.parts["dynamic"](x).softmax(1))
        held = learner.memory["prototypes"]
        if self.prototypes:
            q = corrected(places(z), q, held, self.temperature)
        sums, squares, count = self.sums(learner, z, found.argmax(1))
        keep = torch.where(count > 0, self.keep_prototypes, 1.0)[:, None]
        for name, total in (("mean", sums), ("square", squares)):
            held[name] = keep * held[name] + (1 - keep) * total / count.clamp(min=1)[:, None]
        best, label = q.max(1)
        return label.where(best >= self.threshold, -100)

    def switch(self, learner: Any, sureness: float) -> str:
        """static or dynamic, by the source model's sureness and its direction; the dynamic model is renewed where that is clear."""
        held = learner.memory
        held["sureness"] = [*held["sureness"], sureness][-self.window :]
        held["waited"] += 1
        seen, change = torch.tensor(held["sureness"], dtype=torch.float64), 0.0
        if len(seen) == self.window:
            smooth = torch.hamming_window(self.window - 1, periodic=False, dtype=torch.float64)
            change = ((seen[1:] - seen[:-1]) @ smooth / smooth.sum()).item()
        if abs(change) > self.change:
            held["direction"] = "static" if change > 0 else "dynamic"
            if held["waited"] > self.wait:
                self.renew(learner)
        mean = seen.mean().item()
        held["now"] = "dynamic" if mean < self.low else "static" if mean > self.high else held["direction"]
        return held["now"]

    def renew(self, learner: Any) -> None:
        """The student of today becomes the dynamic model; call it where a condition is known to end."""
        learner.parts["dynamic"].load_state_dict(teacher_of(learner.featurizer, learner.head).state_dict())
        learner.memory["waited"] = 0

    def sums(self, learner: Any, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of features and of their squares [class, width], and the number of places [class], by class."""
        z, y = places(z).float(), y.flatten()
        of = one_hot(y[y >= 0], learner.classes).to(z).T
        return of @ z[y >= 0], of @ z[y >= 0].square(), of.sum(1)


def corrected(z: Tensor, prior: Tensor, held: dict[str, Tensor], temperature: float) -> Tensor:
    """prior x softmax(-distance to prototypes / temperature), renormalised [place, class]; distances in deviations of all places."""
    share = (held["count"] / held["count"].sum()).to(z)[:, None]
    mean, square = held["mean"].to(z), held["square"].to(z)
    deviation = ((share * square).sum(0) - (share * mean).sum(0).square()).clamp(min=1e-12).sqrt()
    distance = torch.cdist((z / deviation).float(), (mean / deviation).float()).to(prior)
    q = prior * ((distance.amin(1, keepdim=True) - distance) / temperature).softmax(1)
    return q / q.sum(1, keepdim=True)
