"""Domains of many small graphs with a class each: what the network makes of them, files, and every method that fits."""

import numpy as np
import pytest
import torch

from acclimate import shifts
from acclimate.domain.graphs import Graph
from acclimate.errors import AcclimateError
from acclimate.models.graph import GraphNet

WHEEL, PATH = "wheel", "path"


def many(name: str, count: int = 40, shift: float = 0.0, seed: int = 0, mixed: bool = False) -> Graph:
    """Rings with a hub, or paths, of 4 to 8 nodes; features are each node's degree, moved by ``shift``, and noise."""
    draw = np.random.default_rng(seed)
    member, edges, y, first = [], [], [], 0
    for number in range(count):
        size, kind = int(draw.integers(4, 9)), number % 2
        along = [(first + i, first + i + 1) for i in range(size - 1)]
        edges += along + ([(first + size - 1, first)] + [(first, first + i) for i in range(2, size - 1)] if kind else [])
        member += [number] * size
        y.append(kind)
        first += size
    ends = np.array(edges).T
    degrees = np.bincount(ends.flatten(), minlength=first)
    x = np.stack([degrees + shift, draw.normal(size=first)], 1)
    numbers = np.array(member)
    if mixed:  # nodes in any order
        order = draw.permutation(first)
        place = np.argsort(order)
        x, numbers, ends = x[order], numbers[order], place[ends]
    return Graph(name, x, ends, np.array(y), [PATH, WHEEL], member=numbers)


def dense(net: GraphNet, graph: Graph, how: str) -> torch.Tensor:
    """The textbook's layers on each small graph alone, as dense matrices."""
    rows = []
    for number in range(graph.rows):
        nodes = np.flatnonzero(graph.member == number)
        a = torch.zeros(len(graph), len(graph))
        a[graph.edges[0], graph.edges[1]] = 1
        a = a[nodes][:, nodes] + torch.eye(len(nodes))
        scale = a.sum(1).rsqrt()
        h = torch.from_numpy(graph.x[nodes])
        for weight, bias in zip(net.weights, net.biases, strict=True):
            h = torch.relu(scale[:, None] * a * scale @ (h @ weight.T) + bias)
        rows.append({"mean": h.mean(0), "sum": h.sum(0), "max": h.max(0).values}[how])
    return torch.stack(rows)


@pytest.mark.parametrize("readout", ["mean", "sum", "max"])
def test_rows_are_pooled_over_each_graphs_own_nodes(readout):
    torch.manual_seed(0)
    graphs = [many("a", 6), many("b", 5, seed=1, mixed=True)]
    net = GraphNet(2, 8, 2, readout=readout)
    pools = net.attach(graphs)
    assert [pool.x.tolist() for pool in pools] == [list(range(6)), list(range(6, 11))]
    asked = torch.tensor([10, 0, 7, 7, 3])  # of both, in any order, twice
    expected = torch.cat([dense(net, graph, readout) for graph in graphs])[asked]
    torch.testing.assert_close(net(asked), expected)
    through = {number: graph.matrix for number, graph in enumerate(net.graphs)}
    torch.testing.assert_close(net(asked, through=through), expected)  # over the whole domain at once, as methods that change edges do
    net(asked).sum().backward()
    assert all(weight.grad.any() for weight in net.weights)


def test_attention_stays_within_a_graph():
    torch.manual_seed(0)
    net = GraphNet(2, 8, 2, layer="gat")
    (pool,) = net.attach([many("a", 6)])
    torch.testing.assert_close(net(pool.x)[:2], net(pool.x[:2]))


