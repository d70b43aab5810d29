"""MoDify over several steps: difficulty against the bank, strength, thresholds that move, rows that wait and come back, other bases."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.checks import _shifted
from acclimate.engines.shift import Batch, Learner, Training, fit
from acclimate.errors import AcclimateError
from acclimate.method import load


class Given(nn.Module):
    """Scores that give each row the loss that is written in its first column: log(1 + exp(-score)) = loss."""

    def forward(self, x):
        score = -torch.log(torch.expm1(x.flatten(1)[:, :1]))
        return torch.cat([score, torch.zeros_like(score)], 1)


@pytest.fixture
def made():
    learner = Learner(nn.Identity(), 2, width=2, head=Given())
    learner.anything = nn.Parameter(torch.zeros(1))
    return learner


def batch(values: list[float], rows: list[int]) -> Batch:
    x = torch.tensor(values)[:, None]
    return Batch(x, torch.zeros(len(x), dtype=torch.long), torch.zeros(len(x)), torch.tensor(rows), [len(x)])


def test_rows_are_ranked_by_the_bank_and_not_by_their_loss(made):
    """Ten times the losses everywhere changes nothing."""
    for scale in (0.1, 1.0):
        method = load("domain_generalization.modify", strength="none", t_high_start=0.5, t_low_end=0.5)
        made.progress = 0.5  # postponed above 0.75, dropped below 0.25
        method.begin(made, batch([0.0] * 5, list(range(5))), None)
        made.memory["bank"][:] = scale * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
        method.refresh(made, None, None)
        losses = list(method.step(made, batch([scale * v for v in (1.5, 2.5, 3.5, 4.5)], [0, 1, 2, 3])))  # shares 0.2, 0.4, 0.6, 0.8
        assert [loss.item() for loss in losses] == pytest.approx([scale * 3.0], rel=1e-5)
        moved = scale * np.array([0.9 + 0.15, 1.8 + 0.25, 2.7 + 0.35, 3.6 + 0.45, 5.0])
        assert made.memory["bank"].numpy() == pytest.approx(moved, rel=1e-5)
        assert made.memory["waiting"].tolist() == [False, False, False, True, False]
        shares = {"learned": 2, "dropped": 1, "postponed": 1, "waiting": 0, "difficulty": pytest.approx(2.0)}
        assert made.memory["passes"][-1] == {"step": 0, **shares}


def test_postponed_rows_wait_and_come_back(made):
    method = load("domain_generalization.modify", strength="none", t_high_start=0.5, t_low_end=0.0)
    made.progress = 0.0
    every = batch([1.0, 2.0, 3.0, 4.0], [0, 1, 2, 3])
    method.begin(made, every, None)
    method.refresh(made, every, None)
    assert [loss.item() for loss in method.step(made, every)] == pytest.approx([2.0])  # 0, 1/4, 1/2 are learned from, 3/4 waits
    assert made.memory["waiting"].tolist() == [False, False, False, True]
    easy = batch([1.0, 2.0, 3.0, 0.5], [0, 1, 2, 3])  # it would be easy by now, but the pass goes on
    assert [loss.item() for loss in method.step(made, easy)] == pytest.approx([2.0])
    assert made.memory["passes"][-1]["waiting"] == 1
    method.refresh(made, every, None)  # still hard: the bank holds 1, 2, 3, 3.65
    assert made.memory["waiting"].tolist() == [False, False, False, True]
    made.progress = 0.6  # the threshold rose to 0.8, which lets all but the hardest in: 4.0 is above all entries
    method.refresh(made, every, None)
    assert made.memory["waiting"].tolist() == [False, False, False, True]
    method.refresh(made, easy, None)
    assert not made.memory["waiting"].any()
    assert [loss.item() for loss in method.step(made, easy)] == pytest.approx([6.5 / 4])


def test_thresholds_move():
    method, hard = load("domain_generalization.modify"), torch.tensor([0.05, 0.15, 0.75, 0.95])
    assert method.sorted(hard, 0.0).tolist() == [0, 0, 1, 1]
    assert method.sorted(hard, 0.5).tolist() == [-1, 0, 0, 1]
    assert method.sorted(hard, 1.0).tolist() == [-1, -1, 0, 0]


def test_easy_rows_get_the_strongest_colours(made):
    """The hardest row stays as it is, the easiest has its channels in another order."""
    method = load("domain_generalization.modify")
    x = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)) + 1
    x[:, 0, 0, 0] = torch.tensor([4.0, 1.0, 3.0, 2.0])  # the losses
    every = Batch(x, torch.zeros(4, dtype=torch.long), None, torch.arange(4), [4])
    method.begin(made, every, None)
    made.generator.manual_seed(1)
    found = method._augmented(made, every)
    for row, strength in enumerate([0.25, 1.0, 0.5, 0.75]):
        orders = [(1 - strength) * x[row] + strength * x[row, list(order)] for order in permutations(range(3))]
        assert any(torch.allclose(found[row], each, atol=1e-6) for each in orders)
    assert not torch.allclose(found, x)


@pytest.mark.parametrize(("settings", "changed"), [({"strength": "none"}, False), ({"strength": "uniform"}, True)])
def test_other_strengths(made, settings, changed):
    method = load("domain_generalization.modify", choice=False, **settings)
    x = torch.rand(16, 3, 4, 4)
    found = method._augmented(made, Batch(x, torch.zeros(16, dtype=torch.long), None, torch.arange(16), [16]))
    assert torch.equal(found, x) is not changed
    assert torch.allclose(found.sum(1), x.sum(1), atol=1e-5)  # channels are only mixed


@pytest.mark.parametrize("base", ["erm", "coral", "mixup", "mode", "ccfp"])
def test_other_methods_learn_from_the_rows(base):
    learner, data = _shifted.learner("images"), _shifted.images(False)
    method = load("domain_generalization.modify", base=base)
    before = {name: weight.clone() for name, weight in learner.featurizer.named_parameters()}
    fit(method, learner, data, Training(steps=9, batch=8, choose="last"))
    assert any(not torch.equal(before[name], weight) for name, weight in learner.featurizer.named_parameters())
    passes = learner.memory["passes"]
    assert [each["step"] for each in passes] == [0, 3, 6]  # 24 rows of each domain, 8 in a batch
    assert all(sum(each[kind] for kind in ("learned", "dropped", "postponed", "waiting")) == 72 for each in passes)
    assert passes[0]["postponed"] > 0


def test_bases_that_cannot_be():
    data = _shifted.table(False)
    for base in ("modify", "corall"):
        with pytest.raises(AcclimateError, match="another method"):
            fit(load("domain_generalization.modify", base=base), _shifted.learner("table"), data, Training(steps=1))
