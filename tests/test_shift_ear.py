"""EAR: codes, proxies and ranks by hand, novelty, growth of domains and of classes, routing, resume."""

import contextlib
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.checks import _shifted
from acclimate.engines.continual import Task, class_stream, learn
from acclimate.engines.shift import Learner, Pool, Training, predict
from acclimate.method import load
from acclimate.parts.adaptors import Adaptor, adaptor_space, columns, looked_at, stage_outputs
from acclimate.parts.hyperdimensional import codes, nearest_bundle, runs_under, semi_orthogonal
from acclimate.parts.training_free import evolved, judged, proxies, spread_of
from worlds import far_domains

TRAINING = Training(steps=60, batch=16, lr=0.01, choose="last", seed=1)
SMALL = {"size": 200, "candidates": 12, "rows": 16}


def network(classes=2):
    torch.manual_seed(0)
    return Learner(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8)), classes, width=8)


def test_codes_by_hand():
    draw = torch.Generator().manual_seed(0)
    layers = [torch.randn(4, 3, generator=draw), torch.randn(4, 5, generator=draw)]
    q = [semi_orthogonal(40, width, draw) for width in (3, 5)]
    keys = [2.0 * torch.randint(2, (40,), generator=draw) - 1 for _ in q]
    found = codes(layers, q, keys)
    for row in range(4):
        total = np.zeros(40)
        for z, p, key in zip(layers, q, keys, strict=True):
            a = z[row].double().numpy()
            total += key.numpy() * (p.double().numpy() @ (a / np.linalg.norm(a)))
        assert found[row].numpy() == pytest.approx(total / np.linalg.norm(total), abs=1e-5)
        assert codes(layers, q, keys, binary=True)[row].tolist() == np.sign(total).tolist()
    wide = semi_orthogonal(2, 5, draw)
    assert torch.allclose(wide @ wide.T, torch.eye(2), atol=1e-5)


def test_layers_stay_apart_in_a_long_code():
    """The cosine of two codes is the mean of the layers' cosines, nearly, if each layer has its own axes."""
    draw = torch.Generator().manual_seed(0)
    a, b = ([torch.randn(1, 4, generator=draw) for _ in range(2)] for _ in range(2))
    q = [semi_orthogonal(10_000, 4, draw) for _ in range(2)]
    score = nearest_bundle(codes(a, q), codes(b, q))[0].item()
    assert score == pytest.approx(np.mean([torch.cosine_similarity(x, y).item() for x, y in zip(a, b, strict=True)]), abs=0.05)


def test_a_single_far_batch_is_not_a_new_domain():
    least, draw = torch.full((60,), 0.5), torch.Generator().manual_seed(0)
    assert not runs_under(torch.full((60,), 0.6), least, 10, 3, draw)
    assert runs_under(torch.full((60,), 0.4), least, 10, 3, draw)
    one = torch.where(torch.randperm(60, generator=torch.Generator().manual_seed(0)).argsort() < 10, 0.0, 0.6)
    assert not runs_under(one, least, 10, 2, torch.Generator().manual_seed(0))
    assert runs_under(one, least, 10, 1, torch.Generator().manual_seed(0))


def test_proxies_by_hand():
    draw = np.random.default_rng(0)
    w, z, y = draw.normal(size=(3, 4)), draw.normal(size=(5, 4)), np.array([0, 2, 1, 1, 0])
    found = proxies(lambda weights, rows: rows @ weights["w"].T, {"w": torch.tensor(w)}, torch.tensor(z), torch.tensor(y))
    p = np.exp(z @ w.T)
    grad = (p / p.sum(1, keepdims=True) - np.eye(3)[y]).T @ z / 5
    assert found["grad_norm"] == pytest.approx(np.sqrt((grad**2).sum()))
    assert found["snip"] == pytest.approx(np.abs(w * grad).sum())
    assert found["synflow"] == pytest.approx(np.abs(w).sum())
    rows = draw.normal(size=(4, 6))
    v = np.linalg.eigvalsh(np.corrcoef(rows)) + 1e-5
    assert spread_of(torch.tensor(rows)) == pytest.approx(-(np.log(v) + 1 / v).sum())


def test_ranks_as_scipy_gives_them():
    from scipy.stats import rankdata

    table = [{"a": float(a), "b": float(b)} for a, b in np.random.default_rng(0).integers(0, 5, (12, 2))]
    ranks = np.mean([rankdata([row[name] for row in table]) - 1 for name in "ab"], 0) / 11
    assert judged(table, list(range(1, 13)), 0.25) == pytest.approx(ranks - 0.25 * np.arange(1, 13) / 12)


def test_a_search_finds_the_best_without_looking_at_all():
    space = [{"a": a, "b": b, "c": c} for a, b, c in itertools.product(range(10), repeat=3)]
    best, all_looked_at = evolved(
        space, lambda m: ({"x": -abs(m["a"] - 7.0) - m["b"] + m["c"]}, 1), 150, 0.0, torch.Generator().manual_seed(0)
    )
    assert len({tuple(spec.values()) for spec, _ in all_looked_at}) == len(all_looked_at) == 150
    assert best == {"a": 7, "b": 0, "c": 9}


def test_every_adaptor_of_the_space_runs_and_is_judged():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6))
    y = torch.arange(5) % 2
    seen = stage_outputs(net, torch.rand(5, 1, 8, 8), 4)
    space = adaptor_space({name: rows.shape[1:] for name, rows in seen.items()}, 6)
    assert {(spec["at"], spec["kind"]) for spec in space if spec["kind"] in ("conv", "scale")} == {("1", "conv"), ("", "scale")}
    for spec in space:
        made = Adaptor(spec, seen[spec["at"]].shape[1], 6)
        assert made(seen).shape == (5, 6)
        found, size = looked_at(spec, seen, y, nn.Linear(6, 2))
        assert np.isfinite(list(found.values())).all()
        assert size == sum(weight.numel() for weight in made.parameters())


