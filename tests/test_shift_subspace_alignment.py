"""Subspace alignment where one number cannot show it: sources have a map of their own, only the head learns, too few rows."""

import pytest
import torch

from acclimate.checks import _shifted
from acclimate.engines.shift import Data, Learner, Place, Pool, Training, accuracy, fit
from acclimate.errors import AcclimateError
from acclimate.method import load


def turned() -> Data:
    """Classes along the first of 5 columns; the target's columns are in another order, and moved."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(80) % 2

    def rows() -> torch.Tensor:
        x = torch.randn(80, 5, generator=draw) * torch.tensor([0.3, 1.0, 0.1, 0.1, 0.1])
        x[:, 0] += 3.0 * (2.0 * y - 1)
        return x

    order = [1, 0, 2, 3, 4]
    return Data(
        [Pool("source", rows(), y)], Pool("target", rows()[:, order] + 9), [Pool("held", rows(), y)], ["0", "1"],
        oracle=Pool("oracle", rows()[:, order] + 9, y),
    )  # fmt: skip


@pytest.mark.parametrize("classifier", ["linear", "nearest"])
def test_a_turn_is_undone(classifier):
    data, learner = turned(), Learner(torch.nn.Identity(), 2, width=5)
    method = load("domain_adaptation.subspace_alignment", dimension=1, classifier=classifier)
    fit(method, learner, data, Training(steps=60 if classifier == "linear" else 1, lr=0.05, choose="last"))
    source = data.labelled[0]
    assert accuracy(method, learner, source) > 0.95  # by its own map
    scores = method.predict(learner, source.x, learner.place("source"))
    assert not torch.allclose(scores, method.predict(learner, source.x, Place()))
    # the first direction has no sign, so that one dimension is right or wrong for all rows
    assert max(accuracy(method, learner, data.oracle), 1 - accuracy(method, learner, data.oracle)) > 0.95


def test_only_the_head_learns():
    made, data = _shifted.learner("images"), _shifted.images()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    fit(load("domain_adaptation.subspace_alignment", dimension=4), made, data, Training(steps=3, batch=8))
    moved = {name.partition(".")[0] for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"head"}  # running statistics of the network stay as they were, too


def test_too_few_rows():
    data = turned()
    small = Data(data.labelled, data.target.select(range(4)), (), data.classes)
    with pytest.raises(AcclimateError, match="set dimension to 3"):
        fit(load("domain_adaptation.subspace_alignment"), Learner(torch.nn.Identity(), 2, width=5), small, Training(steps=1))