def test_files_and_folders(tmp_path):
    graph = many("a", mixed=True)
    graph.save(tmp_path / "a.npz")
    again = Graph.load(tmp_path / "a.npz")
    assert again.fingerprint == graph.fingerprint
    assert again.rows == 40
    folder = tmp_path / "TOY"
    folder.mkdir()
    lines = {
        "A": [f"{a + 1}, {b + 1}" for a, b in graph.edges.T],
        "graph_indicator": [str(number + 1) for number in graph.member],
        "graph_labels": [str(2 * kind - 1) for kind in graph.y],
        "node_attributes": [f"{a}, {b}" for a, b in graph.x],
        "node_labels": [str(i % 3) for i in range(len(graph))],
    }
    for what, own in lines.items():
        (folder / f"TOY_{what}.txt").write_text("\n".join(own) + "\n")
    told = Graph.load(folder)
    assert told.classes == ["-1", "1"]
    for key in ("y", "edges", "member"):
        np.testing.assert_array_equal(getattr(told, key), getattr(graph, key))
    np.testing.assert_allclose(told.x[:, :2], graph.x, rtol=1e-6)
    assert told.x[4, 2:].tolist() == [0, 1, 0]
    for what in ("node_attributes", "node_labels"):
        (folder / f"TOY_{what}.txt").unlink()
    np.testing.assert_allclose(Graph.load(folder).x[:, 0], np.log1p(graph.degrees), rtol=1e-6)
    (folder / "TOY_A.txt").write_text("1, two\n")
    with pytest.raises(AcclimateError, match=r"TOY_A\.txt cannot be read as numbers"):
        Graph.load(folder)


def test_graphs_that_are_not_sound():
    x, edges, y = np.eye(4), np.array([[0, 1], [1, 2]]), np.array([0, 1])
    with pytest.raises(AcclimateError, match="an edge from graph 0 to graph 1; edges join nodes of one graph"):
        Graph("g", x, edges, y, ["a", "b"], member=np.array([0, 0, 1, 1]))
    with pytest.raises(AcclimateError, match=r"a class for 2 graphs, but graph 1 has no node"):
        Graph("g", x, edges, y, ["a", "b"], member=np.zeros(4, int))
    with pytest.raises(AcclimateError, match=r"a class for 2 graphs, but member goes from 0 to 2; number graphs from 0 to 1"):
        Graph("g", x, edges, y, ["a", "b"], member=np.array([0, 0, 0, 2]))
    with pytest.raises(AcclimateError, match="give the number of its graph for each node"):
        Graph("g", x, edges, y, ["a", "b"], member=np.zeros(3))


def test_methods_for_rows_and_for_graphs_classify_whole_graphs(tmp_path):
    for name, shift in (("one", 0.0), ("two", 0.1), ("three", 0.2)):
        many(name, 80, shift, seed=len(name)).save(tmp_path / f"{name}.npz")
    one, two, three = (str(tmp_path / f"{name}.npz") for name in ("one", "two", "three"))
    methods = ["erm", "a2gnn", "grade", "udagcn", "strurw"]
    training = {"steps": 45, "lr": 0.01, "batch": 0, "weight_decay": 0.0}
    found = shifts.shift(methods, [one, two], three, training=training, options={"width": 16}, out=tmp_path / "out", keep=True)
    accuracy = {row["method"].partition(".")[2]: row["accuracy"] for row in found["rows"]}
    assert set(accuracy) == {*methods} - {"strurw"}
    assert all(value > 0.7 for value in accuracy.values()), accuracy
    assert "looks at the nodes that have classes, but here whole graphs have them" in found["failed"][0]["error"]
    (saved,) = (tmp_path / "out" / "models" / "domain_adaptation.grade").rglob("adapted.json")
    adapted = shifts.Adapted.load(saved.parent)
    answers = adapted.predict(adapted.nodes())
    right = np.mean([answer == (PATH, WHEEL)[number % 2] for number, answer in enumerate(answers)])
    assert len(answers) == 80
    assert right > 0.7


def test_nodes_and_whole_graphs_do_not_mix(tmp_path):
    many("many").save(tmp_path / "many.npz")
    Graph("one", np.eye(2), np.array([[0], [1]]), np.array([0, 1]), [PATH, WHEEL]).save(tmp_path / "one.npz")
    with pytest.raises(AcclimateError, match="do not classify the same"):
        shifts.shift("erm", [str(tmp_path / "many.npz")], str(tmp_path / "one.npz"))
