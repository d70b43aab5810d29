"""D3G: relations and the prediction of an unseen domain by hand, values instead of classes, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.checks import _shifted
from acclimate.engines.shift import Batch, Data, Learner, Place, Pool, Training, accuracy, fit
from acclimate.errors import AcclimateError
from acclimate.method import load

FACTS = np.array([[0.0, 0.0], [3.0, 4.0], [1.0, -1.0]])


def made(classes=2, **settings):
    method = load("domain_generalization.d3g", **settings)
    learner = Learner(nn.Identity(), classes, width=2).double()
    learner.sources, learner.about, learner.domains = 3, torch.tensor(FACTS), ["a", "b", "c"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learner.parts.update({name: part.double() for name, part in method.build(learner).items()})
    return method, learner


def relation(learner, beta, a, b):
    """Fixed by inverse distance, learned by cosines, loop by loop."""
    part = learner.parts["relation"]
    w = part.w.detach().numpy()
    g = [part.g(torch.tensor(facts)).detach().numpy() for facts in (a, b)]
    found = np.zeros((len(a), len(b)))
    for i in range(len(a)):
        for j in range(len(b)):
            pairs = [(v * g[0][i], v * g[1][j]) for v in w]
            cosine = np.mean([p @ q / np.linalg.norm(p) / np.linalg.norm(q) for p, q in pairs])
            found[i, j] = beta / (1 + np.linalg.norm(a[i] - b[j])) + (1 - beta) * max(cosine, 0)
    return found


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_an_unseen_domain_by_hand(beta):
    method, learner = made(beta=beta)
    x, facts = np.array([[1.0, 2.0], [-1.0, 0.5]]), np.array([2.0, 0.0])
    weights = relation(learner, beta, facts[None], FACTS)[0]
    layer = learner.parts["heads"]
    scores = (x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()).reshape(2, 3, 2)
    expected = np.einsum("h,rhc->rc", weights / weights.sum(), scores)
    found = method.predict(learner, torch.tensor(x), Place("new", None, torch.tensor(facts)))
    assert found.detach().numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("classes", [2, 0])
def test_the_own_head_is_left_out_of_the_second_loss(classes):
    method, learner = made(classes, weight=2.0, beta=0.4)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)).double()
    y = torch.tensor([0, 1, 1, 0, 1, 0]) if classes else torch.linspace(-1, 1, 6).double()
    domain = torch.tensor([0, 0, 1, 1, 2, 2])
    (loss,) = method.step(learner, Batch(x, y, domain, torch.arange(6), [2, 2, 2]))
    a, expected = relation(learner, 0.4, FACTS, FACTS), 0.0
    scores = learner.parts["heads"](x).reshape(6, 3, -1)
    for row in range(6):
        own = int(domain[row])
        others = [j for j in range(3) if j != own]
        share = a[own, others] / a[own, others].sum()
        sum_of_others = sum(share[k] * scores[row, j] for k, j in enumerate(others))
        both = [learner.loss(each[None], y[row : row + 1]).item() for each in (scores[row, own], sum_of_others)]
        expected += (both[0] + 2.0 * both[1]) / 6
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_fixed_relations():
    facts = torch.tensor(FACTS)
    for fixed, expected in (
        ("adjacent", [[1, 0, 1], [0, 1, 0], [1, 0, 1]]),
        ("equal", [[1, 1, 1]] * 3),
    ):
        method, learner = made(beta=1.0, fixed=fixed, reach=2.0)
        assert method.relation(learner, facts, facts).tolist() == expected
    method, learner = made(beta=1.0, fixed="adjacent")
    away = Place("new", None, torch.tensor([9.0, 9.0]))  # related to nobody: all heads alike
    x = torch.tensor([[1.0, 2.0]]).double()
    heads = learner.parts["heads"](x).reshape(3, 2)
    assert method.predict(learner, x, away)[0].tolist() == pytest.approx(heads.mean(0).tolist())


def test_values_that_depend_on_the_place():
    """y = place x slope: no single model is right, a neighbour's head nearly is."""
    draw = torch.Generator().manual_seed(0)

    def pool(place: float) -> Pool:
        x = torch.randn(64, 1, generator=draw)
        return Pool(str(place), x, place * x[:, 0], torch.tensor([10 * place]))

    sources = [pool(place) for place in (-1.0, -0.6, -0.2, 0.2, 0.6, 1.0)]
    found = {}
    for name in ("d3g", "erm"):
        method = load(f"domain_generalization.{name}")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            learner = Learner(nn.Sequential(nn.Linear(1, 16), nn.ReLU()), 0, width=16)
        fit(method, learner, Data(sources), Training(steps=300, batch=16, lr=0.01))
        found[name] = -accuracy(method, learner, pool(0.8))
    assert found["d3g"] < 0.1 < 0.5 < found["erm"]


def test_without_facts_it_says_so():
    data = _shifted.table(target=False)
    data.labelled = [replace(pool, about=None) for pool in data.labelled]
    with pytest.raises(AcclimateError, match="about"):
        fit(load("domain_generalization.d3g"), _shifted.learner("table"), data, Training(steps=1))
    method, learner = made()
    with pytest.raises(AcclimateError, match="'new'"):
        method.predict(learner, torch.zeros(1, 2).double(), Place("new"))
