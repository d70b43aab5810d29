"""Do methods made for graphs beat a plain network on graphs where the graph changes?

Six pairs of graphs: papers of ACM and DBLP, airports of the USA and Brazil, streamers of Twitch in Spanish and in English, each both ways.
All nodes of the source with labels, all nodes and edges of the target without; accuracy (for one class a node the same as micro-F1) on all
nodes of the target. Graph convolutional networks with a linear head, trained on whole graphs by Adam, the last weights kept: GNN (no
adaptation), UDAGCN, GRADE, A2GNN, StruRW and SOGA. Depth, dropout, rate, weight decay, steps and the methods' own weights are those of the
package's published runs on these graphs (benchmark/node/run_*.sh at github.com/pygda-team/pygda; where they differ by pair, those of the
first pair here); GNN has StruRW's, whose plain form it is, and SOGA, which has none there, goes on from GNN without the source. The details
give every pair.

What differs from the paper, and why: the third citation network is not at hand, so that two of six citation pairs are run, and four pairs
of other graphs beside them; papers with two fields count by the first of them; a linear head instead of a convolutional one; for time 500
nodes in A2GNN's kernel means, a quarter of UDAGCN's walks, and on Twitch 200 steps at most instead of 400 to 1,000. The package is not run
beside; once, from ACM to DBLP and with these settings, its own GNN and A2GNN (loaders and sparse products replaced by plain ones, as its
compiled parts are not at hand) reached 67.8 and 76.3, ours, with 1,000 nodes in kernel means, 67.9 and 74.6. A first run, with 40 steps
and one rate for all arms, found A2GNN 14 and UDAGCN 25 points below GNN on citations: too few steps, and a rate a hundred times UDAGCN's
own; the criterion has stayed. About half an hour per seed on one core.
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
ARMS = {
    "GNN": "domain_generalization.erm", "UDAGCN": "domain_adaptation.udagcn", "GRADE": "domain_adaptation.grade",
    "A2GNN": "domain_adaptation.a2gnn", "StruRW": "domain_adaptation.strurw", "SOGA": "domain_adaptation.soga",
}  # fmt: skip
FAR: dict[str, Any] = {"target_steps": 10, "weight": 10.0, "rows": 500}  # A2GNN's
WALKS: dict[str, Any] = {"repeats": 10}  # UDAGCN's
Course = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]  # an arm's network, training and method
COURSES: dict[str, dict[str, Course]] = {
    "citation": {
        "GNN": ({"depth": 2, "dropout": 0.2}, {"steps": 200, "lr": 0.003, "weight_decay": 0.01}, {}),
        "UDAGCN": ({"depth": 2, "dropout": 0.4}, {"steps": 400, "lr": 1e-4, "weight_decay": 0.001}, WALKS),
        "GRADE": ({"depth": 5, "dropout": 0.5}, {"steps": 300, "lr": 0.001, "weight_decay": 0.0}, {"weight": 0.002}),
        "A2GNN": ({"depth": 2, "dropout": 0.5}, {"steps": 200, "lr": 0.01, "weight_decay": 0.005}, FAR),
        "StruRW": ({"depth": 2, "dropout": 0.2}, {"steps": 200, "lr": 0.003, "weight_decay": 0.01}, {"share": 0.8}),
    },
    "airports": {
        "GNN": ({"depth": 3, "dropout": 0.4}, {"steps": 400, "lr": 0.01, "weight_decay": 0.01}, {}),
        "UDAGCN": ({"depth": 2, "dropout": 0.4}, {"steps": 400, "lr": 1e-4, "weight_decay": 0.001}, WALKS),
        "GRADE": ({"depth": 4, "dropout": 0.2}, {"steps": 200, "lr": 0.001, "weight_decay": 0.001}, {"weight": 0.02}),
        "A2GNN": ({"depth": 2, "dropout": 0.5}, {"steps": 200, "lr": 0.01, "weight_decay": 0.005}, FAR),
        "StruRW": ({"depth": 3, "dropout": 0.4}, {"steps": 400, "lr": 0.01, "weight_decay": 0.01}, {"share": 0.6}),
    },
    "twitch": {
        "GNN": ({"width": 64, "depth": 3, "dropout": 0.4}, {"steps": 200, "lr": 0.01, "weight_decay": 0.01}, {}),
        "UDAGCN": ({"width": 64, "depth": 2, "dropout": 0.4}, {"steps": 200, "lr": 1e-4, "weight_decay": 0.001}, WALKS),
        "GRADE": ({"width": 64, "depth": 1, "dropout": 0.2}, {"steps": 200, "lr": 3e-4, "weight_decay": 0.001}, {"weight": 0.02}),
        "A2GNN": ({"width": 64, "depth": 2, "dropout": 0.5}, {"steps": 200, "lr": 0.01, "weight_decay": 0.005}, FAR),
        "StruRW": ({"width": 64, "depth": 3, "dropout": 0.4}, {"steps": 200, "lr": 0.01, "weight_decay": 0.01}, {"share": 0.6}),
    },
}
ADAPTING = {"steps": 200, "lr": 0.001, "weight_decay": 0.0}  # SOGA, which goes on from GNN


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
    found: dict[str, float] = {}
    made: dict[str, tuple[Learner, Data]] = {}
    for arm, name in ARMS.items():
        net, training, settings = COURSES[source.partition("/")[0]].get(arm, ({}, ADAPTING, {}))
        method = load(name, **settings)
        learner, data = copy.deepcopy(made["GNN"]) if method.source_free() else network(graphs, seed, net)
        made[arm] = (learner, data)
        fit(method, learner, data, Training(**{**training, "batch": 0, "choose": "last", "looks": 2, "seed": seed, **few}))
        assert data.oracle is not None
        found[arm] = 100 * accuracy(method, learner, data.oracle)
    return found


@cache
def loaded(name: str) -> Graph:
    """A graph of a dataset."""
    return datasets.load(name)


def network(graphs: list[Graph], seed: int, shape: dict[str, Any]) -> "tuple[Learner, Data]":
    """A fresh network that has both graphs, and what may be seen of them."""
    import torch

    from ...engines.shift import Data, Learner
    from ...models.graph import GraphNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = GraphNet(graphs[0].x.shape[1], **shape)
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
