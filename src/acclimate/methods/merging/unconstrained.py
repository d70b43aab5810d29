"""Unconstrained merging: searches layer-wise weights among like models, distils unlike ones into a pivot, and merges the results.

Zhang et al. 2024, section 3, https://arxiv.org/abs/2410.13699 ; its second half follows FuseLLM, https://arxiv.org/abs/2401.10491 , and
the final merge FuseChat, https://arxiv.org/abs/2402.16107
One front door for experts of any make: those of one family, shape and tokenizer are merged weight by weight (``granularity``,
``operator``); each other group then teaches a copy of the pivot through texts that both have read, token by token over two tokenizers
(engines/fused.py); the copies are merged with weights by how much each changed a matrix. Use with instruction and response data that shows
what the others are good at. Not for a source that knows nothing the pivot does not: compare with plain tuning on the same data.
The start model is the pivot, and the base of the tunes that have its shape; other groups have no known base and are averaged with searched
weights. Trials, learning rate and epochs of the paper could not be checked; these suit models of billions of weights. ``mass`` is ours
(0 is FuseLLM's way). Left out: a loss on the response alone (it falls on whole texts); scores are bits per byte, not accuracy.

>>> method = Unconstrained(operator="dare")  # like models without a common base can only be averaged
>>> method.merge_method(True).elect, method.merge_method(False).name
('none', 'merging.linear')
>>> Unconstrained().lambda_ce
0.9
"""

from typing import Annotated, Any

import numpy as np

from ...domain import Domain
from ...engines.candidates import Blend, alike, signature, variation
from ...engines.fused import fused_teacher
from ...errors import AcclimateError
from ...kinds import Merge, Strategy
from ...method import Setting, load
from ...parts.layer_groups import GRANULARITIES

OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("merging.linear", {}),
    "task_arithmetic": ("merging.task_arithmetic", {"scale": 1.0}),
    "ties": ("merging.ties", {"scope": "tensor", "normalize": False}),
    "dare": ("merging.dare", {"elect": "none", "normalize": False}),
    "dare_ties": ("merging.dare", {"elect": "sum", "normalize": False}),
}


