"""EAR: a frozen encoder; small adaptors grow where rows look new, chosen by a search without training, and rows are routed to them.

Daniels et al. 2023, https://arxiv.org/abs/2308.02084; codes: parts/hyperdimensional.py; search: parts/training_free.py
For devices with little memory and a good encoder. Features of several layers make one long code; a class in a domain is the bundle of its
codes; a task is a new domain if ``batches`` batches in a row lie further from all bundles than nearly all held-out known rows. A new domain
gets an adaptor before the shared head, new classes get columns of the head; nothing old is changed. At prediction each row goes to the
adaptor of the nearest bundle's domain; ``unknown`` flags rows too far from all. A known domain without new classes trains nothing. New
columns never meet rows of old classes: with new classes in a known domain these may be taken for new ones. No code was published: proxies,
penalty, thresholds and sizes are our reading. Left out: adaptors inside the encoder; ours lead from any stage past the rest of it.

>>> import torch
>>> from acclimate.engines.shift import Learner
>>> learner, x = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity()), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(5, 1)
>>> method = Ear(size=50, adaptor="none", rows=2)
>>> method.meet(learner, x, torch.arange(10) % 2); method.settle(learner, x, torch.arange(10) % 2)
>>> [round(v, 3) for v in method.known(learner, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))[0].tolist()]  # cosine with the nearest bundle
[1.0, 0.707]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from ...kinds import Continual
from ...method import Setting
from ...parts.adaptors import Adaptor, banked, columns, pooled, searched, stage_outputs
from ...parts.hyperdimensional import bundled, codes, nearest_bundle, runs_under, semi_orthogonal

FIXED = {"at": "", "kind": "bottleneck", "width": 16, "depth": 1, "residual": True}


class Ear(Continual):
    """Codes, novelty, and the search for adaptors."""

    size: Annotated[int, Setting("length of the codes (H)", 2)] = 10_000
    layers: Annotated[int, Setting("stages of the encoder that make the code, at most (L)", 1)] = 4
    binding: Annotated[bool, Setting("each layer is bound to a random key before the sum")] = True
    binary: Annotated[bool, Setting("codes are signs; otherwise they have length 1")] = False
    quantile: Annotated[float, Setting("share of held-out known rows that lie below the threshold", 0, 1)] = 0.05
    batches: Annotated[int, Setting("batches in a row under the threshold that make a new domain", 1)] = 3
    rows: Annotated[int, Setting("rows of such a batch, and of the one that the search looks at", 2)] = 32
    adaptor: Annotated[str, Setting("searched for, always the same, or none", choices=("searched", "fixed", "none"))] = "searched"
    candidates: Annotated[int, Setting("architectures that the search looks at, at most", 1)] = 100
    penalty: Annotated[float, Setting("what the largest adaptor loses of its mean rank", 0)] = 0.25
    exempt: ClassVar[dict[str, str]] = {"first_task_is_plain_training": "the encoder is frozen: only an adaptor and the head learn"}

    def before(self, learner: Any, task: Any) -> None:
        """Is it new? What grows?"""
        self.meet(learner, task.batch.x, task.batch.y)

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """The same, where no task was announced."""
        if "now" not in learner.memory:
            self.meet(learner, source.x, source.y)

    def step(self, learner: Any, domains: Any) -> Iterator[Any]:
        """Cross-entropy over the classes so far, of which the adaptor and the new columns of the head learn."""
        memory, now = learner.memory, learner.memory["now"]
        if players := ["adaptor"] * now["adaptor"] + ["head"] * bool(now["classes"]):
            seen = self.features(learner, domains.x)
            held = now if now["new"] else memory["bank"][now["domain"]]
            z = learner.parts["adaptor"](seen) if now["adaptor"] else banked(held, seen, learner.width)
            own = columns(learner.head, learner.classes, now["classes"], memory["classes"])
            weights = {name: torch.where(old, weight.detach(), weight) for name, weight, old in own}
            so_far = torch.tensor(sorted(memory["classes"] + now["classes"]), device=z.device)
            scores = functional_call(learner.head, weights, (z,))[:, so_far]
            yield learner.loss(scores, torch.searchsorted(so_far, domains.y)), players

    def after(self, learner: Any, task: Any) -> None:
        """Bundles of the task's rows, the domain's threshold, the adaptor into the bank."""
        self.settle(learner, task.batch.x, task.batch.y)

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """Scores after the adaptor of the nearest bundle's domain [row, class]."""
        seen = self.features(learner, x)
        if not learner.memory.get("bundles"):
            return learner.head(seen[""])
        domains, z = self.nearest(learner, seen)[1], seen[""].clone()
        for domain in domains.unique().tolist():
            own = domains == domain
            z[own] = banked(learner.memory["bank"][domain], {name: rows[own] for name, rows in seen.items()}, learner.width).to(z)
        return learner.head(z)

    def meet(self, learner: Any, x: Tensor, y: Tensor) -> None:
        """What a task's rows are to what is known, and room for what grows."""
        memory, few = learner.memory, torch.randperm(len(y), generator=learner.generator)[: self.rows]
        sample = self.features(learner, x[few])
        if "projections" not in memory:
            memory["projections"] = [semi_orthogonal(self.size, rows.shape[1], learner.generator) for rows in sample.values()]
            keys = [2.0 * torch.randint(2, (self.size,), generator=learner.generator) - 1 for _ in sample]
            memory |= {"keys": keys if self.binding else [], "bundles": [], "of": [], "thresholds": [], "bank": [], "classes": []}
        new, domain = True, len(memory["bank"])
        if domain:
            score, nearest, least = self.known(learner, x)
            new = runs_under(score, least, self.rows, self.batches, learner.generator)
            domain = domain if new else int(nearest.mode().values)
        grown, spec = bool(new and self.adaptor != "none"), dict[str, Any]()
        if grown:
            spec = dict(FIXED)
            if self.adaptor == "searched":
                spec = dict(searched(sample, y[few], learner.head, self.candidates, self.penalty, learner.generator)[0])
            learner.parts["adaptor"] = Adaptor(spec, sample[spec["at"]].shape[1], learner.width).to(x)
        classes = sorted({*y.tolist()} - {*memory["classes"]})
        head = {name: weight.detach().clone() for name, weight in learner.head.named_parameters()}
        memory["now"] = {"domain": domain, "new": new, "classes": classes, "adaptor": grown, "spec": spec, "head": head}

    @torch.no_grad()
    def settle(self, learner: Any, x: Tensor, y: Tensor) -> None:
        """Every fifth row is held out for the threshold; the others are bundled by class."""
        memory, now = learner.memory, learner.memory.pop("now")
        for name, weight, old in columns(learner.head, learner.classes, now["classes"], memory["classes"]):
            weight.copy_(torch.where(old, now["head"][name], weight))  # an optimizer's weight decay moves all
        held = torch.arange(len(x), device=x.device) % 5 == 4
        code = (self.codes(learner, self.features(learner, rows)) for rows in x[~held].split(learner.block))
        sums, labels = bundled(code, y[~held].split(learner.block))
        memory["bundles"], memory["of"] = [*memory["bundles"], sums], memory["of"] + [[now["domain"], label] for label in labels]
        memory["classes"] = sorted({*memory["classes"], *now["classes"]})
        if now["new"]:
            memory["thresholds"].append(torch.inf)
            made = learner.parts.pop("adaptor").state_dict() if now["adaptor"] else {}
            memory["bank"].append({"spec": now["spec"], "weights": {name: value.clone() for name, value in made.items()}})
        least = float(self.known(learner, x[held] if held.any() else x)[0].float().quantile(self.quantile))
        memory["thresholds"][now["domain"]] = min(memory["thresholds"][now["domain"]], least)

    def known(self, learner: Any, x: Tensor) -> list[Tensor]:
        """Cosine with the nearest bundle, its domain, and the threshold of that, [row] each."""
        found = [self.nearest(learner, self.features(learner, rows)) for rows in x.split(learner.block)]
        return [torch.cat(each) for each in zip(*found, strict=True)]

    def unknown(self, learner: Any, x: Tensor) -> Tensor:
        """Which rows lie under the threshold of the domain they are nearest to [row]."""
        score, _, least = self.known(learner, x)
        return score < least

    def nearest(self, learner: Any, seen: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The same of rows by their outputs of stages."""
        score, place = nearest_bundle(self.codes(learner, seen), torch.cat(learner.memory["bundles"]))
        domain = torch.tensor([domain for domain, _ in learner.memory["of"]], device=place.device)[place]
        return score, domain, torch.tensor(learner.memory["thresholds"]).to(score)[domain]

    def features(self, learner: Any, x: Tensor) -> dict[str, Tensor]:
        """Outputs of the frozen encoder's stages by name [row, width, ...]; the last one's under no name."""
        return stage_outputs(learner.featurizer.eval(), x, self.layers)

    def codes(self, learner: Any, seen: dict[str, Tensor]) -> Tensor:
        """Codes of rows [row, size]."""
        return codes(map(pooled, seen.values()), learner.memory["projections"], learner.memory["keys"], self.binary)
