"""Do methods made for graphs beat a plain network on graphs where the graph changes?

Six pairs of graphs: papers of ACM and DBLP, airports of the USA and Brazil, streamers of Twitch in Spanish and in English, each both ways.
All nodes of the source with labels, all nodes and edges of the target without; accuracy (for one class a node the same as micro-F1) on all
nodes of the target. One graph convolutional network for all arms (two layers of 64 columns, a linear head), trained on whole graphs by Adam
for 40 steps, the last weights kept, from the same first ones: GNN (no adaptation), UDAGCN, GRADE, A2GNN, StruRW and SOGA, each with its
paper's weights. SOGA goes on from the plain network without the source. The details give every pair.

What differs from the paper, and why: the third citation network is not at hand, so that two of six citation pairs are run, and four pairs
of other graphs beside them; papers with two fields count by the first of them; 40 steps instead of 200 to 800, 64 columns instead of 128,
a linear head instead of a convolutional one, 500 nodes in A2GNN's kernel means, StruRW's edges weighted from step 20 on, every 10, for
time; the package itself, whose compiled parts are not at hand, is not run beside. About three minutes per seed on one core.
"""

import copy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import datasets
from ...domain.graphs import Graph
from ...method import load

if TYPE_CHECKING:
    from ...engines.shift import Data, Learner

CRITERION = """
    Accuracies in points on the target, means over seeds. (1) On the mean of the two citation pairs A2GNN is above GNN by 5.0 or more;
    (2) so is UDAGCN; (3) on the mean of all six pairs, three or more of the five methods are above GNN. The claim holds if all three do.
"""
METRIC = "accuracy on all nodes of the target in points (micro-F1), higher is better"
SEEDS = (0, 1, 2)
ABOVE, MOST = 5.0, 3  # points, methods: the numbers of the criterion
CITATION = (("citation/acm", "citation/dblp"), ("citation/dblp", "citation/acm"))
PAIRS = (
    *CITATION, ("airports/usa", "airports/brazil"), ("airports/brazil", "airports/usa"), ("twitch/es", "twitch/engb"),
    ("twitch/engb", "twitch/es"),
)  # fmt: skip
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "GNN": ("domain_generalization.erm", {}),
    "UDAGCN": ("domain_adaptation.udagcn", {}),
    "GRADE": ("domain_adaptation.grade", {}),
    "A2GNN": ("domain_adaptation.a2gnn", {"rows": 500}),
    "StruRW": ("domain_adaptation.strurw", {"start": 20, "every": 10}),
    "SOGA": ("domain_adaptation.soga", {}),
}
TRAINING: dict[str, Any] = {"steps": 40, "batch": 0, "lr": 0.01, "weight_decay": 5e-4, "choose": "last", "looks": 2}
ADAPTING = {"lr": 0.001, "weight_decay": 0.0}  # where a trained network goes on


def run(seed: int, tiny: bool, work: Path) -> dict[str, Any]:
    """Every arm on every pair."""
    told = {f"{one} to {other}": compared(one, other, seed, tiny) for one, other in PAIRS[: 1 if tiny else None]}
    citation = [f"{one} to {other}" for one, other in CITATION]
    means = {arm: float(np.mean([found[arm] for found in told.values()])) for arm in ARMS}
    arms = {f"citation: {arm}": float(np.mean([found[arm] for pair, found in told.items() if pair in citation])) for arm in ARMS}
    return {"arms": {**arms, **means}, "details": told}


def compared(source: str, target: str, seed: int, tiny: bool) -> dict[str, float]:
    """Accuracy of each arm on the target."""
    from ...engines.shift import Training, accuracy, fit

    few = {"steps": 2} if tiny else {}
    graphs = [made_up(name, number) if tiny else loaded(name) for number, name in enumerate((source, target))]
    fresh, data = network(graphs, seed)
    plain, found = copy.deepcopy(fresh), {}
    for arm, (name, settings) in ARMS.items():
        method = load(name, **settings)
        learner = plain if arm == "GNN" else copy.deepcopy(plain if method.source_free() else fresh)
        given = {**TRAINING, **(ADAPTING if method.source_free() else {}), **few, "seed": seed}
        fit(method, learner, data, Training(**given))
        assert data.oracle is not None
        found[arm] = 100 * accuracy(method, learner, data.oracle)
    return found


@cache
def loaded(name: str) -> Graph:
    """A graph of a dataset."""
    return datasets.load(name)


def network(graphs: list[Graph], seed: int) -> "tuple[Learner, Data]":
    """A fresh network that has both graphs, and what may be seen of them."""
    import torch

    from ...engines.shift import Data, Learner
    from ...models.graph import GraphNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = GraphNet(graphs[0].x.shape[1], 64, 2)
        source, target = net.attach(graphs)
        return Learner(net, graphs[0].classes), Data([source], target.unlabelled(), (), graphs[0].classes, oracle=target)


def made_up(name: str, number: int) -> Graph:
    """A graph for tiny runs."""
    draw = np.random.default_rng(number)
    y = np.arange(30) % 3
    return Graph(name, draw.normal(size=(30, 6)) + y[:, None], draw.integers(30, size=(2, 60)), y, ["a", "b", "c"])


def clauses(figures: dict[str, list[float]]) -> list[tuple[str, bool]]:
    """What the figures say to each clause of the criterion, and whether it is met."""

    def gain(arm: str, where: str = "") -> float:
        return float(np.mean(np.subtract(figures[where + arm], figures[where + "GNN"])))

    near = {arm: gain(arm, "citation: ") for arm in ("A2GNN", "UDAGCN")}
    every = {arm: gain(arm) for arm in ARMS if arm != "GNN"}
    told = ", ".join(f"{arm} {value:+.2f}" for arm, value in every.items())
    return [
        *((f"{arm} - GNN {value:+.2f} points on citation pairs", value >= ABOVE) for arm, value in near.items()),
        (f"over GNN on all pairs: {told}", sum(value > 0 for value in every.values()) >= MOST),
    ]
