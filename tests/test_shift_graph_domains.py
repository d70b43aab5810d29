"""``acclimate shift`` on graphs: sweeps, what is refused in one line, learners that are kept with their graphs and read again."""

import os

import numpy as np
import pytest
import torch

from acclimate import shifts
from acclimate.domain.graphs import Graph
from acclimate.engines.shift import Pool
from acclimate.errors import AcclimateError
from acclimate.models.graph import GraphNet
from acclimate.shifts.domains import SPLITS, load_domains
from worlds import needs_data

TRAINING = {"steps": 4, "batch": 0, "lr": 0.02}
OPTIONS = {"width": 8}
KINDS = np.array(["no", "yes"])


def parts(number: int = 0) -> dict[str, np.ndarray]:
    """Sixty nodes of two classes, each with neighbours mostly of its own class."""
    draw, y = np.random.default_rng(number), np.arange(60) % 2
    x = 0.6 * draw.normal(size=(60, 4)) + np.outer(2 * y - 1, [1, 1, 0, 0]) + 0.2 * number
    ends = draw.integers(60, size=(2, 400))
    return {"x": x, "edges": ends[:, (y[ends[0]] == y[ends[1]]) | (draw.random(400) < 0.2)], "y": KINDS[y]}


@pytest.fixture
def files(tmp_path):
    """Three graphs as files."""
    for number, name in enumerate(("one", "two", "three")):
        np.savez(tmp_path / f"{name}.npz", **parts(number))
    return [str(tmp_path / f"{name}.npz") for name in ("one", "two", "three")]


def test_rows_are_numbers_of_nodes_over_all_graphs(files):
    found = load_domains(files[:2])
    pools = [[found[name].parts[split] for split in SPLITS] for name in files[:2]]
    assert [sorted(torch.cat([pool.x for pool in own]).tolist()) for own in pools] == [list(range(60)), list(range(60, 120))]
    attached = GraphNet(4, 8).attach([found[name].graph for name in files[:2]])
    for own, whole in zip(pools, attached, strict=True):
        for pool in own:
            assert torch.equal(pool.y, whole.y[pool.x - whole.x[0]])


def test_methods_for_graphs_and_for_any_rows_run_side_by_side(files):
    found = shifts.shift(["erm", "dann", "a2gnn", "soga", "t3a"], files[:2], files[2], training={**TRAINING, "steps": 15}, options=OPTIONS)
    assert not found["failed"]
    assert {row["rows"] for row in found["rows"]} == {12}
    assert found["rows"][0]["accuracy"] >= 0.75
    left_out = shifts.shift("erm", files, training=TRAINING, options=OPTIONS)
    assert [row["target"] for row in left_out["rows"]] == files


def test_order_and_direction_of_edges_do_not_matter_but_one_way_is_told(files, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ACCLIMATE_QUIET", raising=False)
    edges = Graph.load(files[0]).edges
    capsys.readouterr()
    np.savez(tmp_path / "both.npz", **{**parts(), "edges": edges})
    np.savez(tmp_path / "mixed.npz", **{**parts(), "edges": edges[::-1, edges[0] < edges[1]][:, ::-1]})
    both, mixed = Graph.load(tmp_path / "both.npz"), Graph.load(tmp_path / "mixed.npz")
    assert both.fingerprint == mixed.fingerprint
    assert f"mixed.npz: {edges.shape[1] // 2} edges are given in one direction only; they count in both" in capsys.readouterr().err
    assert both.one_way == 0


def test_nodes_without_edges_are_counted(files, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ACCLIMATE_QUIET", raising=False)
    given = parts()
    np.savez(tmp_path / "lonely.npz", **{**given, "edges": given["edges"][:, (given["edges"] > 2).all(0)]})
    load_domains([str(tmp_path / "lonely.npz"), files[1]])
    assert "lonely.npz: 3 of 60 nodes have no edge" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"x": np.zeros((0, 4)), "edges": np.zeros((2, 0), int), "y": np.zeros(0, int)}, "bad.npz has no nodes; leave it out"),
        ({"edges": np.zeros((2, 0), int)}, "bad.npz has no edges, so its nodes are plain rows"),
        ({"edges": np.array([[0, 60], [1, 1]])}, "bad.npz has 60 nodes, but edges name nodes from 0 to 60"),
        ({"x": np.where(np.arange(240).reshape(60, 4) == 9, np.nan, 1.0)}, "bad.npz: features of node 2 hold nan or infinity; fill them"),
        ({"x": np.ones((60, 5))}, r"bad.npz has 5 features a node, but .*one.npz has 4; give graphs of the same features"),
        ({"x": np.full((60, 4), "a")}, "bad.npz has x of type <U1; give numbers"),
        ({"y": np.zeros(3, int)}, r"60 nodes but y of shape \(3,\); give one class per node, or with member \[node\] one per small graph"),
        ({"y": np.zeros(60)}, "bad.npz has y of type float64; give whole numbers or names of classes"),
        ({"y": np.arange(60) % 2, "classes": np.array("no")}, "bad.npz has 1 classes, but y goes from 0 to 1; number classes from 0"),
        ({"classes": np.array("no")}, "bad.npz has rows of class 'yes', which its classes do not name"),
    ],
)
def test_what_is_no_graph_is_one_line(changed, said, files, tmp_path):
    np.savez(tmp_path / "bad.npz", **{**parts(), **changed})
    with pytest.raises(AcclimateError, match=said) as caught:
        shifts.shift("erm", files[:1], str(tmp_path / "bad.npz"), training=TRAINING)
    assert "\n" not in str(caught.value)


