"""CCFP on maps: losses by hand at several places, and who learns in which update."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from acclimate.checks import _shifted, tiny
from acclimate.engines.shift import Batch, Learner, Training, fit
from acclimate.method import load


def softmax_loss(scores: np.ndarray, y: np.ndarray) -> float:
    scores = scores - scores.max(1, keepdims=True)
    return float((np.log(np.exp(scores).sum(1)) - scores[np.arange(len(y)), y]).mean())


def gram(maps: np.ndarray) -> np.ndarray:
    a = maps.reshape(*maps.shape[:2], -1)
    return np.einsum("rcp,rdp->rcd", a, a) / (a.shape[1] * a.shape[2])


def moved(maps: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    mean, deviation = maps.mean((2, 3), keepdims=True), np.sqrt(maps.var((2, 3), keepdims=True) + 1e-6)
    wide = (1, -1, 1, 1)
    return (maps - mean) / deviation * (deviation + gamma.reshape(wide)) + (mean + beta.reshape(wide))


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3))

    def forward(self, x):
        return self.body(x).mean((2, 3))


def test_losses_by_hand():
    torch.manual_seed(0)
    net, method = Pooled(), load("domain_generalization.ccfp", semantic=0.5, style=2.0)
    learner = Learner(net, 2, width=3)
    x, y = torch.randn(4, 1, 7, 7), torch.tensor([0, 1, 1, 0])
    learner.sample = x[:1]
    learner.parts.update(method.build(learner))
    assert list(learner.parts["shifts"]) == ["body/0", "body/1"]  # after the first convolution, after its ReLU, not after the last stage
    tiny.fill(learner.parts["shifts"].parameters())
    tiny.fill(learner.parts["away"].parameters())  # gamma and beta are sums of both
    with torch.no_grad():
        for weight in learner.parts["perturbed"].parameters():
            weight.mul_(1.1)
    batch = Batch(x, y, torch.zeros(4), torch.arange(4), [4])
    losses = [play for each in method.step(learner, batch) for play in (each if isinstance(each, list) else [each])]
    with torch.no_grad():
        one, two = net.body[0], net.body[2]
        clean = [one(x), one(x).relu()]
        scores = learner.head(two(clean[1]).mean((2, 3))).numpy()
        shifts = [[2 * p.numpy() for p in (each.gamma, each.beta)] for each in learner.parts["shifts"].values()]
        one, two = learner.parts["perturbed"].body[0], learner.parts["perturbed"].body[2]
        first = moved(one(x).numpy(), *shifts[0])
        second = moved(np.maximum(first, 0), *shifts[1])
        other = learner.parts["perturbed_head"](two(torch.tensor(second)).mean((2, 3))).numpy()
    assert not np.allclose(scores, other)
    gap = ((scores - other) ** 2).mean()
    apart = sum(np.linalg.norm(gram(a.numpy()) - gram(b)) for a, b in zip(clean, (first, second), strict=True))
    expected = [softmax_loss(scores, y.numpy()) + 0.5 * gap, softmax_loss(other, y.numpy()) + 0.5 * gap, -2 * apart]
    assert [loss.item() for loss, _ in losses] == pytest.approx(expected, rel=1e-4)
    assert [who for _, who in losses] == [("featurizer", "head"), ("perturbed", "perturbed_head", "shifts"), "away"]
    assert learner.memory["distances"] == pytest.approx([apart], rel=1e-4)
    assert method.predict(learner, x).detach().numpy() == pytest.approx(other, abs=1e-5)


def test_each_network_learns_from_its_own_loss():
    """The scores of the one are a fixed aim for the other, and style moves gamma and beta alone."""
    method, learner, data = load("domain_generalization.ccfp"), _shifted.learner("images"), _shifted.images()
    learner.sample = data.labelled[0].x[:1]
    learner.parts.update(method.build(learner))
    batch = Batch(data.labelled[0].x, data.labelled[0].y, None, None, [24])
    (clean, own), (pushed, _), (style, _) = [
        play for each in method.step(learner, batch) for play in (each if isinstance(each, list) else [each])
    ]
    other = learner.weights(("perturbed", "perturbed_head", "shifts"))
    assert all(g is None for g in torch.autograd.grad(clean, other, retain_graph=True, allow_unused=True))
    assert all(g is None for g in torch.autograd.grad(pushed, learner.weights(own), retain_graph=True, allow_unused=True))
    assert all(g is None for g in torch.autograd.grad(style, learner.weights(own), allow_unused=True))


def test_style_is_moved_when_learned_and_stays_when_drawn():
    data = _shifted.images(target=False)
    for settings, moves in (({}, True), ({"drawn": 0.3}, False)):
        learner = _shifted.learner("images")
        before = copy.deepcopy(dict(learner.featurizer.named_parameters()))
        method = load("domain_generalization.ccfp", **settings)
        fit(method, learner, data, Training(steps=20, batch=8, lr=1e-2, choose="last"))
        shifts, away = (list(learner.parts[name].parameters()) for name in ("shifts", "away"))
        assert all(weight.abs().sum() > 0 for weight in shifts)
        assert all(bool(weight.abs().sum() > 0) is moves for weight in away)
        assert all(weight.requires_grad is moves for weight in shifts + away)
        assert any(not torch.equal(before[name], weight) for name, weight in learner.featurizer.named_parameters())
        if moves:
            distances = learner.memory["distances"]
            assert len(distances) == 20
            assert distances[-1] > distances[0]


def test_statistics_move_once_per_step_and_not_at_all_when_frozen():
    data = _shifted.images(target=False)
    for frozen, count in ((False, 5), (True, 0)):
        learner = _shifted.learner("images")
        fit(load("domain_generalization.ccfp", frozen_norms=frozen), learner, data, Training(steps=5, batch=8, choose="last"))
        for net in (learner.featurizer, learner.parts["perturbed"]):
            assert {int(m.num_batches_tracked) for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {count}


def test_tokens_have_their_channels_last():
    x, y = torch.randn(6, 5, 4), torch.tensor([0, 1] * 3)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.features = nn.Linear(4, 8), nn.Linear(8, 3), 3

        def forward(self, x):
            return self.second(functional.relu(self.first(x))).mean(1)

    learner = Learner(Tokens(), 2)
    learner.sample = x[:1]
    method = load("domain_generalization.ccfp", tokens=True)
    learner.parts.update(method.build(learner))
    assert len(learner.parts["shifts"]["first"].gamma) == 8
    assert all(loss.isfinite() for loss, _ in next(iter(method.step(learner, Batch(x, y, None, None, [6])))))
