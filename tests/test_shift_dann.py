"""DANN where one number cannot show it: the shallow form's updates by hand, halves of a batch, who is turned round, reverse validation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.checks import _shifted
from acclimate.engines.shift import Batch, Data, Learner, Pool, Training, accuracy, fit, reverse_risk
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.models.mlp import Mlp


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def test_shallow_update_by_hand():
    """One pass of algorithm 1 (hand-written gradients, one source row and one target row per step) is what the engine does."""
    draw = np.random.default_rng(5)
    strength, rate = 0.3, 0.1
    x, y, other = draw.normal(size=3), 1, draw.normal(size=3)
    learner = Learner(Mlp(3, 4, activation="sigmoid"), 2)
    method = load("domain_adaptation.dann", hidden=(), gamma=0.0, scaled=True, peak=2 * strength)
    start = {name: value.double().numpy().copy() for name, value in learner.state_dict().items()}
    data = Data(
        [Pool("s", torch.tensor(x, dtype=torch.float32)[None], torch.tensor([y]))],
        Pool("t", torch.tensor(other, dtype=torch.float32)[None]),
        (),
        ["a", "b"],
    )
    from acclimate.engines.shift.loop import add_parts

    add_parts(method, learner, 0)
    u, d = (learner.parts["domain"][0].weight.detach().double().numpy()[0].copy(), float(learner.parts["domain"][0].bias.detach()))
    fit(method, learner, data, Training(steps=1, batch=1, optimizer="sgd", momentum=0.0, lr=rate, choose="last"))

    w, b = start["featurizer.layers.0.weight"], start["featurizer.layers.0.bias"]
    v, c = start["head.weight"], start["head.bias"]
    hidden, hidden_other = sigmoid(w @ x + b), sigmoid(w @ other + b)
    scores = np.exp(v @ hidden + c)
    delta_c = scores / scores.sum() - np.eye(2)[y]
    delta_b = (v.T @ delta_c) * hidden * (1 - hidden)
    delta_w = np.outer(delta_b, x)
    # source is 0, target is 1: the domain head goes down its loss, W and b go up
    said, said_other = sigmoid(u @ hidden + d), sigmoid(u @ hidden_other + d)
    delta_d, delta_u = strength * (said - (1 - said_other)), strength * (said * hidden - (1 - said_other) * hidden_other)
    for sign, at, h in ((said, x, hidden), (said_other - 1, other, hidden_other)):
        up = -strength * sign * u * h * (1 - h)
        delta_b, delta_w = delta_b + up, delta_w + np.outer(up, at)
    expected = {
        "featurizer.layers.0.weight": w - rate * delta_w,
        "featurizer.layers.0.bias": b - rate * delta_b,
        "head.weight": v - rate * np.outer(delta_c, hidden),
        "head.bias": c - rate * delta_c,
        "parts.domain.0.weight": (u - rate * delta_u)[None],
        "parts.domain.0.bias": np.array([d - rate * delta_d]),
    }
    found = learner.state_dict()
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].numpy() == pytest.approx(value, abs=1e-6), name


def gradients(method, progress: float) -> dict[str, torch.Tensor]:
    learner = _shifted.learner("table")
    data = _shifted.table()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learner.parts.update(method.build(learner))
    learner.progress = progress
    pool = data.labelled[0]
    source = Batch(pool.x, pool.y, torch.zeros(48).long(), torch.arange(48), [48])
    target = Batch(data.target.x, None, torch.ones(48).long(), torch.arange(48), [48])
    next(iter(method.step(learner, source, target))).backward()
    return {name: weight.grad for name, weight in learner.named_parameters()}


def test_schedule_is_on_the_encoder_alone():
    """At the start the encoder sees no domain loss, the domain head all of it; in the scaled form neither does."""
    plain, scaled = (load("domain_adaptation.dann", hidden=(4,), scaled=scaled) for scaled in (False, True))
    early, late, none = gradients(plain, 0.0), gradients(plain, 1.0), gradients(scaled, 0.0)
    assert torch.equal(early["parts.domain.0.weight"], late["parts.domain.0.weight"])
    assert early["parts.domain.0.weight"].abs().sum() > 0
    assert none["parts.domain.0.weight"].abs().sum() == 0
    assert torch.allclose(early["featurizer.0.weight"], none["featurizer.0.weight"])
    assert not torch.allclose(early["featurizer.0.weight"], late["featurizer.0.weight"])


def test_half_of_a_batch_is_target():
    """The paper's 128 rows are 64 of the source and 64 of the target, also where there are several sources."""
    sizes = []
    method = load("domain_adaptation.dann", hidden=(4,))
    step = method.step

    def watched(learner, source, target):
        sizes.append((len(source), len(target)))
        yield from step(learner, source, target)

    method.step = watched
    data = _shifted.table()
    fit(method, _shifted.learner("table"), replace(data, labelled=data.labelled[:1]), Training(**{**method.training, "steps": 1}))
    fit(method, _shifted.learner("table"), data, Training(**{**method.training, "steps": 1}))
    assert sizes == [(64, 64), (192, 192)]


