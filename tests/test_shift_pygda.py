"""Models of the PyGDA package behind ``acclimate shift``: what reaches the package, and the real one where it is installed."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from acclimate import shifts
from acclimate.errors import AcclimateError
from test_graph_classification import many
from test_shift_graph_domains import parts

TOLD: list = []


class Nearest:
    """In place of a model of the package: nearest class mean of the source's features."""

    def __init__(self, in_dim, hid_dim, num_classes, num_layers, lr=0.1, epoch=5, weight=1.0, device="cuda:0", verbose=2, **kwargs):
        self.given = {"hid_dim": hid_dim, "num_layers": num_layers, "lr": lr, "epoch": epoch, "weight": weight, "device": device}

    def fit(self, source_data, target_data):
        print("a line for every step")
        TOLD.append((self.given, source_data, target_data, torch.initial_seed()))
        self.means = torch.stack([source_data.x[source_data.y == c].mean(0) for c in range(2)])

    def predict(self, data, source=False):
        return -torch.cdist(data.x, self.means), data.y


class OneByOne(Nearest):
    """The same, of several sources."""

    def __init__(self, in_dim, hid_dim, num_classes, num_src_domains, **kwargs):
        super().__init__(in_dim, hid_dim, num_classes, 2)
        self.count = num_src_domains

    def fit(self, source_data_list, target_data):
        assert self.count == len(source_data_list)
        super().fit(source_data_list[0], target_data)


class GRADE:
    """In place of a model that knows whole graphs: nearest mean of the source's graphs; it answers in an order of its own."""

    def __init__(self, in_dim, hid_dim, num_classes, mode="node", lr=0.1, epoch=5, device="cpu", verbose=2, **kwargs):
        assert mode == "graph"

    def fit(self, source_data, target_data):
        TOLD.append(([each.y.item() for each in source_data], [each.y.item() for each in target_data]))
        self.held = {True: source_data, False: target_data}
        rows, y = torch.stack([each.x.mean(0) for each in source_data]), torch.cat([each.y for each in source_data])
        self.means = torch.stack([rows[y == c].mean(0) for c in range(2)])

    def predict(self, data, source=False):
        drawn = [self.held[source][place] for place in torch.randperm(len(data))]
        return -torch.cdist(torch.stack([each.x.mean(0) for each in drawn]), self.means), torch.cat([each.y for each in drawn])


@pytest.fixture
def files(tmp_path):
    for number in range(3):
        np.savez(tmp_path / f"{number}.npz", **parts(number))
    return [str(tmp_path / f"{number}.npz") for number in range(3)]


@pytest.fixture
def stand_in(monkeypatch):
    """A package of the same shape."""
    models, data = ModuleType("pygda.models"), ModuleType("torch_geometric.data")
    models.__all__, data.Data = ["BaseGDA", "Nearest", "OneByOne", "GRADE"], SimpleNamespace
    models.Nearest, models.OneByOne, models.GRADE = Nearest, OneByOne, GRADE
    for name, module in {"pygda": ModuleType("pygda"), "pygda.models": models, "torch_geometric.data": data}.items():
        monkeypatch.setitem(sys.modules, name, module)
    TOLD.clear()


@pytest.mark.usefixtures("stand_in")
def test_the_package_gets_joined_sources_and_no_label_of_the_target(files, capsys):
    found = shifts.shift(["pygda.Nearest", "erm"], files[:2], files[2], training={"steps": 7, "lr": 0.03}, seeds=[0, 5])
    assert not found["failed"]
    assert "a line for every step" not in capsys.readouterr().out
    assert [row["method"] for row in found["rows"]] == ["pygda.Nearest", "domain_generalization.erm"] * 2
    assert found["rows"][0]["accuracy"] >= 0.75
    assert found["rows"][0]["rows"] == 12
    (given, source, target, seed), (_, _, _, other) = TOLD
    assert given == {"hid_dim": 128, "num_layers": 3, "lr": 0.03, "epoch": 7, "weight": 1.0, "device": "cpu"}
    assert source.x.shape == (120, 4)
    assert source.train_mask.all()
    assert source.edge_index[:, source.edge_index[0] >= 60].min() >= 60  # no edge between the two
    assert source.y.tolist() == [0, 1] * 60
    assert target.y.tolist() == [0, 1] * 30  # made up: every class, no label
    assert (seed, other) == (0, 5)
    assert np.allclose(source.x[60:].numpy(), parts(1)["x"].astype(np.float32))


@pytest.mark.usefixtures("stand_in")
def test_models_of_several_sources_get_them_one_by_one(files):
    found = shifts.shift("pygda.OneByOne", files)
    assert not found["failed"]
    assert TOLD[0][1].x.shape == (60, 4)


@pytest.mark.usefixtures("stand_in")
def test_whole_graphs_reach_the_package_one_by_one_and_come_back_in_order(tmp_path):
    for number in range(3):
        many(str(number), 20, 0.1 * number, seed=number).save(tmp_path / f"{number}.npz")
    files = [str(tmp_path / f"{number}.npz") for number in range(3)]
    found = shifts.shift("pygda.GRADE", files[:2], files[2])
    assert TOLD == [([0, 1] * 20, [0, 1] * 10)]  # the target's are made up
    assert found["rows"][0]["accuracy"] == 1.0
    assert found["rows"][0]["source_accuracy"] == 1.0
    with pytest.raises(
        AcclimateError, match=r"pygda\.Nearest classifies nodes, but these domains are many small graphs; models for them: A2GNN"
    ):
        shifts.shift("pygda.Nearest", files[:2], files[2])


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("pygda.Nearset", {}, "no model 'Nearset'.*Nearest"),
        ("pygda.Nearest", {"settings": {"wieght": 2}}, "no setting 'wieght'.*weight"),
        ("pygda.Nearest", {"settings": {"train_mode": "semi"}}, "trains on labels of the target"),
        ("pygda.Nearest", {"training": {"batch": 3}}, "takes no 'batch'"),
        ("pygda.Nearest", {"keep": True, "out": "x"}, "leave out keep"),
    ],
)
def test_what_the_package_does_not_take(files, name, given, message):
    with pytest.raises(AcclimateError, match=message):
        shifts.shift(name, files[:1], files[1], **given)


def test_without_the_package(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "pygda.models", None)
    with pytest.raises(AcclimateError, match=r"pip install 'acclimate\[pygda\]'"):
        shifts.shift("pygda.GNN", files[:1], files[1])


def test_the_real_package_agrees_with_ours(files):
    """The same network, rate and steps: GCN of two layers on one source."""
    pytest.importorskip("torch_sparse", reason="what pygda computes with is not installed")
    pytest.importorskip("pygda", reason="the extra pygda is not installed")
    theirs = shifts.shift("pygda.GNN", files[:1], files[1], training={"steps": 100, "lr": 0.02}, settings={"hid_dim": 16})
    ours = shifts.shift(
        "erm", files[:1], files[1], training={"steps": 100, "lr": 0.02, "batch": 0, "optimizer": "adam"}, options={"width": 16}
    )  # fmt: skip
    assert abs(theirs["rows"][0]["accuracy"] - ours["rows"][0]["accuracy"]) <= 2 / 12 + 1e-6  # two nodes of twelve
