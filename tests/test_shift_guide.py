"""GUIDE: when clusters' means are made anew, spaces of one's own, true domains as clusters, the figures of separation, soft shares."""

import copy

import pytest
import torch
from torch import nn

from acclimate.checks import _shifted
from acclimate.engines.shift import Training, fit, predict
from acclimate.method import load
from acclimate.models.unet import noise_net
from acclimate.parts.feature_spaces import Inside, separation


def trained(steps=12, space=None, **settings):
    learner, data = _shifted.learner("table"), _shifted.table(target=False)
    if space is not None:
        learner.parts["space"] = space
    method = load("domain_generalization.guide", **settings)
    fit(method, learner, data, Training(steps=steps, batch=24, lr=0.01, choose="last"))
    return method, learner, data


@pytest.mark.parametrize(("every", "due"), [(0, [0, 1, 2, 4]), (3, [0, 3])])
def test_carried_anew_after_passes(every, due):
    method, learner, data = load("domain_generalization.guide", every=every), _shifted.learner("table"), _shifted.table(target=False)
    learner.sample = data.labelled[0].x[:1]
    learner.parts.update(method.build(learner))
    method.begin(learner, data.source, None)
    found = []
    for number in range(6):
        with torch.no_grad():
            for weight in learner.featurizer.parameters():
                weight.mul_(1.1)
        before = learner.memory.get("carried")
        method.refresh(learner, data.source, None)
        if before is None or not torch.equal(before, learner.memory["carried"]):
            found.append(number)
    assert found == due


def test_psi_is_frozen_and_the_matrix_learns():
    _, learner, data = trained()
    fresh = copy.deepcopy(_shifted.learner("table"))
    for (name, one), other in zip(fresh.featurizer.named_parameters(), learner.parts["space"].net.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert not torch.equal(learner.featurizer[0].weight, fresh.featurizer[0].weight)
    assert learner.memory["of"].max() + 1 == 10  # 5 for each of two classes
    assert len(learner.memory["of"]) == sum(len(pool) for pool in data.labelled)


def test_true_domains_as_clusters_and_their_nmi():
    _, learner, data = trained(oracle=True)
    assert torch.equal(learner.memory["of"], data.source.domain)
    assert learner.memory["nmi"]["domains"] == pytest.approx(1)
    assert learner.memory["nmi"]["classes"] == pytest.approx(0, abs=1e-6)


def test_a_space_of_ones_own_tells_domains_apart():
    class Last(nn.Module):  # the columns that say which domain a row is of, without noise
        def forward(self, x):
            return x[:, 2:] * 0 + x[:, 2:].round()

    source = _shifted.table(target=False).source
    domains = separation(source.x[:, 2:], source.domain, source.y)
    classes = separation(source.x[:, :2], source.domain, source.y)
    assert domains[0] > classes[0]
    assert domains[1] < classes[1]
    _, learner, _ = trained(space=Last(), clusters=3)
    assert learner.memory["centroids"].shape == (3, 2)


def test_soft_shares_become_the_nearest_where_the_kernel_is_narrow():
    method, learner, data = trained(gamma=1e4)
    x = data.labelled[0].x
    one = predict(method, learner, x)
    assert torch.allclose(one, predict(load("domain_generalization.guide", gamma=1e4, soft=True), learner, x), atol=1e-5)
    learner.memory["gamma"] = 0.0
    even = predict(load("domain_generalization.guide", soft=True), learner, x)
    mean = learner(x) + learner.parts["beside"](learner.memory["carried"].mean(0))
    assert torch.allclose(even, mean, atol=1e-5)


def test_inside_of_a_diffusion_model_depends_on_the_row_alone():
    torch.manual_seed(0)
    x = torch.rand(5, 1, 8, 8)
    net = noise_net(x[:1], width=8)
    net.fit_range(x)
    space = Inside(net)
    assert space(x).shape == (5, 16)
    assert torch.allclose(space(x)[2:3], space(x[2:3]), atol=1e-6)
