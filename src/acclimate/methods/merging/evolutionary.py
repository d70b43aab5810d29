"""Evolutionary merging: lets CMA-ES find how much of which model goes into each layer, and which layer follows which.

Akiba et al. 2024, sections 3.1 to 3.3, https://arxiv.org/abs/2403.13187
Use for tunes of one base with a small set of examples of the wanted mix of skills, where hand-set weights disappoint; it costs as many
evaluations as ``trials``. Not without text of every skill to search on: what is not scored is lost. ``space="ps"`` searches weights and
shares to keep of DARE-TIES per layer group, with groups of their own for embedding and head; ``"dfs"`` searches a route through the
layers of two models (the first two) with scales for their inputs; ``"ps_dfs"`` puts the winner of the first in the place of model A.
The authors published no search code: start 0.5, step 1/6 and the population of 128 for routes are the paper's; how far the switches of a
route stand from turning (``margin``) is ours. Fitness is bits per byte on validation text, the paper's is accuracy. A route is handed on
as an ordinary stack of layers with the scales folded in (models/routed.py). With several domains ``algorithm="nsga2"`` keeps a front.

>>> method = Evolutionary(space="dfs", repeats=2)
>>> genome, route = method.route_start(3, 6), method.route(method.route_start(3, 6), 3, 6)
>>> genome[5], genome[12 + 6 * 2 + 5] = 0.1, 0.5  # switch on layer 5 (the last of model B); it feeds A's last from layer 5
>>> route.layers, method.route(genome, 3, 6).layers, method.route(genome, 3, 6).scales
((0, 1, 2), (0, 1, 5, 2), (1.0, 1.0, 1.0, 1.0))
>>> genome[12 + 6 * 5 + 2] = 0.7
>>> method.route(genome, 3, 6).scales[-1]
0.7
"""

from typing import Annotated, Any

import numpy as np

from ...domain import Domain
from ...engines.candidates import Blend
from ...errors import AcclimateError
from ...kinds import Strategy
from ...method import Setting, load
from ...models import routed
from ...parts import routes


