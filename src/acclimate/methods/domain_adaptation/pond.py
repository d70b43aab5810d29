"""POND: prompts before a series, one for all and one made from it for each source; the source whose prompts suit the target predicts it.

Wang et al. 2024, https://arxiv.org/abs/2312.12276
For series of several sources that differ in how they move, and a target of which a few labelled windows are known: give these as asked
rows (``labelled``). Without labels the target's generator only makes predictions sure and spread, and the choice has less to go by. Of
little use where one model fits all sources as they are, or where the target is near none of them.
Course: (1) the body (featurizer and head) learns with the common prompt P alone; (2) at each step one source i is drawn, its generator G_i
takes ``inner`` steps on CE([P + G_i(x); x]) + fidelity x CE(head on G_i(x) alone) + distinction x I(G_i(x); G_j(x)) for a drawn j, after
which what is shared (P and the body) goes only ``rate`` of the way: Reptile; then the target's generator takes a step.
Fidelity raises a bound of I(G_i(x); y) from below, distinction lowers one from above (parts/information.py) that is not taken below 0.
(3) ``memory["distances"]`` [source]: between mean G_i(x) and mean G_T(x) on target rows (``nearness`` = "rows": row by row, which sees what
means hide, as where two sources give a class opposite prompts); the nearest source's prompts predict, or all vote by softmax(-distance).
Series [row, channel, time] and images get ``prompt_len`` columns before the last axis; plain vectors get a prompt of their own size added
(ours). Generators start alike and silent, so that their distances were learned (ours). Estimators, constants and the encoder are our
reading, as no code was found; a change of the body on the target's rows is left out.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Flatten(), 2, width=3, head=torch.nn.Linear(3, 2))
>>> learner.sources, learner.sample = 2, torch.zeros(1, 1, 2)
>>> method = Pond(prompt_len=1); learner.parts.update(method.build(learner))
>>> for size, net in zip((3.0, 1.0, 1.5), learner.parts.generators):  # both sources, and the target
...     _ = net.out.bias.data.fill_(size)
>>> method.prompted(learner, torch.tensor([[[5.0, 6.0]]]), learner.parts.generators[0](torch.zeros(1, 1, 2))).tolist()
[[[3.0, 5.0, 6.0]]]
>>> method.end(learner, None, Batch(torch.zeros(4, 1, 2), None, None, None, [4])); learner.memory["distances"].tolist()
[1.5, 0.5]
"""

import copy
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ...errors import AcclimateError
from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.certainty import information
from ...parts.information import Club
from ...parts.prompts import Prompter


