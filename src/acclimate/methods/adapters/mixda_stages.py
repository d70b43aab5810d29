"""MixDA stages: fills an adapter per domain from text or facts, then lets a task choose among them all with the domains frozen.

Diao et al. 2023, sections 3.2 and 3.3 and appendix, https://arxiv.org/abs/2306.05406
Stage 1, per domain: masked prediction on its text (of a labelled domain: facts, whose label is hidden in the text), times ``knowledge``,
plus the drift of the blocks' outputs on general text (``sampling``). Stage 2, per task: the domains' adapters side by side, frozen; a task
adapter behind the mixture, the gates and a head learn from labelled rows. With one domain its gate goes on, with several there is a new
one. Use for an encoder and domains that several tasks share. ``nearest`` takes, for all general texts, those whose topics are nearest to
the domain's (the authors: by a projection of the model's vectors, which is never trained). The task adapter reads the layer's output before
the residual is added, the authors' behind it. Defaults are the paper's for RoBERTa-large.

>>> made = MixdaStages(layers="1", original=0.9)
>>> made.adapter(["law", "news"]).names(), made.rates()
(['law', 'news'], {'\\\\.gate\\\\.': 0.0002, '\\\\.domains\\\\.': 0.0001})
>>> MixdaStages(task_adapter="houlsby").task_method().reduction
16.0
"""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from ...domain import Domain
from ...engines.staged import Stage, fit
from ...engines.terms import Classified, Labelled, classify, drift, predictions
from ...errors import AcclimateError
from ...kinds import Adapter, Strategy
from ...method import Setting, load
from ...model import Injected, Model
from ...model.composition import Stack
from ...parts.knn_select import knn_select

MIXTURE, TASK = "mixture", "task"


