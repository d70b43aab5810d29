"""MODE on images: the search by hand with numpy's Fourier transform, modes of the network, variant A's two parts of a run."""

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.checks import _shifted
from acclimate.engines.shift import Batch, Learner, Training, fit
from acclimate.method import load


def losses(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    scores = scores - scores.max(1, keepdims=True)
    return np.log(np.exp(scores).sum(1)) - scores[np.arange(len(y)), y]


def test_search_over_amplitudes_by_hand():
    """Two domains of one row each, so that it is known which styles are drawn."""
    draw = np.random.default_rng(0)
    x, y = draw.random((2, 2, 4, 5)), np.array([1, 0])
    weight = draw.normal(size=(2, 40))
    amplitude, phase = (part(np.fft.fft2(x)) for part in (np.abs, np.angle))
    styles = np.stack([amplitude, np.stack([amplitude[0]] * 2), np.stack([amplitude[1]] * 2)], 1)  # [row, style, ...]

    def rendered(a: np.ndarray) -> np.ndarray:
        mixed = np.einsum("rm,rmchw->rchw", a / a.sum(1, keepdims=True), styles)
        return np.real(np.fft.ifft2((0.3 * amplitude + 0.7 * mixed) * np.exp(1j * phase)))

    def of(a: np.ndarray) -> np.ndarray:
        return losses(rendered(a).reshape(2, -1) @ weight.T, y)

    a, seen, small = np.full((2, 3), 1 / 3), [], 1e-6
    for _ in range(4):
        slopes = np.zeros_like(a)
        seen.append(of(a).mean())
        for style in range(3):
            high, low = (a + step * np.eye(3)[style] for step in (small, -small))
            slopes[:, style] = of(high) - of(low)
        a = np.clip(a + 0.1 * np.sign(slopes), 0, 1)

    head = nn.Linear(40, 2, bias=False)
    learner = Learner(nn.Flatten(), 2, width=40, head=head).double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor(weight))
    batch = Batch(torch.tensor(x), torch.tensor(y), torch.tensor([0, 1]), torch.arange(2), [1, 1])
    method = load("domain_generalization.mode", num_mix=3, steps=4, mu=0.1, gamma=0.7)
    found, weights, told = method.explore(learner, batch)
    assert found.numpy() == pytest.approx(rendered(a), abs=1e-5)
    assert weights.numpy() == pytest.approx(a / a.sum(1, keepdims=True), abs=1e-6)
    assert told == pytest.approx(seen, rel=1e-5)
    assert told[-1] > told[0]
    assert abs(np.angle(np.fft.fft2(found.numpy()))[:, :, 1, 1] - phase[:, :, 1, 1]).max() < 1e-4  # the content stays


@pytest.mark.parametrize("settings", [{}, {"variant": "A", "drawing": 0.0}])
def test_without_steps_styles_are_mixed_evenly_and_nothing_is_searched(settings):
    data, learner = _shifted.images(), _shifted.learner("images")
    learner.sample = data.labelled[0].x[:1]
    method = load("domain_generalization.mode", steps=0, **settings)
    learner.parts.update(method.build(learner))
    pool = data.labelled[0]
    _, weights, told = method.explore(learner, Batch(pool.x, pool.y, None, None, [24]))
    assert (weights == 0.25).all()
    assert told == []


def test_the_search_evaluates_and_the_update_trains():
    modes = []

    class Watched(nn.Identity):
        def forward(self, x):
            modes.append((self.training, len(x)))
            return x

    learner = _shifted.learner("images")
    learner.featurizer = nn.Sequential(Watched(), learner.featurizer)
    fit(load("domain_generalization.mode", steps=3), learner, _shifted.images(False), Training(steps=2, batch=4, choose="last"))
    assert modes == 2 * ([(False, 12)] * 3 + [(True, 24)])
    assert {int(m.num_batches_tracked) for m in learner.modules() if isinstance(m, nn.BatchNorm2d)} == {2}
    assert learner.memory["explored"]["weights"].shape == (12, 4)
    assert learner.parts.keys() == set()


def test_others_are_one_of_each_domain_or_any():
    batch = Batch(torch.zeros(40, 1), None, None, None, [10, 10, 20])
    draw = torch.Generator().manual_seed(0)
    by_domain = load("domain_generalization.mode", num_mix=4)._others(batch, draw)
    assert [(int(rows.min()) // 10, int(rows.max()) // 10) for rows in by_domain] == [(0, 0), (1, 1), (2, 3)]
    anybody = load("domain_generalization.mode", num_mix=3)._others(batch, draw)
    assert anybody.shape == (2, 40)
    assert anybody.max() > 30 > 10 > anybody.min()


def test_variant_a_learns_to_draw_first_and_explores_then():
    data, start = _shifted.images(False), {}
    for drawing, steps in ((1.0, 150), (0.5, 8)):
        learner = _shifted.learner("images")
        method = load("domain_generalization.mode", variant="A", steps=2, drawing=drawing)
        fit(method, learner, data, Training(steps=steps, batch=8, lr=1e-2, choose="last"))
        if drawing == 1.0:  # it can draw, and never explored
            x = data.labelled[0].x
            drawn = method._decoded(learner, learner.parts["encoder"](x), x)
            assert drawn.shape == x.shape
            assert (drawn - x).square().mean() < 0.5 * x.var()
            assert "explored" not in learner.memory
        else:  # what was learned in the first half stays in the second
            start = {name: weight.clone() for name, weight in learner.parts.state_dict().items()}
            assert len(learner.memory["explored"]["losses"]) == 2
            half = _shifted.learner("images")
            fit(
                load("domain_generalization.mode", variant="A", drawing=1.0), half, data, Training(steps=4, batch=8, lr=1e-2, choose="last")
            )
            assert all(torch.allclose(weight, start[name]) for name, weight in half.parts.state_dict().items())


def test_parts_that_were_trained_elsewhere_are_used_as_they_are():
    data, learner = _shifted.images(False), _shifted.learner("images")
    learner.parts.update({"encoder": nn.Conv2d(1, 4, 3, 1, 1), "decoder": nn.Conv2d(4, 1, 3, 1, 1)})
    before = {name: weight.clone() for name, weight in learner.parts.state_dict().items()}
    fit(load("domain_generalization.mode", variant="A", steps=1, drawing=0.0), learner, data, Training(steps=3, batch=4, choose="last"))
    assert all(torch.equal(weight, before[name]) for name, weight in learner.parts.state_dict().items())