def test_domain_error():
    method = load("domain_adaptation.dann", hidden=())
    learner = Learner(nn.Identity(), 2, width=1)
    learner.parts["domain"] = nn.Linear(1, 1)
    with torch.no_grad():
        learner.parts["domain"].weight.fill_(1.0)
        learner.parts["domain"].bias.zero_()
    source, target = torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0], [1.0], [1.0], [-1.0]])
    assert method.domain_error(learner, source, target) == pytest.approx((0.5 + 0.25) / 2)
    with pytest.raises(AcclimateError, match="all domains"):
        load("domain_adaptation.dann", domains="all").domain_error(learner, source, target)


def blobs(turn: float) -> Data:
    """Two classes in the plane; the target is turned round the origin by so many degrees."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 2
    angle = torch.tensor(turn * np.pi / 180)
    turned = torch.stack([torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])]).float()

    def rows() -> torch.Tensor:
        x = 0.4 * torch.randn(120, 2, generator=draw)
        x[:, 0] += 2.0 * y - 1
        return x

    return Data(
        [Pool("source", rows(), y)], Pool("target", rows() @ turned), [Pool("held", rows(), y)], ["0", "1"],
        oracle=Pool("oracle", rows() @ turned, y),
    )  # fmt: skip


def test_reverse_risk_follows_the_hidden_accuracy():
    """Without a label of the target the risk is low where adaptation worked, and high where the head's classes are exchanged."""
    method, plan = load("domain_adaptation.dann", hidden=(8,), peak=0.1), Training(steps=60, batch=16, lr=0.01, looks=3)
    data = blobs(20.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learner = Learner(Mlp(2, 8), 2)
    fit(method, learner, data, plan)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    assert accuracy(method, learner, data.oracle) > 0.9
    assert reverse_risk(method, learner, data, plan) < 0.1
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())
    with torch.no_grad():
        for weight in learner.head.parameters():
            weight.neg_()
    assert accuracy(method, learner, data.oracle) < 0.1
    assert reverse_risk(method, learner, data, plan) > 0.9


def test_reverse_risk_of_several_sources_and_what_it_needs():
    method, data = load("domain_adaptation.dann", hidden=(4,)), _shifted.table()
    learner, plan = _shifted.learner("table"), Training(steps=40, batch=8, lr=0.01, looks=2)
    fit(method, learner, data, plan)
    assert 0 <= reverse_risk(method, learner, data, plan) < 0.4
    with pytest.raises(AcclimateError, match="held-out rows"):
        reverse_risk(method, learner, replace(data, validation=()), plan)


def test_rates_of_new_layers():
    """A module inside a part has a rate of its own (a pretrained body is slow, a new bottleneck is not); the most exact name counts."""
    from acclimate.engines.shift.plays import optimizer_of

    learner = Learner(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), 2, width=2)
    training = Training(optimizer="sgd", lr=1.0, rates={"featurizer.0": 0.1, "featurizer": 0.5})
    optimizer = optimizer_of(learner, training)
    rate = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    found = {name: rate[id(weight)] for name, weight in learner.named_parameters() if name.endswith("weight")}
    assert found == {"featurizer.0.weight": 0.1, "featurizer.1.weight": 0.5, "head.weight": 1.0}
    with pytest.raises(AcclimateError, match=r"featurizer\.9"):
        optimizer_of(learner, Training(rates={"featurizer.9": 1.0}))
