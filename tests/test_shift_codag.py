"""CoDAG and its parts: false labels by hand, random networks against torch's layers, a stream without labels that dies and goes on."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.checks import _shifted
from acclimate.engines.continual import Memory, domain_stream, learn
from acclimate.engines.shift import Batch, Learner, accuracy
from acclimate.method import load
from acclimate.methods.domain_generalization.randmix import drawn, uniform
from acclimate.parts.continual import over_the_stream
from acclimate.parts.false_labels import PHASES, Doubting, negative_positive

X = np.array([[2.0, 0.1, -1.0], [0.0, 0.3, 0.2], [-1.0, 2.5, 0.0], [0.4, 0.0, 0.9]])


def softmax(x):
    return np.exp(x) / np.exp(x).sum(1, keepdims=True)


@pytest.mark.parametrize("phase", PHASES)
def test_losses_under_false_labels(phase):
    y = np.array([0, 2, 0, 2])
    p, rows = softmax(X), np.arange(4)
    other = (y + torch.randint(1, 3, (4,), generator=torch.Generator().manual_seed(3)).numpy()) % 3
    assert (other != y).all()
    counts = {"negative": rows >= 0, "sure negative": p[rows, y] > 1 / 3, "sure positive": p[rows, y] > 0.5}[phase]
    wanted = -np.log(p[rows, y]) if phase == "sure positive" else -np.log(1 - p[rows, other])
    found, kept = negative_positive(torch.tensor(X), torch.tensor(y), phase, 0.5, torch.Generator().manual_seed(3))
    assert found.numpy() == pytest.approx(wanted)
    assert kept.tolist() == counts.tolist()
    learner = Learner(nn.Identity(), 3, width=3, head=nn.Identity())
    learner.generator.manual_seed(3)
    assert Doubting(learner, phase, 0.5).loss(torch.tensor(X), torch.tensor(y)).item() == pytest.approx(wanted[counts].mean())


def test_a_random_autoencoder_is_what_layers_of_torch_make():
    method, x = load("domain_generalization.randmix"), torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    found = method.remade(x, 5, torch.Generator().manual_seed(7))
    draw = torch.Generator().manual_seed(7)
    shrink, grow, norm, style = nn.Conv2d(3, 3, 5), nn.ConvTranspose2d(3, 3, 5), nn.InstanceNorm2d(3, eps=1e-6), nn.Linear(10, 6)
    with torch.no_grad():
        for layer, values in ((shrink, drawn(3, 5, x, draw)), (style, None), (grow, None)):
            if layer is style:
                style.weight.copy_(uniform((6, 10), 10, draw))
                noise = torch.randn(2, 10, generator=draw)
                style.bias.copy_(uniform((6,), 10, draw))
                continue
            weight, bias = values or drawn(3, 5, x, draw)
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        scale, shift = style(noise)[:, :, None, None].chunk(2, 1)
        wanted = torch.tanh(grow((1 + scale) * norm(shrink(x)) + shift))
    assert torch.allclose(found, wanted, atol=1e-5)
    assert drawn(3, 5, x, draw)[0].abs().max() <= nn.Conv2d(3, 3, 5).weight.shape[1:].numel() ** -0.5


def test_mixtures_are_new_at_every_call_and_bounded():
    method, x, draw = load("domain_generalization.randmix"), torch.rand(4, 1, 6, 6), torch.Generator().manual_seed(0)
    found = [method.mixed(x, draw) for _ in range(200)]
    assert found[0].shape == x.shape
    assert not torch.equal(found[0], found[1])
    assert max(float(each.abs().max()) for each in found) < 30  # with sums near 0 it would be without bound
    assert method.mixed(torch.rand(4, 2, 12), draw).shape == (4, 2, 12)
    assert load("domain_generalization.randmix", noise=0.0).mixed(torch.ones(2, 3), draw).tolist() == torch.ones(2, 3).tolist()


def test_the_last_phase_by_hand():
    """Labels of the copy, cross-entropy where sure, loss on kept rows, divergence from the model before."""
    method = load("continual.codag", generalises="erm", distilled=2.0, sure=0.2)
    learner = Learner(nn.Identity(), 3, width=3, head=nn.Linear(3, 3, bias=False)).double()
    copied, before, now = (np.random.default_rng(seed).normal(size=(3, 3)) for seed in range(3))
    learner.parts.update(method.build(learner))
    target = Batch(torch.tensor(X), None, torch.zeros(4), torch.arange(4), [4])
    replay = Batch(torch.tensor(X[:2] + 1), torch.tensor([1, 2]), torch.zeros(2), torch.arange(2), [2])
    method.begin(learner, None, target)
    with torch.no_grad():
        for head, weight in ((learner.parts["adapted_head"], copied), (learner.parts["before"][1], before), (learner.head, now)):
            head.weight.copy_(torch.tensor(weight))
    learner.progress = 0.95
    (loss,) = method.step(learner, target=target, replay=replay)
    y, p = (X @ copied.T).argmax(1), softmax(X @ now.T)
    own = p[np.arange(4), y]
    assert 0 < (own > 0.2).sum() < 4
    kept = -np.log(softmax((X[:2] + 1) @ now.T)[[0, 1], [1, 2]]).mean()
    every = np.concatenate([X, X[:2] + 1])
    old, new = softmax(every @ before.T), softmax(every @ now.T)
    wanted = -np.log(own[own > 0.2]).mean() + kept + 2 * (old * np.log(old / new)).sum(1).mean()
    assert loss.item() == pytest.approx(wanted)


def test_the_copy_adapts_first_and_the_model_stays():
    method, data = load("continual.codag"), _shifted.table()
    learner = _shifted.learner("table")
    learner.parts.update(method.build(learner))
    method.begin(learner, None, data.whole_target)
    method.refresh(learner, None, data.whole_target)
    (plays,) = method.step(learner, target=data.whole_target)
    assert [who for _, who in plays] == [["adapted_featurizer"]]
    learner.zero_grad()
    plays[0][0].backward()
    assert all(weight.grad is None for name, weight in learner.named_parameters() if not name.startswith("parts.adapted"))


def stream(method, folder=None, dies=0, memory=None):
    data = _shifted.table()
    pools = [data.labelled[0], data.oracle]
    learner = _shifted.learner("table")
    if dies:
        _shifted.killed(method, dies)
    training = _shifted.training(method, steps=60, choose="last", checkpoints=5, **_shifted.QUICK)
    tasks = domain_stream([(pool, pool) for pool in pools], labelled=1)
    assert tasks[1].train.y is None
    return learner, learn(method, learner, tasks, training, memory or Memory(rows=8, choose="herding"), folder=folder)


def test_a_domain_without_labels_is_learned_and_the_first_one_kept():
    _, found = stream(load("continual.codag"))
    assert found.matrix[1][1] > found.matrix[0][1]
    assert found.matrix[1][0] > 0.9
    assert found.kept == [8, 8]


@pytest.mark.parametrize("dies", [75, 110])  # while the copy adapts, and while the model learns
def test_killed_in_either_half_it_ends_the_same(tmp_path, dies):
    whole, told = stream(load("continual.codag"))
    with contextlib.suppress(KeyboardInterrupt):
        stream(load("continual.codag"), tmp_path, dies)
    again, figures = stream(load("continual.codag"), tmp_path)
    _shifted.equal(whole, again, "other weights")
    assert figures.matrix == told.matrix


def test_without_augmentation_the_first_domain_is_plain_training():
    data, method = _shifted.table(), load("continual.codag", generalises="erm")
    tasks = domain_stream([(data.labelled[0], data.labelled[0])])
    learners = [_shifted.learner("table") for _ in range(2)]
    for learner, each in zip(learners, (method, load("continual.fine_tuning")), strict=True):
        learn(each, learner, tasks, _shifted.training(method, **_shifted.QUICK))
    assert torch.equal(learners[0].head.weight, learners[1].head.weight)


def test_one_model_alone_is_shot_with_replay():
    method = load("continual.codag", apart=False, adapting=1.0)
    learner, found = stream(method)
    assert found.matrix[1][1] > found.matrix[0][1]
    assert accuracy(method, learner, _shifted.table().labelled[0]) == found.matrix[1][0]


def test_figures_over_the_stream():
    m = np.random.default_rng(0).random((4, 4))
    found = over_the_stream(m)
    assert found["TDA"] == pytest.approx((m[1, 1] + m[2, 2] + m[3, 3]) / 3)
    assert found["TDG"] == pytest.approx(((m[0, 1] + m[0, 2] + m[0, 3]) / 3 + (m[1, 2] + m[1, 3]) / 2 + m[2, 3]) / 3)
    assert found["FA"] == pytest.approx((m[1, 0] + (m[2, 0] + m[2, 1]) / 2 + (m[3, 0] + m[3, 1] + m[3, 2]) / 3) / 3)
