"""ViDA against numpy: uncertainty, strengths, ranks, the teacher's scores and its averages; adapters beside layers of all kinds."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.engines.online import Online
from acclimate.engines.shift import Learner, Training
from acclimate.method import load
from acclimate.methods.test_time import vida
from acclimate.models.convnet import ConvNet
from acclimate.models.mlp import Mlp
from acclimate.models.series import SeriesNet
from acclimate.models.vit import Vit
from acclimate.parts.two_ranks import adaptable


def network(seed: int) -> Learner:
    torch.manual_seed(seed)
    return Learner(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), 2, width=3)


@pytest.mark.parametrize("threshold", [0.0, 100.0])
def test_scores_and_teacher_are_those_of_numpy(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(1)
    shifts = draw.normal(size=(3, 5, 4))
    given = iter(shifts)
    monkeypatch.setattr(vida, "random_view", lambda x, *_: x + torch.from_numpy(next(given)).float())
    learner = network(2)
    method = load("test_time.vida", high=2, views=3, threshold=threshold, keep=0.5, keep_adapters=0.25, fall_back=0.0)
    learner.parts.update(method.build(learner))
    for weight in learner.parts["adapters"].parameters():
        nn.init.normal_(weight)
    online = Online(method, learner, Training(lr=0.01, optimizer="sgd", momentum=0.0, rates={"adapters": 0.1}))
    before = copy.deepcopy(online.learner).double()
    x = draw.normal(size=(5, 4))
    scores = online.predict(torch.from_numpy(x).float())

    (layer, _), head, pair = before.featurizer, before.head, before.parts["adapters"][0]
    w, b, h, c = (v.detach().numpy() for v in (layer.weight, layer.bias, head.weight, head.bias))
    (d1, d2), (u1, u2) = ([m.weight.detach().numpy() for m in some] for some in (pair.down, pair.up))

    def by_hand(rows: np.ndarray, low: float, high: float) -> np.ndarray:
        inner = rows @ w.T + b + low * (rows @ d1.T @ u1.T) + high * (rows @ d2.T @ u2.T)
        return np.maximum(inner, 0) @ h.T + c

    views = np.stack([by_hand(x + shift, 1.0, 1.0) for shift in shifts])
    u = 0.1 * ((views - views.mean(0)) ** 2).sum(0).mean() / 2
    low, high = (1 - u, 1 + u) if threshold == 0 else (1 + u, 1 - u)
    assert learner.memory["trace"] == [pytest.approx([u, low, high], rel=1e-4)]
    assert np.allclose(scores.numpy(), by_hand(x, low, high), atol=1e-4)  # the teacher's, before it moved
    student, teacher = learner.head.weight.detach(), learner.parts["teacher"][1].weight
    assert torch.allclose(teacher, 0.5 * before.head.weight.float() + 0.5 * student)
    for now, old, slow in zip(
        learner.parts["adapters"].parameters(), pair.parameters(), learner.parts["teacher_adapters"].parameters(), strict=True
    ):
        assert not torch.equal(now, old.float())  # nor is the student still what it was
        assert torch.allclose(slow, 0.25 * old.float() + 0.75 * now, atol=1e-6)


@pytest.mark.parametrize(
    ("net", "shape", "count"),
    [(Vit(8, 2, 2, 4, 16), (3, 16, 16), 4), (ConvNet(4), (3, 16, 16), 9), (SeriesNet(2, 4), (2, 32), 3), (Mlp(6, 8, 2), (6,), 2)],
)
def test_adapters_stand_beside_layers_of_every_backbone_and_start_as_nothing(net: nn.Module, shape: tuple, count: int) -> None:
    assert len(adaptable(net)) == count
    learner = Learner(net, 3).eval()
    rows = torch.rand(4, *shape)
    plain = learner(rows)
    method = load("test_time.vida", high=3, views=2)
    online = Online(method, learner)
    assert torch.equal(method.predict(learner, rows), plain)
    online.run([rows, rows])
    assert all(weight.abs().sum() > 0 for pair in learner.parts["adapters"] for weight in pair.up.parameters())


def test_one_rank_alone_and_none() -> None:
    for low, high, count in ((1, 0, 1), (0, 2, 1), (0, 0, 0)):
        learner = network(0)
        method = load("test_time.vida", low=low, high=high, views=2)
        Online(method, learner).predict(torch.rand(3, 4))
        assert sum(len(pair.down) for pair in learner.parts["adapters"]) == count


def test_the_warm_up_trains_network_and_adapters_at_strength_one() -> None:
    learner = network(0)
    method = load("test_time.vida", high=2)
    learner.parts.update(method.build(learner))
    method.begin(learner, None, None)
    rows, y = torch.rand(4, 4), torch.tensor([0, 1, 0, 1])
    (loss,) = method.step(learner, type("Rows", (), {"x": rows, "y": y}))
    loss.backward()
    assert all(pair.up[0].weight.grad is not None for pair in learner.parts["adapters"])
    assert learner.featurizer[0].weight.grad is not None