class MixdaStages(Strategy):
    """A model per domain by its name, then ``mixture`` with all, then ``task``; where a task is given its scores are noted."""

    room = "adapters"
    trains = False

    layers: Annotated[str, Setting("layers with a mixture; all if empty")] = "7,11"
    reduction: Annotated[float, Setting("width of the inner activation over width of a domain adapter", 1)] = 16.0
    gate_reads: Annotated[str, Setting("what the gate reads of a text", choices=("last", "mean", "token"))] = "last"
    gate_hidden: Annotated[int, Setting("width of the gate's hidden layers", 1)] = 768
    original: Annotated[float, Setting("share of the layer itself at the start; 0 = as the gate is drawn", 0, 0.999)] = 0.0
    knowledge: Annotated[float, Setting("weight of the prediction loss (the paper's c)", 0)] = 0.5
    sampling: Annotated[float, Setting("weight of the drift on general text; 0 leaves it out", 0)] = 1.0
    nearest: Annotated[int, Setting("general texts taken for each text of the domain, nearest by topic; 0 = all", 0)] = 0
    steps: Annotated[int, Setting("steps of stage 1", 1)] = 5000
    rows: Annotated[int, Setting("texts per step of stage 1, of the domain and of general text", 1)] = 20
    width: Annotated[int, Setting("longest text in tokens", 8)] = 128
    lr: Annotated[float, Setting("learning rate of the domain adapters", 0)] = 1e-4
    gate_lr: Annotated[float, Setting("learning rate of the gates in stage 1", 0)] = 2e-4
    weight_decay: Annotated[float, Setting("decoupled weight decay of stage 1", 0)] = 0.05
    shots: Annotated[int, Setting("labelled rows of each class in stage 2; 0 = all", 0)] = 0
    task_adapter: Annotated[str, Setting("what learns the task behind the mixture", choices=("pfeiffer", "houlsby", "lora"))] = "pfeiffer"
    task_reduction: Annotated[float, Setting("width of the layer over width of the task adapter", 1)] = 16.0
    task_lr: Annotated[float, Setting("learning rate of stage 2", 0)] = 1e-4
    task_steps: Annotated[int, Setting("steps of stage 2", 1)] = 1000
    task_rows: Annotated[int, Setting("texts per step of stage 2", 1)] = 16
    pooling: Annotated[str, Setting("what the head reads: the first token or the mean", choices=("cls", "mean"))] = "cls"

    def run(
        self, tools: Any, start: Any = None, domains: Mapping[str, Domain] | None = None, general: Any = None, task: Any = None, **_: Any
    ) -> dict[str, Model]:
        """start: a saved masked model. domains: text or facts by name. general: what shall not drift. task: labelled, with all splits."""
        if start is None or start.kind != "masked" or not isinstance(domains, dict):
            raise AcclimateError("mixda_stages needs a masked model and domains by name: give from: ..., on: {domains: [law, news]}")
        if self.sampling and general is None:
            raise AcclimateError("mixda_stages needs general text for the drift: give on: {general: ...}, or set sampling: 0")
        made = {name: tools.keep(name, self.fill(tools, start, name, domain, general)) for name, domain in domains.items()}
        if len(made) > 1 or task is not None:
            made[MIXTURE] = tools.keep(MIXTURE, self.mix(start, [made[name] for name in domains], tools.seed))
        if task is not None:
            model, found = self.learn(tools, made[MIXTURE], task)
            tools.note("scores", found.scores)
            made[TASK] = tools.keep(TASK, model)
        return made

    # stage 1

    def adapter(self, names: list[str]) -> Adapter:
        """The mixture of some domains."""
        same = {key: getattr(self, key) for key in ("layers", "reduction", "gate_reads", "gate_hidden", "original")}
        return load("adapters.mixda", domains=names, **same)

    def rates(self) -> dict[str, float]:
        """Learning rates of stage 1 by pattern of the weights' names."""
        return {r"\.gate\.": self.gate_lr, r"\.domains\.": self.lr}

    def fill(self, tools: Any, start: Model, name: str, domain: Domain, general: Domain | None) -> Model:
        """The start model with one domain's adapter and its gate, trained."""
        model = _on(start, name, self.adapter([name]), tools.seed)
        given: dict[str, Any] = {"rows": self.rows, "width": self.width, "seed": tools.seed}
        terms = {"knowledge": predictions(model, load("objectives.masked_lm"), domain, weight=self.knowledge, **given)}
        if self.sampling and general is not None:
            text = self.near(tools, domain, general) if self.nearest else general
            terms["sampling"] = drift(model, MIXTURE, text, weight=self.sampling, **given)
        stage = Stage(steps=self.steps, weight_decay=self.weight_decay, schedule="constant", warmup=0.0, seed=tools.seed)
        curve = fit(model.net, terms, self.rates(), stage, folder=tools.place(name)).curve
        tools.note(f"{name}.losses", {key: float(np.mean([row[key] for row in curve[-20:]])) for key in terms})
        return model

    def near(self, tools: Any, domain: Domain, general: Domain) -> Domain:
        """The general texts that are nearest to the domain's by topic."""
        own, pool = list(dict.fromkeys(domain.texts("train"))), list(dict.fromkeys(general.texts("train")))
        vectors = tools.topics([*own, *pool])
        taken = knn_select(vectors[: len(own)], vectors[len(own) :], self.nearest)
        return Domain.from_texts(f"{general.name} near {domain.name}", [pool[i] for i in taken], splits=False)

    # stage 2

    def mix(self, start: Model, filled: list[Model], seed: int) -> Model:
        """The adapters of filled models side by side; the gate is a new one, or with one domain its own."""
        names = [name for model in filled for name in load("adapters.mixda", **model.net.specs[MIXTURE]["with"]).names()]
        mixed = _on(start, MIXTURE, self.adapter(names), seed)
        for model in filled:
            for key, part in mixed.net.parts(MIXTURE).items():
                theirs = model.net.parts(MIXTURE)[key]
                for name, weights in theirs.domains.items():
                    part.domains[name].load_state_dict(weights.state_dict())
                if len(filled) == 1:
                    part.gate.load_state_dict(theirs.gate.state_dict())
        return mixed

    def task_method(self) -> Adapter:
        """The task adapter with the authors' places and sizes."""
        if self.task_adapter == "lora":
            return load("adapters.lora", target=["attn.q", "attn.v"], r=8, alpha=8.0)
        target: Any = "ff.out" if self.task_adapter == "pfeiffer" else ["attn.out", "ff.out"]
        return load("adapters.bottleneck", target=target, activation="silu", reduction=self.task_reduction)

    def learn(self, tools: Any, mixture: Model, task: Domain) -> tuple[Model, Classified]:
        """Task adapter, gates and head trained on a labelled domain; the domains' adapters stay as they are."""
        model = mixture.copy(TASK, keep=True)
        model.net.add(TASK, self.task_method(), seed=tools.seed).activate(Stack(MIXTURE, TASK))
        sets = {name: Labelled.of(task, split) for name, split in (("train", "train"), ("dev", "validation"), ("test", "test"))}
        sets["train"] = sets["train"].few(self.shots, tools.seed)
        rates = dict.fromkeys((r"\.gate\.", r"adapters\.task\.", "head"), self.task_lr)
        stage = Stage(steps=self.task_steps, seed=tools.seed)
        given: dict[str, Any] = {"rows": self.task_rows, "width": self.width, "pooling": self.pooling, "seed": tools.seed}
        return model, classify(model, sets, rates, stage, folder=tools.place(TASK), **given)


def _on(start: Model, name: str, method: Adapter, seed: int) -> Model:
    made = start.copy(name, share=True)
    made.net = Injected(made.net).add(MIXTURE, method, seed=seed)
    made.notes |= {"base": start.source, "base_fingerprint": start.fingerprint}
    return made