def test_texts_are_averaged_over_tokens_and_series_over_time():
    assert stage_outputs(nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 4)), torch.rand(2, 7, 5), 4)["1"].shape == (2, 3)
    assert stage_outputs(nn.Sequential(nn.Conv1d(5, 3, 2), nn.ReLU(), nn.Conv1d(3, 4, 2)), torch.rand(2, 5, 7), 4)["1"].shape == (2, 3)


def test_a_stream_that_turns_its_labels_is_kept_and_what_is_old_stays():
    """Fine-tuning forgets, as each domain answers the other way round."""
    states, banks, made, tasks = [], [], network(), far_domains()
    frozen = {name: value.clone() for name, value in made.featurizer.state_dict().items()}

    def watch(task, learner):
        states.append({name: value.clone() for name, value in learner.head.state_dict().items()})
        banks.append([{name: value.clone() for name, value in held["weights"].items()} for held in learner.memory["bank"]])

    method, training = load("continual.ear", **SMALL), Training(**{**TRAINING.values(), "weight_decay": 0.1, "optimizer": "adamw"})
    found = learn(method, made, tasks, training, watch=watch)
    assert min(found.matrix[-1]) > 0.95
    assert [len(bank) for bank in banks] == [1, 2, 3]
    assert all(torch.equal(value, frozen[name]) for name, value in made.featurizer.state_dict().items())
    assert all(torch.equal(value, states[2][name]) for name, value in states[0].items())
    assert all(torch.equal(value, banks[2][place][name]) for place in (0, 1) for name, value in banks[1][place].items())
    assert min(learn(load("continual.fine_tuning"), network(), tasks, TRAINING).matrix[-1]) < 0.7
    for number, task in enumerate(tasks):
        assert (method.known(made, task.test.x)[1] == number).all()
        assert method.unknown(made, task.test.x).float().mean() < 0.2
    assert method.unknown(made, torch.randn(20, 6) - 4).all()


@pytest.mark.parametrize("adaptor", ["fixed", "none"])
def test_without_a_search(adaptor):
    made, tasks = network(), far_domains(2)
    found = learn(load("continual.ear", **SMALL, adaptor=adaptor), made, tasks, TRAINING)
    sizes = {"fixed": {"bottleneck"}, "none": set()}[adaptor]
    assert {held["spec"].get("kind") for held in made.memory["bank"]} - {None} == sizes
    assert found.matrix[1][0] == found.matrix[0][0] > 0.8
    assert (found.matrix[1][1] > 0.95) == (adaptor == "fixed")


def test_wrong_routing_costs_accuracy():
    method, made, tasks = load("continual.ear", **SMALL), network(), far_domains(2)
    learn(method, made, tasks, TRAINING)
    made.memory["of"] = [[1 - domain, label] for domain, label in made.memory["of"]]
    right = (predict(method, made, tasks[0].test.x).argmax(1) == tasks[0].test.y).float().mean()
    assert right < 0.5


def test_a_domain_that_is_known_grows_nothing():
    method, made, (task, *_) = load("continual.ear", **SMALL), network(), far_domains()
    again = Task("again", task.train, task.test, task.classes, 1)
    found = learn(method, made, [task, again], TRAINING)
    assert len(made.memory["bank"]) == 1
    assert made.parts.keys() == set()
    assert found.matrix[0] == found.matrix[1]


def test_new_classes_get_columns_and_the_old_ones_stay():
    draw, middle = torch.Generator().manual_seed(0), 2 * torch.randn(4, 6, generator=torch.Generator().manual_seed(5))
    y = torch.arange(160) % 4
    pool, heads, made = Pool("p", middle[y] + 0.3 * torch.randn(160, 6, generator=draw), y), [], network(4)
    method = load("continual.ear", **SMALL)
    found = learn(
        method, made, class_stream(pool, pool, 2), TRAINING, watch=lambda task, learner: heads.append(learner.head.weight.clone())
    )
    assert torch.equal(heads[0][:2], heads[1][:2])
    assert not torch.equal(heads[0][2:], heads[1][2:])
    assert made.memory["classes"] == [0, 1, 2, 3]
    assert [domain for domain, _ in made.memory["of"]] == [0, 0, 1, 1]
    assert min(found.matrix[-1]) > 0.9


def test_weights_that_classes_share_learn_in_the_first_task_alone():
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(3, 4)
            self.scale = nn.Parameter(torch.tensor(2.0))

    def shared(old):
        return {name: kept.all().item() for name, _, kept in columns(Scaled(), 4, [2, 3], old)}

    assert shared([]) == {"weight": False, "bias": False, "scale": False}
    assert shared([0, 1]) == {"weight": False, "bias": False, "scale": True}


@pytest.mark.parametrize("dies", [20, 70, 110])
def test_killed_and_resumed(tmp_path, dies):
    def run(folder=None, dies=0):
        method, made = load("continual.ear", **SMALL), network()
        if dies:
            _shifted.killed(method, dies)
        return made, learn(method, made, far_domains(2), TRAINING, folder=folder).matrix

    whole, figures = run()
    with contextlib.suppress(KeyboardInterrupt):
        run(tmp_path, dies)
    again, matrix = run(tmp_path)
    assert matrix == figures
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    for one, two in zip(whole.memory["bank"], again.memory["bank"], strict=True):
        assert one["spec"] == two["spec"]
        assert all(torch.equal(value, two["weights"][name]) for name, value in one["weights"].items())
