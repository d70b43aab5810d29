"""DRM: heads chosen row by row, estimators of the gap, labels of a stream that are sure enough, reset."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.checks import _shifted
from acclimate.engines.online import Online
from acclimate.engines.shift import Batch, Learner, Training, accuracy, fit
from acclimate.errors import AcclimateError
from acclimate.method import load

X = np.array([[2.0, 0.1], [-0.3, 1.5], [0.2, -0.1], [1.0, 1.0]])
HEADS = [
    np.array([[1.0, 0.0], [-1.0, 0.5]]),
    np.array([[0.0, 2.0], [0.3, -1.0]]),
    np.array([[0.4, 0.4], [-0.2, 0.1]]),
]  # the last one shared


def shares(scores: np.ndarray) -> np.ndarray:
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def made(**settings):
    method = load("domain_generalization.drm", **settings)
    learner = Learner(nn.Identity(), 2, width=2, head=nn.Linear(2, 2, bias=False)).double()
    learner.sources = 2
    learner.parts.update({name: part.double() for name, part in method.build(learner).items()})
    with torch.no_grad():
        for head, weight in zip([*learner.parts["heads"], learner.head], HEADS, strict=True):
            head.weight.copy_(torch.tensor(weight))
            if head.bias is not None:
                head.bias.zero_()
    return method, learner


P = shares(np.stack([X @ weight.T for weight in HEADS]))  # [head, row, class]
ENTROPY = -(P * np.log(P)).sum(2)


def test_each_row_takes_the_head_of_least_entropy():
    method, learner = made()
    best = ENTROPY.argmin(0)
    assert len(set(best)) > 1  # not one head for all rows
    found = method.predict(learner, torch.tensor(X)).exp().detach().numpy()
    assert found == pytest.approx(P[best, np.arange(4)], rel=1e-6)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 5.0])
def test_mixtures(gamma, shared):
    method, learner = made(gamma=gamma, include_shared=shared)
    heads = 3 if shared else 2
    weight = ENTROPY[:heads] ** -gamma
    expected = (weight / weight.sum(0))[:, :, None] * P[:heads]
    assert method.predict(learner, torch.tensor(X)).exp().detach().numpy() == pytest.approx(expected.sum(0), rel=1e-6)


def test_gaps_by_a_bank_of_features_and_by_a_domain_classifier():
    batch = Batch(torch.tensor(X), torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]), torch.arange(4), [2, 2])
    z = torch.tensor([[1.0, 0.5]]).double()
    for estimator in ("cosine", "distance"):
        method, learner = made(estimator=estimator, bank_batches=2)
        for factor in (100.0, 1.0, 3.0):  # the first leaves the bank
            batch.x = factor * torch.tensor(X)
            list(method.step(learner, batch))
        assert learner.memory["bank"].shape == (2, 2, 2)
        middle = np.stack([2 * X[:2].mean(0), 2 * X[2:].mean(0)])
        if estimator == "distance":
            expected = np.linalg.norm(middle - z.numpy(), axis=1)
        else:
            expected = 1 - (middle @ z[0].numpy()) / np.linalg.norm(middle, axis=1) / np.linalg.norm(z.numpy())
        assert method.gaps(learner, z, torch.zeros(3, 1, 2))[:, 0].numpy() == pytest.approx(expected, rel=1e-6)
    method, learner = made(estimator="discriminator", gamma=1.0)  # mixed by the classifier's probabilities
    weight = learner.parts["discriminator"](torch.tensor(X)).softmax(1).detach().numpy().T
    found = method.predict(learner, torch.tensor(X)).exp().detach().numpy()
    assert found == pytest.approx((weight[:, :, None] * P[:2]).sum(0), rel=1e-5)


@pytest.mark.parametrize("labels", ["own", "mixed", "steered"])
def test_a_stream_teaches_only_what_is_sure(labels):
    method, learner = made(labels=labels, beta=0.8)
    taught = {"own": P, "mixed": np.stack([P.mean(0)] * 3), "steered": np.stack([P[ENTROPY.argmin(0), np.arange(4)]] * 3)}[labels]
    expected = 0.0
    for head in range(3):
        known = taught[head].max(1) >= 0.8
        assert known.sum() < 4
        if known.any():
            expected += -np.log(P[head][known, taught[head][known].argmax(1)]).mean()
    steps = method.adapt(learner, torch.tensor(X))
    loss, players = next(steps)
    assert players == ("heads", "head")
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value.shape == (4, 2)


def test_above_one_nothing_is_learned_and_the_scores_are_those_of_predict():
    method, learner = made(beta=1.1, steps=3)
    with pytest.raises(StopIteration) as end:
        next(method.adapt(learner, torch.tensor(X)))
    assert torch.equal(end.value.value, method.predict(learner, torch.tensor(X)))


@pytest.mark.parametrize("full", [False, True])
def test_on_a_stream_and_reset(full):
    data, learner = _shifted.table(), _shifted.learner("table")
    method = load("domain_generalization.drm", beta=0.75, steps=3, labels="own", full=full, estimator="distance")
    fit(method, learner, data, Training(steps=60, batch=16, lr=3e-3, choose="last"))
    assert len(learner.parts["heads"]) == 3  # none for the target
    assert min(accuracy(method, learner, pool) for pool in data.labelled) > 0.9
    online = Online(method, learner, Training(lr=1e-3))
    before, bank = copy.deepcopy(learner.state_dict()), learner.memory["bank"].clone()
    rows = data.target.x.split(12)
    first = online.run(rows)
    assert online.updates == 3 * len(rows)
    now = learner.state_dict()
    moved = {name.split(".")[0] for name in now if not torch.equal(now[name], before[name])}
    assert moved == ({"parts", "head", "featurizer"} if full else {"parts", "head"})
    online.reset()
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())
    assert torch.equal(bank, learner.memory["bank"])
    assert all(map(torch.equal, first, online.run(rows)))


def test_values_are_refused():
    with pytest.raises(AcclimateError, match="values"):
        load("domain_generalization.drm").build(Learner(nn.Identity(), 0, width=2))
