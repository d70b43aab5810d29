"""POND: the Reptile move, who learns when, the choice among sources that differ, rows whose labels are known, and series."""

import copy
from dataclasses import replace

import pytest
import torch

from acclimate.checks import _shifted
from acclimate.engines.shift import Data, Learner, Pool, Training, accuracy, fit
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.models.series_transformer import SeriesTransformer
from acclimate.parts.information import Club


def trained(method, data=None, steps=6, **given) -> Learner:
    learner = _shifted.learner("table")
    fit(method, learner, data or _shifted.table(), Training(steps=steps, batch=10, choose="last", looks=1, **given))
    return learner


def shared(learner: Learner) -> dict:
    return {
        name: weight.clone()
        for name, weight in learner.state_dict().items()
        if not name.startswith(("parts.gen", "parts.told", "parts.club"))
    }


def test_shared_weights_go_a_share_of_the_way():
    given = {"pretraining": 0.0, "distinction": 0.0, "inner": 2}
    still = trained(load("domain_adaptation.pond", rate=0.0, **given), steps=1)
    half = trained(load("domain_adaptation.pond", rate=0.5, **given), steps=1)
    whole = trained(load("domain_adaptation.pond", rate=1.0, **given), steps=1)
    start, zero, some, full = (shared(each) for each in (_shifted.learner("table"), still, half, whole))
    assert all(torch.equal(start[name], zero[name]) for name in start)
    assert any(not torch.equal(zero[name], full[name]) for name in start)
    for name in zero:
        torch.testing.assert_close(some[name], (zero[name] + full[name]) / 2)


def test_who_learns_when():
    method = load("domain_adaptation.pond", frozen=True)
    early, late = (trained(replace_share(method, share)) for share in (1.0, 0.0))
    start = _shifted.learner("table").state_dict()
    assert not early.parts.generators[0].out.weight.any()
    assert early.parts.common[0].any()
    assert all(torch.equal(late.state_dict()[name], value) for name, value in start.items())
    assert late.parts.generators[0].out.weight.any()
    assert late.parts.generators[-1].out.weight.any()


def replace_share(method, share: float):
    return load(method.name, **{**method.values(), "pretraining": share})


def worlds(rows: int = 60) -> tuple[list[Pool], Pool]:
    """Two sources that look alike and give a class opposite labels, and a target of the second kind."""
    draw = torch.Generator().manual_seed(0)
    pools = []
    for number, side in enumerate((-1.0, 1.0, 1.0)):
        y = torch.arange(rows) % 2
        x = torch.randn(rows, 2, 8, generator=draw) * 0.3
        x[:, 0] += side * (2.0 * y[:, None] - 1)
        pools.append(Pool(f"world {number}", x, y))
    return pools[:2], pools[2]


@pytest.mark.parametrize(("encoder", "steps"), [("linear", 140), ("gru", 80)])
def test_the_source_whose_prompts_suit_is_chosen(encoder, steps):
    sources, target = worlds()
    data = Data(sources, target.unlabelled(), (), ["0", "1"], asked=target.select(range(12)))
    given = {"prompt_len": 4, "encoder": encoder, "hidden": 8, "nearness": "rows"}
    method = load("domain_adaptation.pond", inner=2, rate=0.5, pretraining=0.1, **given)
    torch.manual_seed(0)
    learner = Learner(SeriesTransformer(2, 16, 4, 1, 2), data.classes)
    fit(method, learner, data, Training(steps=steps, batch=20, lr=1e-2, choose="last", looks=1))
    assert learner.memory["distances"].argmin() == 1
    right = [float((method.scores(learner, target.x, number).argmax(1) == target.y).float().mean()) for number in range(2)]
    assert right[0] < 0.2
    assert right[1] == accuracy(method, learner, target) > 0.8
    voted = load("domain_adaptation.pond", choice="mixture", **given).predict(learner, target.x)
    torch.testing.assert_close(voted.exp().sum(1), torch.ones(len(target)))


def test_labels_of_the_target_reach_its_generator_alone():
    data = _shifted.table()
    given = {"pretraining": 0.0, "rate": 0.0, "distinction": 0.0}
    without = trained(load("domain_adaptation.pond", **given), data, steps=1)
    known = trained(load("domain_adaptation.pond", **given), replace(data, asked=data.oracle.select(range(8))), steps=1)
    changed = {name for name, value in without.state_dict().items() if not torch.equal(value, known.state_dict()[name])}
    assert changed
    assert all(name.startswith("parts.generators.3.") for name in changed)


def test_the_bound_is_near_the_information_of_gaussians():
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(2000, 1, generator=draw)
    b = 0.8 * a + 0.6 * torch.randn(2000, 1, generator=draw)  # correlation 0.8: -log(1 - 0.64) / 2 = 0.511 nats
    torch.manual_seed(0)
    club = Club(1, 1)
    optimizer = torch.optim.Adam(club.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        club.surprise(a[:500], b[:500]).backward()
        optimizer.step()
    blind = torch.randperm(2000, generator=draw)
    with torch.no_grad():
        assert 0.511 <= club.bound(a, b) < 2.2  # of Gaussians it comes to 0.64 / 0.36 = 1.78
        assert abs(club.bound(a, b[blind])) < 0.2


def test_ids_are_refused():
    pools = [Pool(f"text {number}", torch.ones(4, 6, dtype=torch.long), torch.arange(4) % 2) for number in range(3)]
    learner = copy.deepcopy(_shifted.learner("table"))
    with pytest.raises(AcclimateError, match="rows hold ids"):
        fit(load("domain_adaptation.pond"), learner, Data(pools[:2], pools[2].unlabelled()), Training(steps=1))
