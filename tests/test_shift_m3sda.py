"""M3SDA where one number cannot show it: heads that differ, who learns when, the weighted vote, what sources are worth alone."""

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.checks import _shifted
from acclimate.engines.shift import Batch, Learner, Training, alone, fit
from acclimate.errors import AcclimateError
from acclimate.method import load


def softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def cross_entropy(scores: np.ndarray, y: np.ndarray) -> float:
    return float(-np.log(softmax(scores)[np.arange(len(y)), y]).mean())


@pytest.fixture
def made():
    """A method with two sources of 3 columns, its learner with drawn heads, batches, and the same in numpy."""
    draw = np.random.default_rng(3)
    method = load("domain_adaptation.m3sda", accuracies=(0.9, 0.3))
    learner = Learner(nn.Identity(), 2, width=3)
    learner.domains = ["a", "b", "target"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learner.parts.update(method.build(learner))
    x, y, other = draw.normal(size=(8, 3)), draw.integers(2, size=8), draw.normal(size=(5, 3))
    source = Batch(
        torch.tensor(x, dtype=torch.float32),
        torch.tensor(y),
        torch.tensor([0] * 5 + [1] * 3),
        torch.arange(8),
        [5, 3],
    )
    target = Batch(torch.tensor(other, dtype=torch.float32), None, torch.full((5,), 2), torch.arange(5), [5])
    heads = {
        name: [(head.weight.detach().double().numpy(), head.bias.detach().double().numpy()) for head in learner.parts[name]]
        for name in ("first", "second")
    }
    return method, learner, source, target, heads


def test_losses_by_hand(made):
    method, learner, source, target, heads = made
    x, y, other = source.x.double().numpy(), source.y.numpy(), target.x.double().numpy()
    parts, labels = [x[:5], x[5:]], [y[:5], y[5:]]
    task = sum(cross_entropy(parts[i] @ w.T + b, labels[i]) for name in heads for i, (w, b) in enumerate(heads[name]))
    apart = 0.0
    for order in (1, 2):
        one, two, three = ((part**order).mean(0) for part in (*parts, other))
        apart += (np.linalg.norm(one - three) + np.linalg.norm(two - three)) / 2 + np.linalg.norm(one - two)
    gap = sum(
        np.abs(softmax(other @ w.T + b) - softmax(other @ v.T + c)).mean()
        for (w, b), (v, c) in zip(heads["first"], heads["second"], strict=True)
    )
    assert gap > 0.05
    found = [play[0] if isinstance(play, tuple) else play for play in method.step(learner, source, target)]
    assert [loss.item() for loss in found] == pytest.approx([task + 0.5 * apart, task - gap, *[gap] * 4], rel=1e-5)


def test_vote_by_hand(made):
    method, learner, _, target, heads = made
    x = target.x.double().numpy()
    by_source = [(softmax(x @ w.T + b) + softmax(x @ v.T + c)) / 2 for (w, b), (v, c) in zip(heads["first"], heads["second"], strict=True)]
    assert method.predict(learner, target.x).exp().detach().numpy() == pytest.approx(0.75 * by_source[0] + 0.25 * by_source[1], rel=1e-5)
    plain = load("domain_adaptation.m3sda").predict(learner, target.x).exp().detach().numpy()
    assert plain == pytest.approx((by_source[0] + by_source[1]) / 2, rel=1e-5)


def test_who_learns(made):
    method, learner, source, target, _ = made
    assert [play[1] if isinstance(play, tuple) else None for play in method.step(learner, source, target)] == [
        None,
        ("first", "second"),
        *["featurizer"] * 4,
    ]


def test_without_pairs_one_update_and_no_second_heads():
    data = _shifted.table()
    learner = _shifted.learner("table")
    done = fit(load("domain_adaptation.m3sda", pairs=False), learner, data, Training(steps=3, batch=8, looks=1))
    assert done.plays == 3
    assert set(learner.parts) == {"first"}
    apart = learner.memory["apart"]
    assert apart[0]["distances"].shape == (4, 4)
    assert torch.equal(apart[0]["distances"].diagonal(), torch.zeros(4))
    assert torch.allclose(apart[0]["distances"], apart[0]["distances"].T)


def test_wrong_count_of_accuracies():
    method = load("domain_adaptation.m3sda", accuracies=(0.5, 0.5))
    with pytest.raises(AcclimateError, match="one number per source"):
        fit(method, _shifted.learner("table"), _shifted.table(), Training(steps=1, batch=8))


def test_alone():
    """A source whose labels are turned round is worth little to the others."""
    data = _shifted.table(target=False)
    wrong = [type(pool)(pool.name, pool.x, 1 - pool.y if number == 2 else pool.y) for number, pool in enumerate(data.labelled)]
    data = type(data)(wrong, None, wrong, data.classes)
    erm = load("domain_generalization.erm")
    found = alone(erm, lambda: _shifted.learner("table"), data, Training(steps=100, batch=16, lr=0.01, looks=1))
    assert found[2] < 0.2
    assert min(found[:2]) > 0.4
