"""DMG: losses under drawn masks by hand, gradients straight through, hard masks for trained domains and soft ones for others."""

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.checks import _shifted
from acclimate.engines.shift import Batch, Learner, Place, Training, fit
from acclimate.method import load
from acclimate.methods.domain_generalization.dmg import overlap

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()
Y = torch.tensor([0, 1, 1, 0, 1, 0])
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-0.5, 1.5, 0.2], [0.1, -2.0, -0.3]]).double()


def made(**settings):
    method, learner = load("domain_generalization.dmg", **settings), Learner(nn.Identity(), 2, width=3, dropout=0.9).double()
    learner.sources, learner.sample = 3, X[:1]
    learner.parts.update({name: part.double() for name, part in method.build(learner).items()})
    start = learner.parts["masks"][0].detach().clone()
    assert start.shape == (3, 3)
    assert 0 <= start.min() <= start.max() < 1
    learner.parts["masks"][0].data.copy_(LOGITS)
    return method, learner


BATCH = Batch(X, Y, torch.tensor([0, 0, 1, 1, 2, 2]), torch.arange(6), [2, 2, 2])


def test_the_loss_and_its_slopes_by_hand():
    method, learner = made(overlap=0.3, sparsity=0.01)
    learner.generator.manual_seed(5)
    (loss,) = method.step(learner, BATCH)
    loss.backward()
    p = (1 / (1 + np.exp(-LOGITS.numpy())))[[0, 0, 1, 1, 2, 2]]
    draws = torch.rand(6, 3, generator=torch.Generator().manual_seed(5)).numpy()
    mask = (draws < p).astype(float)  # a mask for each row, not for each batch
    assert len({tuple(row) for row in mask}) > 3
    weight, bias = (value.detach().numpy() for value in (learner.head.weight, learner.head.bias))
    scores = (X.numpy() * mask) @ weight.T + bias
    share = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    expected = -np.log(share[np.arange(6), Y.numpy()]).mean()
    one = p[::2]
    pairs = [((one[i] * one[j]).sum() + 1e-6) / ((one[i] + one[j] - one[i] * one[j]).sum() + 1e-6) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert loss.item() == pytest.approx(expected + 0.3 * np.mean(pairs) + 0.01 * one.sum(), rel=1e-6)
    method, learner = made(overlap=0.0)
    learner.head.weight.data.copy_(torch.tensor(weight))
    learner.head.bias.data.copy_(torch.tensor(bias))
    learner.generator.manual_seed(5)
    (loss,) = method.step(learner, BATCH)
    loss.backward()
    slope = ((share - np.eye(2)[Y.numpy()]) @ weight / 6) * X.numpy() * p * (1 - p)  # as if masks were probabilities
    found = learner.parts["masks"][0].grad.numpy()
    assert found == pytest.approx(slope.reshape(3, 2, 3).sum(1), abs=1e-8)


def test_trained_domains_have_hard_masks_and_others_the_mean_of_soft_ones():
    method, learner = made()
    known = method.predict(learner, X, Place("b", 1))
    assert torch.allclose(known, learner.head(X * torch.tensor([0.0, 1.0, 1.0])))
    soft = torch.stack([learner.head(X * p).softmax(1) for p in LOGITS.sigmoid()]).mean(0)
    for where in (None, Place("new"), Place("target", 3)):
        assert torch.allclose(method.predict(learner, X, where).exp(), soft, atol=1e-5)
    assert method.shared(learner)["features"][0] == pytest.approx([1.0, 1 / 3, 0.5], abs=1e-4)


def test_masks_on_several_layers_of_images_and_overlap_falls():
    data, found = _shifted.images(target=False), []
    for weight in (0.0, 3.0):
        method, learner = load("domain_generalization.dmg", overlap=weight, at=("stem", "blocks.1")), _shifted.learner("images")
        fit(method, learner, data, Training(steps=60, batch=8, lr=3e-3, rates={"masks": 10}))
        assert [list(masks.shape) for masks in learner.parts["masks"]] == [[3, 4], [3, 8]]
        found.append(sum(overlap(share).item() for share in method.shares(learner)))
    assert found[1] < found[0]