class Unconstrained(Strategy):
    """Merge of any decoders; gives the merge of each group, each distilled pivot, and ``merged``."""

    room = "merging"
    extra = "search"

    granularity: Annotated[str, Setting("what has weights of its own: model, layer, or attention and MLP", choices=GRANULARITIES)] = "layer"
    operator: Annotated[str, Setting("how like models are merged", choices=tuple(OPERATORS))] = "ties"
    trials: Annotated[int, Setting("merges that are tried per group", 1)] = 200
    population: Annotated[int, Setting("merges per generation; 0 = 4 + 3 ln n", 0)] = 0
    x0: Annotated[float, Setting("start of every weight and share", 0, 1)] = 0.5
    sigma: Annotated[float, Setting("first standard deviation of the genes", 1e-6)] = 1 / 6
    search_bytes: Annotated[int, Setting("bytes of each domain's validation text that score a trial", 1)] = 60_000
    lambda_ce: Annotated[float, Setting("share of the gold text in the loss (lambda); the fused distribution has the rest", 0, 1)] = 0.9
    top_k: Annotated[int, Setting("likeliest tokens of each model that are fused", 1)] = 10
    fusion: Annotated[str, Setting("the better model's distribution, or a mix by softmax(-loss)", choices=("min_ce", "avg_ce"))] = "min_ce"
    level: Annotated[str, Setting("whose loss is compared: the whole text's or each token's", choices=("response", "token"))] = "response"
    threshold: Annotated[float, Setting("similarity of token strings (1 - edits / length) below which a token is dropped", 0, 1)] = 0.7
    mass: Annotated[float, Setting("share of the source's top tokens, by probability, that must be carried over", 0, 1)] = 0.5
    average: Annotated[bool, Setting("average several source tokens that meet one; off: the pivot's own view stands there")] = True
    lr: Annotated[float, Setting("peak learning rate of the pivot", 0)] = 2e-5
    epochs: Annotated[float, Setting("passes over the fused data", 0)] = 3.0
    final: Annotated[str, Setting("last merge: by variation of each matrix, or searched", choices=("variation", "search"))] = "variation"

    def run(
        self, tools: Any, *, start: Any = None, tuned: list[Any] | None = None, fuse: Domain | None = None, **score: Domain
    ) -> dict[str, Any]:
        """The models of each stage; the last is ``merged``, of the start's shape.

        ``fuse`` is what unlike models teach the pivot on, ``score`` (any roles) what weights are searched on. Raises AcclimateError
        if a stage lacks its text.
        """
        if start is None or not tuned:
            raise AcclimateError("merging.unconstrained needs a start model (the pivot) and models to merge: give from: [a, b]")
        made: dict[str, Any] = {}
        own, kept = signature(start), []
        groups = alike(tuned)
        for number, group in enumerate(groups):
            name = f"group{number}"
            like = signature(group[0]) == own
            made[name] = self.blend(tools, name, start if like else None, group, score) if len(group) > 1 else group[0]
            kept.append((name, made[name], like))
        pivot = next((model for _, model, like in kept if like), start)
        told = [{"group": kept[i][0], "models": [m.name for m in some], "like the pivot": kept[i][2]} for i, some in enumerate(groups)]
        tools.note("dispatch", told)
        targets = {f"{name}-taught": self.distil(tools, f"{name}-taught", source, pivot, fuse) for name, source, like in kept if not like}
        made |= targets
        made["merged"] = self.last(tools, pivot, list(targets.values()), score)
        return made

    def merge_method(self, has_base: bool) -> Merge:
        """The operator; models without a known base can only be averaged."""
        name, settings = OPERATORS[self.operator if has_base else "linear"]
        return load(name, **settings)

    def blend(self, tools: Any, name: str, base: Any, models: list[Any], score: dict[str, Domain]) -> Any:
        """Branch 1: search the operator's settings per layer, and merge with the best."""
        if not score:
            raise AcclimateError("merging.unconstrained searches weights on text: give on: {role: domain} beside fuse")
        method = self.merge_method(base is not None)
        blend = Blend(method, base, models, granularity=self.granularity, seed=tools.seed)

        def fitness(genome: np.ndarray) -> float:
            model = blend.model(genome)
            return float(np.mean([tools.bits(model, domain, split="validation", most=self.search_bytes) for domain in score.values()]))

        first = np.full(len(blend.names), self.x0)
        given = {"sigma": self.sigma, "trials": self.trials, "population": self.population, "names": blend.names}
        found = tools.search(name, fitness, first, **given)
        tools.note(name, {**found.report(), "groups": blend.recipe(found.best)})
        return tools.merge(name, method, models, base, settings=blend.settings(found.best))

    def distil(self, tools: Any, name: str, source: Any, pivot: Any, fuse: Domain | None) -> Any:
        """Branch 2: the pivot learns the gold text and the distribution fused of its own and the source's."""
        if fuse is None:
            raise AcclimateError(
                f"merging.unconstrained: {source.name} is unlike {pivot.name} and teaches it on text: give on: {{fuse: domain}}"
            )
        teacher = fused_teacher(
            source,
            pivot,
            k=self.top_k,
            fusion=self.fusion,
            level=self.level,
            threshold=self.threshold,
            mass=self.mass,
            average=self.average,
        )
        texts = fuse.texts("train")
        tools.note(f"{name}-alignment", teacher.net.report(texts[:: len(texts) // 64 + 1]))
        objective = load("objectives.distill", weight=1 - self.lambda_ce)
        train = {"lr": self.lr, "epochs": self.epochs, "teacher_k": self.top_k}
        return tools.train(name, pivot, objective, fuse, teacher=teacher, **train)

    def last(self, tools: Any, pivot: Any, targets: list[Any], score: dict[str, Domain]) -> Any:
        """The distilled pivots as one model."""
        if len(targets) < 2:
            return targets[0] if targets else pivot
        if self.final == "search":
            return self.blend(tools, "merged", pivot, targets, score)
        weights = variation(pivot, targets)
        return tools.merge("merged", load("merging.linear"), targets, settings=lambda name: {"weights": weights[name]})
