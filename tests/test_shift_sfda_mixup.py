"""Mixing with generic translations in both phases: edges, the translator, the view of a learner, NRC's neighbours, source models."""

import copy
from functools import cache

import pytest
import torch
from torch import nn

from acclimate.checks import _shifted
from acclimate.engines.shift import Learner, Training, accuracy, fit
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.methods.domain_adaptation.nrc import neighbours
from acclimate.parts.generic import Mixed, edges

TRAINING = {"steps": 200, "batch": 24, "target_batch": 24, "looks": 1, "choose": "last"}


def test_edges_keep_lines_and_drop_colour():
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(2, 1, 16, 16, generator=draw).expand(-1, 3, -1, -1)
    found = edges(x)
    assert found.shape == x.shape
    assert found.amin((1, 2, 3)).tolist() == [0, 0]  # the strongest line is black
    assert torch.allclose(found, edges(0.3 * x + 0.5), atol=1e-4)  # light and contrast are gone
    assert (edges(torch.full((1, 3, 8, 8), 0.4)) > 0.999).all()  # without lines all is white
    with pytest.raises(AcclimateError, match="feature level"):
        edges(torch.zeros(2, 4))


def test_a_share_of_one_is_the_learner_itself_and_zero_the_translation():
    learner = _shifted.learner("images")
    x = _shifted.images().labelled[0].x[:4]
    assert torch.equal(Mixed(learner.eval(), "input", 1.0)(x), learner(x))
    assert torch.equal(Mixed(learner, "input", 0.0)(x), learner(edges(x)))
    learner.parts["translator"] = nn.Linear(learner.width, learner.width)
    z = learner.features(x)
    assert torch.equal(Mixed(learner, "feature", 0.0)(x), learner.head(learner.parts["translator"](z)))
    assert torch.equal(Mixed(learner, "feature", 0.25).outputs(x)[0], 0.25 * z + 0.75 * learner.parts["translator"](z))


@cache
def sold(level):
    """What the vendor of a level makes of images."""
    learner = _shifted.learner("images")
    fit(load("domain_adaptation.sfda_mixup", level=level, share=0.6).vendor(), learner, _shifted.images(), Training(**TRAINING, lr=0.003))
    return learner


@pytest.mark.parametrize("base", ["shot", "nrc"])
@pytest.mark.parametrize("level", ["feature", "input"])
def test_both_phases(level, base):
    method = load("domain_adaptation.sfda_mixup", level=level, base=base, share=0.6)
    vendor, data, learner = method.vendor(), _shifted.images(), copy.deepcopy(sold(level))
    assert (vendor.level, vendor.share) == (level, 0.6)
    frozen = {name: value.clone() for name, value in learner.state_dict().items() if not name.startswith("featurizer")}
    assert sum(accuracy(vendor, learner, pool) for pool in data.labelled) / 3 > 0.9
    fit(method, learner, data, Training(**{**TRAINING, "steps": 20}, optimizer="adam", lr=0.001))
    kept = [name for name, value in frozen.items() if torch.equal(value, learner.state_dict()[name])]
    assert set(frozen) - set(kept) == ({"head.weight", "head.bias"} if base == "nrc" else set())  # SHOT's head and the translator stay


def test_the_translator_hides_the_pseudo_domain():
    learner, data = _shifted.learner("table"), _shifted.table(target=False)
    vendor = load("domain_generalization.self_mixup", strength=1.0)
    fit(vendor, learner, data, Training(**TRAINING, optimizer="adam", lr=0.003))
    assert learner.memory["times"][0].tolist() == [1] * 4  # rows as they are, among the pseudo-domains
    assert learner.memory["plus"][0].tolist() == [0] * 4
    z = torch.cat([pool.x for pool in data.labelled])
    moved = learner.parts["translator"](learner.features(z)) - learner.features(z)
    assert moved.abs().max() > 0.01


def test_without_a_translator_the_base_method_is_left():
    (one, data), (two, _) = _shifted.source_model("table"), _shifted.source_model("table")
    given = Training(**{**load("domain_adaptation.shot").training, "steps": 5, "batch": 8})
    fit(load("domain_adaptation.shot"), one, data, given)
    fit(load("domain_adaptation.sfda_mixup"), two, data, given)
    for name, value in one.state_dict().items():
        assert torch.allclose(value, two.state_dict()[name], atol=1e-6)


def test_neighbours_are_other_rows():
    bank = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]))
    assert neighbours(bank, torch.tensor([0, 2]), 1).tolist() == [[1], [1]]
    assert neighbours(bank, torch.tensor([0]), 9).shape == (1, 2)  # no more than there are


def test_a_learner_is_left_as_it_was_by_its_view():
    learner = Learner(nn.Linear(3, 2), 2, width=2)
    view = Mixed(learner, "input", 0.5)
    assert view.classes == 2
    assert view.memory is learner.memory