def test_files_that_hold_no_graph(files, tmp_path):
    np.savez(tmp_path / "part.npz", x=np.ones((2, 4)), y=np.zeros(2, int))
    with pytest.raises(AcclimateError, match=r"part\.npz lacks edges; a graph is x \[node, feature\]"):
        Graph.load(tmp_path / "part.npz")
    for name, content in (("torn", b"PK\x03\x04 nothing"), ("text", b"a,b\n1,2\n"), ("empty", b"")):
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(AcclimateError, match=rf"{name}\.npz is missing, or no npz file"):
            Graph.load(tmp_path / f"{name}.npz")
    np.savez(tmp_path / "objects.npz", **{**parts(), "y": np.array([None] * 60)})
    with pytest.raises(AcclimateError, match=r"objects\.npz cannot be read as arrays of numpy"):
        Graph.load(tmp_path / "objects.npz")


def test_what_does_not_fit_graphs_is_said_before_training(files, tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "a", "label": "no"}\n{"text": "b", "label": "yes"}\n' * 10)
    with pytest.raises(AcclimateError, match=r"one\.npz' is a graph, but '.*text\.jsonl' is not; give domains of one kind"):
        shifts.shift("erm", files[:1], str(tmp_path / "text.jsonl"))
    with pytest.raises(AcclimateError, match="nodes of graphs need the backbone graph, not mlp; leave it out"):
        shifts.shift("erm", files[:2], backbone="mlp")
    with pytest.raises(AcclimateError, match=r"scale = 'source' is for rows of numbers, but .* is a graph"):
        shifts.shift("erm", files[:2], scale="source")
    with pytest.raises(AcclimateError, match="rows of whole numbers"):
        shifts.shift("domain_generalization.mixup", files[:2], files[2], training=TRAINING)


def test_methods_for_graphs_are_refused_on_other_rows(monkeypatch):
    rows = {
        name: shifts.Shifted({split: Pool(name, torch.rand(8, 3), torch.arange(8) % 2) for split in SPLITS}, ["a", "b"]) for name in "st"
    }
    monkeypatch.setattr("acclimate.shifts.sweep.load_domains", lambda *_: rows)
    found = shifts.shift(["erm", "a2gnn"], ["s"], "t", training=TRAINING)
    assert [row["method"] for row in found["rows"]] == ["domain_generalization.erm"]
    assert found["failed"][0]["error"].startswith("domain_adaptation.a2gnn works on graphs; give domains that are graphs")
    with pytest.raises(AcclimateError, match="the backbone graph needs domains that are graphs"):
        shifts.shift("erm", ["s"], "t", backbone="graph", training=TRAINING)


@pytest.mark.parametrize("method", ["erm", "a2gnn", "adagcn", "grade", "gtrans", "soga", "strurw", "tdss", "udagcn"])
def test_a_learner_is_kept_with_its_graphs(method, files, tmp_path):
    found = shifts.shift(method, files[:2], files[2], training=TRAINING, options=OPTIONS, seeds=[3], out=tmp_path / "out", keep=True)
    (saved,) = (tmp_path / "out" / "models").rglob("adapted.json")
    for file in files:
        os.remove(file)  # what was kept stands by itself
    adapted = shifts.Adapted.load(saved.parent)
    nodes = adapted.nodes()
    assert nodes.tolist() == list(range(120, 180))
    answers = np.array(adapted.predict(nodes)) == parts(2)["y"]
    test = np.sort(np.random.default_rng(0).permutation(60)[:12])
    assert answers[test].mean() == pytest.approx(found["rows"][0]["accuracy"])
    again = shifts.Adapted.load(adapted.save(tmp_path / "again"))
    assert torch.equal(again.scores(nodes), adapted.scores(nodes))


def test_a_kept_learner_knows_its_own_nodes_only(files, tmp_path):
    shifts.shift("erm", files[:1], files[1], training=TRAINING, options=OPTIONS, out=tmp_path / "out", keep=True)
    (saved,) = (tmp_path / "out" / "models").rglob("adapted.json")
    adapted = shifts.Adapted.load(saved.parent)
    for rows in (torch.ones(2, 4), ["a text"], torch.ones(2, 4).long()):
        with pytest.raises(AcclimateError, match=r"knows the nodes of its graphs only \(.*\); give their numbers as nodes\(\) has them"):
            adapted.predict(rows)
    with pytest.raises(AcclimateError, match="the network's graphs have 120 of them"):
        adapted.predict(torch.tensor([120]))
    with pytest.raises(AcclimateError, match="no graph 'three' was trained with"):
        adapted.nodes("three")
    (saved.parent / "graph-1.npz").unlink()
    with pytest.raises(AcclimateError, match=r"graph-1\.npz is missing"):
        shifts.Adapted.load(saved.parent)


def test_graphs_are_learned_one_after_another(files):
    found = shifts.continual(["fine_tuning", "replay"], files, training=TRAINING, memory={"rows": 9}, options=OPTIONS)
    assert [len(row["matrix"]) for row in found["rows"]] == [3, 3]


@needs_data
def test_named_graphs_are_domains():
    found = shifts.shift(["erm", "a2gnn"], ["usa"], "brazil", data="airports", training={"steps": 2}, options=OPTIONS)
    assert [row["rows"] for row in found["rows"]] == [26, 26]
