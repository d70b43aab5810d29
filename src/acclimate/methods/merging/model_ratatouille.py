"""Model Ratatouille: fine-tunes a target task from featurizers tuned on other tasks, and averages the runs into one network.

Rame et al. 2023, section 2 and appendix, https://arxiv.org/abs/2212.10445
Use where several labelled datasets beside the target's are at hand and the network must work on a domain that no training data shows. Not
where the featurizers do not come from one pretrained network, or where runs end far apart: then the average falls between them.
All runs share one head, probed on the pretrained featurizer; a run that starts elsewhere warms its head up first. Selection looks at
held-out rows of the source domains alone. The same runs give the baselines: ``erm`` and ``diwa`` (best run and average from the pretrained
featurizer), ``inter_training`` (best run from the pool), ``fusing`` (best run from random mixtures of the pool). Ranges, warm-up, greedy
rule and the mixtures' weights, exp(4 u) normalised, are the authors'; they train ResNet-50, so smaller networks want larger rates.
A start with fresh weights first learns the role ``pretraining``. Left out: several auxiliary runs per dataset; averages over seeds.

>>> runs = [(0.8, "a"), (0.9, "b"), (0.7, "c")]
>>> greedy(runs, lambda kept: {"b": 0.9, "ba": 0.9, "bac": 0.85}["".join(kept)])
(['b', 'a'], 0.9)
>>> ModelRatatouille().draw(np.random.default_rng(0), 5)["start"]
1
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np

from ...domain.arrays import ArrayDomain
from ...engines.finetune import FineTuning, Sources, Tuned, average, mean_accuracy, probed_head, sources, split
from ...errors import AcclimateError
from ...kinds import Strategy
from ...method import Setting
from ...model import ArrayModel, FeatureModel

Given = ArrayDomain | Mapping[str, ArrayDomain]


class ModelRatatouille(Strategy):
    """Gives the averaged network (``ratatouille``), with ``baselines`` theirs before it."""

    room = "merging"
    trains = False
    works_on = "arrays"

    n_runs: Annotated[int, Setting("fine-tunings of the target task (M)", 1)] = 20
    steps: Annotated[int, Setting("steps of a fine-tuning", 1)] = 5000
    aux_steps: Annotated[int, Setting("steps of the fine-tuning on an auxiliary task, and of pretraining; 0 = steps", 0)] = 0
    lp_steps: Annotated[int, Setting("steps in which the head alone learns, in runs from an auxiliary featurizer", 0)] = 200
    lr: Annotated[list[float], Setting("learning rates to draw from", 0)] = dataclasses.field(default_factory=lambda: [1e-5, 3e-5, 5e-5])
    weight_decay: Annotated[list[float], Setting("weight decays to draw from", 0)] = dataclasses.field(default_factory=lambda: [1e-4, 1e-6])
    dropout: Annotated[list[float], Setting("dropout to draw from", 0, 1)] = dataclasses.field(default_factory=lambda: [0.0, 0.1, 0.5])
    batch_size: Annotated[int, Setting("rows per source domain and step", 1)] = 32
    holdout: Annotated[float, Setting("share of each source domain held out to choose by", 0.01, 0.9)] = 0.2
    selection: Annotated[str, Setting("average all runs, or add the best first while it helps", choices=("uniform", "greedy"))] = "uniform"
    batch_norm: Annotated[str, Setting("average running statistics, or keep the start's", choices=("average", "freeze"))] = "freeze"
    fusing_range: Annotated[float, Setting("spread of the mixtures' weights, exp(range x u) normalised", 0)] = 4.0
    baselines: Annotated[bool, Setting("also give erm, diwa, inter_training and fusing; trains three times as many runs")] = False

    def run(self, tools: Any, *, start: Any = None, target: Given | None = None, **others: Any) -> dict[str, ArrayModel]:
        """Networks by name. ``start`` is the pretrained featurizer, ``target`` its source domains, ``auxiliaries`` other tasks by name.

        The test domain is not given, so nothing can look at it. The notes ``runs`` hold draws and validation accuracy, ``kept`` the choice.
        """
        auxiliaries, first = (others.get(role) for role in ("auxiliaries", "pretraining"))
        if start is None or not target or not isinstance(auxiliaries, Mapping) or others.keys() - {"auxiliaries", "pretraining"}:
            raise AcclimateError("model_ratatouille needs from: a network and on: {target: [domains], auxiliaries: {task: [domains]}}")
        tasks = {name: sources(given) for name, given in auxiliaries.items()}
        before = {"pretraining": sources(first)} if first else {}
        (rows, classes), base = sources(target), start.featurizer
        _apart(rows, {name: task for name, (task, _) in {**tasks, **before}.items()})
        train, held = split(rows, self.holdout, tools.seed)
        for task in before.values():
            base = self.tuned(tools, "pretrained", base, *task)
        origin = FeatureModel(base, probed_head(base, train, len(classes)), classes=classes)  # its head is where all runs begin
        pool = {"start": base} | {name: self.tuned(tools, f"aux-{name}", base, *task) for name, task in tasks.items()}
        tools.note("pool", list(pool))
        plans = {"ratatouille": list(pool)} | ({"diwa": ["start"], "fusing": ["mixture"]} if self.baselines else {})
        found = {name: self.runs(tools, name, pool, starts, origin, train, held) for name, starts in plans.items()}
        made: dict[str, Any] = {}
        if self.baselines:
            best = {name: max(runs, key=lambda run: run.accuracy).model for name, runs in found.items()}
            made |= {"erm": best["diwa"], "diwa": self.selected(tools, "diwa", found["diwa"], held)}
            made |= {"inter_training": best["ratatouille"], "fusing": best["fusing"]}
        made["ratatouille"] = self.selected(tools, "ratatouille", found["ratatouille"], held)
        facts = {"base": start.source, "method": self.name, **self.values()}
        return {name: ArrayModel(name, net, start.source, {"made": facts}) for name, net in made.items()}

    def tuned(self, tools: Any, name: str, featurizer: Any, rows: Sources, classes: list[str]) -> Any:
        """A featurizer after fine-tuning on all domains of another task, from a head probed on it as it was."""
        train, held = split(rows, self.holdout, tools.seed)
        model = FeatureModel(featurizer, probed_head(featurizer, train, len(classes)), classes=classes)
        plan = self.plan(self.aux_steps or self.steps, lr=float(np.median(self.lr)))
        return tools.fine_tune(name, model, train, held, plan, tools.seed).model.featurizer

    def runs(self, tools: Any, name: str, pool: dict, starts: list[str], origin: Any, train: Sources, held: Sources) -> list[Tuned]:
        """The fine-tunings of one kind: from featurizers drawn among ``starts``, or from mixtures of the whole pool, with origin's head."""
        done, told = [], []
        for number in range(self.n_runs):
            generator = np.random.default_rng([tools.seed, number])  # the same draws for every kind
            drawn = self.draw(generator, len(starts))
            place = starts[drawn.pop("start")]
            if place == "mixture":
                shares = np.exp(self.fusing_range * generator.random(len(pool)))
                featurizer: Any = average(list(pool.values()), shares.tolist())
            else:
                featurizer = pool[place]
            seed = int(generator.integers(2**31))
            model = FeatureModel(featurizer, origin.head, classes=origin.classes)
            if place != "start":
                warm = self.plan(self.lp_steps, **drawn, check_every=max(1, self.lp_steps))
                model = tools.fine_tune(f"{name}{number}-head", model, train, held, warm, seed, only="head").model
            done.append(run := tools.fine_tune(f"{name}{number}", model, train, held, self.plan(self.steps, **drawn), seed))
            told.append({"start": place, **drawn, "validation": run.accuracy, "curve": run.curve})
        tools.note(f"runs.{name}", told)
        return done

    def draw(self, generator: np.random.Generator, starts: int) -> dict[str, Any]:
        """One run's hyperparameters and the number of its featurizer."""
        pick = {name: float(generator.choice(getattr(self, name))) for name in ("lr", "weight_decay", "dropout")}
        return {**pick, "start": int(generator.integers(starts))}

    def plan(self, steps: int, **settings: Any) -> FineTuning:
        """Training settings of a run."""
        return FineTuning(steps=steps, batch=self.batch_size, batch_norm="freeze" if self.batch_norm == "freeze" else "train", **settings)

    def selected(self, tools: Any, name: str, runs: list[Tuned], held: Sources) -> Any:
        """The average of all runs, or of those that the greedy rule keeps."""
        numbers = list(range(len(runs)))
        if self.selection == "greedy":
            pairs = [(run.accuracy, number) for number, run in enumerate(runs)]
            numbers, _ = greedy(pairs, lambda kept: mean_accuracy(average([runs[i].model for i in kept]), held))  # type: ignore[arg-type]
        merged: Any = average([runs[i].model for i in numbers])
        tools.note(f"kept.{name}", {"runs": numbers, "validation": mean_accuracy(merged, held)})
        return merged


def greedy(runs: list[tuple[float, Any]], score: Callable[[list], float]) -> tuple[list, float]:
    """Runs (score alone, run), best first: each is kept if the score of the average does not drop. Gives those kept and their score."""
    kept: list = []
    best = -np.inf
    for _, run in sorted(runs, key=lambda pair: -pair[0]):
        tried = score([*kept, run])
        if tried >= best:
            kept, best = [*kept, run], tried
    return kept, float(best)


def _apart(target: Sources, auxiliaries: Mapping[str, Sources]) -> None:
    """The target's rows may be in no auxiliary task: they would be trained on before they are held out."""
    own = {row.tobytes() for x, _ in target.values() for row in x.numpy()}
    for name, task in auxiliaries.items():
        if any(row.tobytes() in own for x, _ in task.values() for row in x.numpy()):
            raise AcclimateError(f"task {name!r} holds rows of the target task; leave them out")