class Evolutionary(Strategy):
    """Search in parameter space, in data-flow space, or in both; gives a model per stage by its name: ps, dfs."""

    room = "merging"
    trains = False
    extra = "search"

    space: Annotated[str, Setting("weights per layer, route through layers, or both", choices=("ps", "dfs", "ps_dfs"))] = "ps"
    algorithm: Annotated[str, Setting("one figure, or a front over the domains (weights only)", choices=("cma", "nsga2"))] = "cma"
    trials: Annotated[int, Setting("merges that are tried for weights", 1)] = 1000
    population: Annotated[int, Setting("merges per generation; 0 = 4 + 3 ln n", 0)] = 0
    layer_size: Annotated[int, Setting("layers in a row that share their genes", 1)] = 1
    signed: Annotated[bool, Setting("let weights be negative instead of taking their size")] = False
    normalize: Annotated[bool, Setting("divide by the weights of the changes that won the vote")] = False
    x0: Annotated[float, Setting("start of every weight and share", 0, 1)] = 0.5
    sigma: Annotated[float, Setting("first standard deviation of the genes (sigma0)", 1e-6)] = 1 / 6
    route_trials: Annotated[int, Setting("routes that are tried", 1)] = 12800
    route_population: Annotated[int, Setting("routes per generation; 0 = 4 + 3 ln n", 0)] = 128
    repeats: Annotated[int, Setting("how often a route may pass all layers (r)", 1)] = 3
    scales: Annotated[str, Setting("a scale per pair of layers, or a small network for many layers", choices=("matrix", "network"))] = (
        "matrix"
    )
    margin: Annotated[float, Setting("how far the switches of the first route stand from turning", 1e-6)] = 0.25
    partner: Annotated[int, Setting("which tune joins the winner of ps in ps_dfs, from 0", 0)] = 0
    search_bytes: Annotated[int, Setting("bytes of each domain's validation text that score a trial (the paper: 200 samples)", 1)] = 60_000

    def run(self, tools: Any, *, start: Any = None, tuned: list[Any] | None = None, **domains: Domain) -> dict[str, Any]:
        """The best merge (``ps``) and the best route as an ordinary model (``dfs``).

        ``domains``: what is searched on, by any role; their validation split scores the trials, their test split (where there is one) is
        measured for the winner and the start of the search, and noted. Raises AcclimateError if a model or text is missing.
        """
        if start is None or not tuned or len(tuned) < 2 or not domains:
            raise AcclimateError(
                "merging.evolutionary needs two tunes of one base and text to search on: give from: [a, b] and on: {role: domain}"
            )
        if self.partner >= len(tuned):
            raise AcclimateError(f"merging.evolutionary: partner = {self.partner}, but there are {len(tuned)} tunes, counted from 0")
        made: dict[str, Any] = {}
        if self.space != "dfs":
            made["ps"] = self.weights(tools, start, tuned, domains)
        if self.space != "ps":
            pair = (made["ps"], tuned[self.partner]) if made else (tuned[0], tuned[1])
            made["dfs"] = self.flow(tools, *pair, domains)
        return made

    def weights(self, tools: Any, start: Any, tuned: list[Any], domains: dict[str, Domain]) -> Any:
        """Search weights and shares per layer group, and merge with the best."""
        method = load("merging.dare", elect="sum", normalize=self.normalize)
        blend = Blend(method, start, tuned, size=self.layer_size, signed=self.signed, seed=tools.seed)
        first = np.full(len(blend.names), self.x0)
        given = {"sigma": self.sigma, "trials": self.trials, "population": self.population, "names": blend.names}
        if self.algorithm == "nsga2":
            found = tools.pareto("ps", lambda g: self.scores(tools, blend.model(g), domains), first, metrics=len(domains), **given)
            report: dict[str, Any] = {"front": found.scores.tolist(), "genomes": found.genomes.tolist()}
        else:
            found = tools.search("ps", lambda g: float(np.mean(self.scores(tools, blend.model(g), domains))), first, **given)
            report = found.report()
        model = tools.merge("ps", method, tuned, start, settings=blend.settings(found.best))
        tools.note(
            "ps", {**report, "groups": blend.recipe(found.best), "held out": self.held_out(tools, blend.model(first), model, domains)}
        )
        return model

    def flow(self, tools: Any, first: Any, second: Any, domains: dict[str, Domain]) -> Any:
        """Search a route through the layers of two models; it begins and ends with the first one's."""
        pool = routed.pool_of(first, second)
        length, layers = len(routed.body_of(first.net).layers), len(pool)
        begin = self.route_start(length, layers)

        def model(genome: np.ndarray, name: str = "") -> Any:
            return routed.routed(first, pool, self.route(genome, length, layers), name)

        def fitness(genome: np.ndarray) -> float:
            score = float(np.mean(self.scores(tools, model(genome), domains)))
            return score if np.isfinite(score) else np.inf  # a route may blow up, and is then merely bad

        found = tools.search(
            "dfs",
            fitness,
            begin,
            sigma=self.sigma,
            trials=self.route_trials,
            population=self.route_population,
            names=routes.genes(layers, self.repeats, self.scales),
        )
        route, best = self.route(found.best, length, layers), tools.keep("dfs", routed.plain(model(found.best), "dfs"))
        held_out = self.held_out(tools, first, best, domains)
        tools.note("dfs", {**found.report(), "layers": route.layers, "scales": route.scales, "held out": held_out})
        return best

    def scores(self, tools: Any, model: Any, domains: dict[str, Domain]) -> list[float]:
        """Bits per byte on each domain's validation text."""
        return [tools.bits(model, domain, split="validation", most=self.search_bytes) for domain in domains.values()]

    def held_out(self, tools: Any, before: Any, after: Any, domains: dict[str, Domain]) -> dict[str, dict[str, float]]:
        """Bits per byte on test text of the search's start and of its winner; chooses nothing."""
        tested = {role: domain for role, domain in domains.items() if "test" in domain.splits}
        models = {"start": before, "best": after}
        return {role: {name: tools.bits(model, domain, split="test") for name, model in models.items()} for role, domain in tested.items()}

    def route_start(self, length: int, layers: int) -> np.ndarray:
        """The genome of model A itself."""
        return routes.start(length, layers, self.repeats, self.scales, self.margin)

    def route(self, genome: np.ndarray, length: int, layers: int) -> routes.Route:
        """The route of a genome, for a model A of ``length`` layers in a pool of ``layers``."""
        return routes.decode(genome, length, layers, self.repeats, self.scales)
