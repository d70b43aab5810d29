"""AdaptGuard: the attack, what is handed over, and how the table follows the student."""

import copy

import pytest
import torch

from acclimate.checks import _shifted
from acclimate.engines.shift import Training, fit
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.parts.attacks import pgd


def test_an_attack_stays_within_radius_and_bounds_and_does_harm():
    learner, x = _shifted.learner("images").eval(), _shifted.images().labelled[0].x

    def loss(rows):
        return torch.nn.functional.cross_entropy(learner(rows), torch.zeros(len(rows)).long(), reduction="none")

    found = pgd(loss, x, 0.1, 7, 2.5 * 0.1 / 7)
    assert (found - x).abs().max() <= 0.1 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert (loss(found) >= loss(x)).all()
    assert (loss(found) > loss(x)).any()
    assert all(weight.grad is None for weight in learner.parameters())
    assert torch.equal(pgd(loss, x, 0.0, 7, 0.0), x)


def test_the_best_iterate_is_kept_row_by_row():
    def loss(a):  # the first row is best after one step, the second after two
        return -(a - torch.tensor([[0.2], [0.4]])).square().sum(1)

    assert pgd(loss, torch.zeros(2, 1), 1.0, 4, 0.2, None).flatten().tolist() == pytest.approx([0.2, 0.4])


def test_rows_outside_the_bounds_stay_where_they_are_allowed_to_be():
    found = pgd(lambda a: a.sum(1), torch.tensor([[1.5, 0.95, -0.5]]), 0.1, 3, 0.1)
    assert found.tolist()[0] == pytest.approx([1.5, 1.0, -0.4])


def test_without_the_source_models_probabilities_nothing_starts():
    learner, data = _shifted.source_model("table")
    with pytest.raises(AcclimateError, match=r"48 target rows.*holds none.*adopt"):
        fit(load("domain_adaptation.adapt_guard"), learner, data, Training(steps=1))


def test_only_probabilities_are_handed_over():
    model, data = _shifted.source_model("table")
    student = _shifted.learner("table", seed=1)
    before = copy.deepcopy(student.state_dict())
    load("domain_adaptation.adapt_guard").adopt(student, model, data.target.x)
    assert list(student.memory) == ["teacher"]
    assert torch.equal(student.memory["teacher"], model.outputs(data.target.x)[1].softmax(1))
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in before.items())


def test_the_table_moves_nine_times_in_a_run_of_ten_shares():
    model, data = _shifted.source_model("table")
    learner, method = _shifted.learner("table", seed=1), load("domain_adaptation.adapt_guard", keep=0.0)
    method.adopt(learner, model, data.target.x)
    first = learner.memory["teacher"]
    fit(method, learner, data, Training(steps=40, batch=24, choose="last"))  # two steps a pass
    assert learner.memory["refreshed"] == 9
    assert not torch.equal(learner.memory["teacher"], first)


def test_the_student_learns_what_the_source_model_says():
    model, data = _shifted.source_model("images")
    learner, method = _shifted.learner("images", seed=1), load("domain_adaptation.adapt_guard", keep=1.0)
    method.adopt(learner, model, data.target.x)
    fit(method, learner, data, Training(steps=60, batch=24, lr=0.01, choose="last"))
    same = learner.outputs(data.target.x)[1].argmax(1) == model.outputs(data.target.x)[1].argmax(1)
    assert same.float().mean() > 0.9