class Pond(DomainAdaptation):
    """The prompts, what is asked of them, the meta-learning, and the choice of the source."""

    prompt_len: Annotated[int, Setting("columns of a prompt before the row (m)", 1)] = 5
    fidelity: Annotated[float, Setting("weight of the labels read from the prompts alone (a)", 0)] = 1.0
    distinction: Annotated[float, Setting("weight of what prompts of two sources tell about each other (b)", 0)] = 0.1
    inner: Annotated[int, Setting("steps on a source before the shared weights move; the batch is cut into as many pieces (q)", 1)] = 5
    rate: Annotated[float, Setting("share of the way that shared weights go after them (r)", 0, 1)] = 0.1
    frozen: Annotated[bool, Setting("the body stays as it was pretrained while prompts are learned")] = False
    pretraining: Annotated[float, Setting("share of the run in which the body and the common prompt learn alone", 0, 1)] = 0.5
    encoder: Annotated[str, Setting("one layer on the whole row, or a recurrent one over time", choices=("linear", "gru"))] = "linear"
    hidden: Annotated[int, Setting("width of the generators and of the bound's network", 1)] = 32
    nearness: Annotated[str, Setting("distance of the mean prompts, or mean distance row by row", choices=("means", "rows"))] = "means"
    choice: Annotated[str, Setting("the nearest source predicts, or all by nearness", choices=("nearest", "mixture"))] = "nearest"
    least = 2
    exempt: ClassVar[dict[str, str]] = {
        "beats_source_only": "the toy has no source that is like the target, and no target row with a label to tell one by"
    }
    training: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 1e-3, "batch": 40, "choose": "last"}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """P, a generator for each source and (the last) the target, the head on prompts, the bound."""
        row = learner.sample[0]
        if not row.is_floating_point():
            raise AcclimateError("domain_adaptation.pond puts numbers before numbers, but these rows hold ids; give vectors or series")
        shape = torch.Size([*row.shape[:-1], self.prompt_len]) if row.ndim > 1 else row.shape
        size, first = shape.numel(), Prompter(row, shape, self.hidden, self.encoder)
        parts: dict[str, nn.Module] = {
            "common": nn.ParameterList([torch.zeros(shape)]),
            "generators": nn.ModuleList([copy.deepcopy(first) for _ in range(learner.sources + 1)]),
        }
        if self.fidelity:
            parts["told"] = nn.Sequential(nn.Flatten(), nn.Linear(size, max(1, learner.classes)))
        if self.distinction:
            parts["club"] = Club(size, size, self.hidden, 2 * learner.sources)
        return parts

    def refresh(self, learner: Any, source: Any, target: Any) -> None:
        """How far each source's prompts lie from the target's, by the weights of now."""
        prompts = self.prompts(learner, target.x)  # the target's the last
        apart = prompts[:-1] - prompts[-1]
        learner.memory["distances"] = apart.mean(1).norm(dim=1) if self.nearness == "means" else apart.norm(dim=2).mean(1)

    end = refresh

    def step(self, learner: Any, source: Any, target: Any, labelled: Any = None) -> Iterator[Any]:
        """Pretraining; then a source's inner steps, the shared weights' move, and the target's generator."""
        if learner.progress < self.pretraining:
            scores = learner(self.prompted(learner, source.x))
            yield learner.loss(scores, source.y), ("featurizer", "head", "common")
            return
        slow = ["common"] if self.frozen else ["common", "featurizer", "head"]
        players = [*slow, "generators", *(["told"] if self.fidelity else [])]
        shared = learner.weights(slow)
        before = [weight.detach().clone() for weight in shared]
        own, other = torch.randperm(learner.sources, generator=learner.generator)[:2].tolist()
        rows = zip(*(source.split(values)[own].chunk(self.inner) for values in (source.x, source.y)), strict=True)
        for x, y in rows:
            loss = self._informed(learner, own, x, y)
            if not self.distinction:
                yield loss, players
                continue
            a, b = (learner.parts["generators"][number](x).flatten(1) for number in (own, other))
            pair = one_hot(torch.tensor([own, other]), learner.sources).flatten().to(a).expand(len(a), -1)
            club = learner.parts["club"]
            known = club.bound(a, b, pair).clamp(min=0)
            yield [(loss + self.distinction * known, players), (club.surprise(a.detach(), b.detach(), pair), "club")]
        with torch.no_grad():
            for weight, old in zip(shared, before, strict=True):
                weight.copy_(old + self.rate * (weight - old))
        if labelled is not None:
            yield self._informed(learner, learner.sources, labelled.x, labelled.y), "generators"
        else:
            yield information(self.scores(learner, target.x, learner.sources)), "generators"

    def predict(self, learner: Any, x: Tensor, where: Any = None) -> Tensor:
        """A source's rows by its own prompts; all others by those of the nearest source, or by the vote (logarithms) [row, class]."""
        known = learner.is_source(where)
        distances = learner.memory["distances"]
        if known or self.choice == "nearest":
            return self.scores(learner, x, where.number if known else int(distances.argmin()))
        logs = torch.stack([self.scores(learner, x, number) for number in range(learner.sources)]).log_softmax(2)
        return (logs + (-distances).log_softmax(0)[:, None, None]).logsumexp(0)

    def scores(self, learner: Any, x: Tensor, number: int) -> Tensor:
        """By the prompts of one domain, the target's being the last [row, class]."""
        return learner(self.prompted(learner, x, learner.parts["generators"][number](x)))

    def prompted(self, learner: Any, x: Tensor, own: Tensor | None = None) -> Tensor:
        """[P + G(x); x], or [P; x] without a generated prompt."""
        prompt = learner.parts["common"][0].expand(len(x), *learner.parts["common"][0].shape)
        prompt = prompt if own is None else prompt + own
        return torch.cat([prompt, x], -1) if x.ndim > 2 else x + prompt

    def _informed(self, learner: Any, number: int, x: Tensor, y: Tensor) -> Tensor:
        """CE with the domain's prompts + fidelity x CE of its generated prompts alone."""
        own = learner.parts["generators"][number](x)
        loss = learner.loss(learner(self.prompted(learner, x, own)), y)
        return loss + self.fidelity * learner.loss(learner.parts["told"](own), y) if self.fidelity else loss

    @torch.no_grad()
    def prompts(self, learner: Any, x: Tensor) -> Tensor:
        """Of every generator, the target's the last [generator, row, number]."""
        return torch.stack([torch.cat([net(rows).flatten(1) for rows in x.split(learner.block)]) for net in learner.parts["generators"]])
