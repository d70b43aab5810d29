"""Graphs under shift: nodes as rows of any method, the layers' maths, what is refused, and the methods that look at edges."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from acclimate.checks import _shifted
from acclimate.domain.graphs import Graph
from acclimate.engines.shift import Data, Learner, Pool, Training, accuracy, fit
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.models.graph import GraphNet, attention
from acclimate.parts.graphs import Matrix, normalised, ppmi, visits, walks, with_loops

EDGES = np.array([[0, 1, 1, 3], [1, 2, 3, 2]])  # node 4 has no neighbour


def graph(name: str = "g", edges: np.ndarray = EDGES, thin: bool = False) -> Graph:
    x = np.random.default_rng(0).normal(size=(5, 3))
    return Graph(name, np.where(x > 1.0, x, 0) if thin else x, edges, np.array([0, 1, 0, 1, 0]), ["a", "b"])


def network(*graphs: Graph, seed: int = 0, **settings) -> tuple[GraphNet, list[Pool]]:
    torch.manual_seed(seed)
    net = GraphNet(3, 4, 2, **settings)
    return net, net.attach(graphs)


def dense(given: Graph) -> torch.Tensor:
    a = torch.eye(len(given))
    a[given.edges[0], given.edges[1]] = 1
    return a / (a.sum(1)[:, None] * a.sum(1)).sqrt()


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_layers_are_kipf_and_wellings_and_spread_as_often_as_said(steps):
    given = graph()
    net, (pool,) = network(given)
    h = torch.from_numpy(given.x)
    for weight, bias in zip(net.weights, net.biases, strict=True):
        h = (torch.linalg.matrix_power(dense(given), steps) @ (h @ weight.T) + bias).relu()
    assert torch.allclose(net(pool.x, steps=steps), h, atol=1e-6)


def test_order_direction_and_repetition_of_edges_do_not_matter_and_lonely_nodes_are_told_by_themselves():
    mixed = np.concatenate([EDGES[::-1, ::-1], EDGES, [[2], [2]]], 1)
    one, (pool,) = network(graph())
    two, _ = network(graph(edges=mixed))
    assert torch.equal(one(pool.x), two(pool.x))
    alone = one(torch.from_numpy(graph().x[4:]))  # a row without a graph is a node without neighbours
    assert torch.allclose(one(pool.x)[4:], alone, atol=1e-6)


def test_several_graphs_are_numbered_through_and_rows_come_back_in_their_order():
    net, (first, second) = network(graph("one"), graph("two", EDGES[:, :2]))
    assert second.x.tolist() == [5, 6, 7, 8, 9]
    rows = torch.tensor([7, 0, 9, 3])
    mixed, each = net(rows), torch.cat([net(first.x), net(second.x)])
    assert torch.equal(mixed, each[rows])
    with pytest.raises(AcclimateError, match="rows go up to 10, but the network's graphs have 10 of them"):
        net(torch.tensor([10]))


def test_thin_features_give_what_dense_ones_give_and_gradients_are_right_twice():
    given = graph(thin=True)
    net, _ = network(given)
    structure = net.graphs[0]
    assert structure.x is not None
    assert network(graph())[0].graphs[0].x is None
    assert torch.allclose(structure.times(net.weights[0]), torch.from_numpy(given.x) @ net.weights[0].T, atol=1e-6)
    spread = Matrix(structure.matrix.places, structure.matrix.values.double(), 5)
    values, h = structure.matrix.values.double().requires_grad_(), torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, z: spread(z, v), (values, h))
    assert torch.autograd.gradgradcheck(lambda z: spread(z).square(), (h,))


def test_attention_sums_to_one_over_neighbours_and_a_method_cannot_weigh_its_edges():
    given = graph()
    net, (pool,) = network(given, layer="gat")
    places = net.graphs[0].matrix.places
    shares = attention(torch.randn(5, 4), places, net.attention[0])
    assert torch.allclose(torch.zeros(5).index_add(0, places[0], shares), torch.ones(5))
    assert net(pool.x).shape == (5, 4)
    with pytest.raises(AcclimateError, match="set layer = gcn"):
        net(pool.x, through={0: lambda h: h})


def test_as_many_neighbours_as_there_are_give_the_whole_graph_and_fewer_run():
    given = graph()
    every, (pool,) = network(given, neighbours=9)
    few, _ = network(given, neighbours=1)
    rows = torch.tensor([2, 0])
    inside, _ = every.graphs[0].around(rows, 2, 9)
    assert inside.tolist() == [0, 1, 2, 3]
    assert torch.allclose(every.train()(pool.x), every.eval()(pool.x), atol=1e-6)
    assert few.train()(rows).shape == (2, 4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Graph("none", np.zeros((0, 3)), np.zeros((2, 0), int), np.zeros(0), ["a"]), "none has no nodes"),
        (Graph("bare", np.zeros((2, 3)), np.zeros((2, 0), int), np.zeros(2), ["a"]), "bare has no edges, so its nodes are plain rows"),
        (Graph("gap", np.full((2, 3), np.nan), np.array([[0], [1]]), np.zeros(2), ["a"]), "gap: features of node 0 hold nan"),
        (Graph("wide", np.zeros((2, 4)), np.array([[0], [1]]), np.zeros(2), ["a"]), "wide has 4 features a node, but the network takes 3"),
    ],
)
def test_what_cannot_be_a_graph_is_one_line(given, said):
    with pytest.raises(AcclimateError, match=said):
        network(given)


def test_graph_methods_refuse_plain_rows():
    made, data = _shifted.learner("table"), _shifted.table()
    with pytest.raises(AcclimateError, match=r"grade works on graphs; build the learner on models\.graph\.GraphNet"):
        fit(load("domain_adaptation.grade"), made, data, Training(steps=1))


OTHERS = [
    *(f"domain_adaptation.{name}" for name in ("dann", "cdan", "mcd", "m3sda", "shot", "nrc", "game", "tsda")),
    *(f"domain_generalization.{name}" for name in ("erm", "coral", "mmd", "irm", "group_dro", "drm", "d3g", "dmg")),
]


@pytest.mark.parametrize("name", OTHERS)
def test_methods_that_know_nothing_of_graphs_run_on_nodes(name):
    method = load(name)
    made, data = _shifted.start(type(method), "graph")
    before = [weight.clone() for weight in made.featurizer.parameters()]
    fit(method, made, data, _shifted.training(method, steps=2, choose="last"))
    assert any(not torch.equal(one, two) for one, two in zip(before, made.featurizer.parameters(), strict=True))
    assert 0 <= accuracy(method, made, data.oracle) <= 1


REFUSED = {
    "rows of whole numbers": ("domain_generalization.mixup", "domain_generalization.self_mixup", "domain_generalization.randmix",
        "domain_generalization.mode", "domain_generalization.modify", "domain_adaptation.adapt_guard"),
    "no method can reach them there": ("domain_generalization.mixstyle", "domain_generalization.ccfp", "test_time.itta"),
}  # fmt: skip


@pytest.mark.parametrize(("said", "name"), [(said, name) for said, names in REFUSED.items() for name in names])
def test_methods_that_change_rows_or_what_passes_between_layers_are_refused_on_nodes(said, name):
    method = load(name)
    made, data = _shifted.start(type(method), "graph")
    with pytest.raises(AcclimateError, match=said):
        fit(method, made, data, _shifted.training(method, steps=1, choose="last"))


def test_a_batch_of_0_is_every_row_at_every_step():
    data, seen = _shifted.graph(), []

    class Looking(type(load("domain_generalization.erm"))):
        def step(self, learner, domains):
            seen.append(domains.sizes)
            yield from super().step(learner, domains)

    fit(Looking(), _shifted.learner("graph"), data, Training(steps=2, batch=0, choose="last"))
    assert seen == [[48, 48, 48]] * 2


def test_walks_stay_on_edges_and_drawn_visits_come_close_to_expected_ones():
    edges = torch.from_numpy(graph().edges)
    paths = walks(edges, torch.arange(5), 6, torch.Generator().manual_seed(0))
    joined = {tuple(edge) for edge in edges.T.tolist()} | {(4, 4)}
    assert {pair for path in paths.tolist() for pair in pairwise(path)} <= joined
    exact, drawn = (torch.zeros(5, 5).index_put(tuple(p), s) for p, s in (visits(edges, 5, 3, n, torch.Generator()) for n in (0, 4000)))
    assert (exact - drawn).abs().max() < 0.02
    assert ppmi(edges, 5, 3, 0)(torch.eye(5))[4].tolist() == [0, 0, 0, 0, 1]


def test_normalising_weights_by_hand_with_loops():
    places = with_loops(torch.tensor([[0, 1], [1, 0]]), 2)
    found = normalised(places, torch.tensor([2.0, 2.0, 1.0, 1.0]), 2)
    assert torch.allclose(found, torch.tensor([2 / 3, 2 / 3, 1 / 3, 1 / 3]))


# methods that look at edges do what they are for, with weights that suit a small graph


def world(shift: float = 0.0, seed: int = 0) -> tuple[Learner, Data]:
    """Two graphs of 120 nodes: features of two classes, moved in the target, whose edges join the classes less often."""
    draw, graphs = np.random.default_rng(seed), []
    for name, between, moved in (("source", 0.02, 0.0), ("target", 0.005, shift)):
        y = np.arange(120) % 2
        x = 0.8 * draw.normal(size=(120, 3)) + (2 * y - 1)[:, None] * np.array([1.0, 1.0, 0.0]) + moved
        pairs = np.array(np.triu_indices(120, 1))
        likely = np.where(y[pairs[0]] == y[pairs[1]], 0.06, between)
        graphs.append(Graph(name, x, pairs[:, draw.random(pairs.shape[1]) < likely], y, ["a", "b"]))
    net, (one, other) = network(*graphs, seed=seed)
    learner = Learner(net, ["a", "b"])
    return learner, Data([one], other.unlabelled(), [one], ["a", "b"], oracle=other)


def figures(name: str, settings: dict, shift: float) -> tuple[float, float]:
    found = []
    for method in (load("domain_generalization.erm"), load(name, **settings)):
        learner, data = world(shift)
        fit(method, learner, data, Training(steps=120, batch=0, lr=0.01, choose="last"))
        found.append(accuracy(method, learner, data.oracle))
    return found[0], found[1]


@pytest.mark.parametrize(
    ("name", "settings", "shift"),
    [
        ("a2gnn", {"target_steps": 2, "weight": 0.5}, 0.6),
        ("tdss", {"target_steps": 2, "weight": 0.5, "smooth": 0.001}, 0.6),
        ("grade", {"weight": 1.0}, 0.8),
        ("udagcn", {"peak": 0.3, "length": 3}, 0.6),
    ],
)
def test_more_target_nodes_are_right_than_after_plain_training(name, settings, shift):
    before, after = figures(f"domain_adaptation.{name}", settings, shift)
    assert after > before


def test_a_source_free_method_on_graphs_never_opens_the_source():
    learner, data = world()
    fit(load("domain_generalization.erm"), learner, data, Training(steps=5, batch=0))
    for structure in list(learner.featurizer.graphs)[:1]:
        structure.times = None  # whoever looks at the source's features fails
    for name in ("soga", "gtrans"):
        fit(load(f"domain_adaptation.{name}"), learner, data, Training(steps=2, batch=0))
