"""ITTA's learned agreement: both losses and the gap between standardised gradients against numpy and differences, who learns when."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.engines.online import Online
from acclimate.engines.shift import Batch, Learner, Training
from acclimate.method import load
from acclimate.models.convnet import ConvNet

ROWS, WIDTH, CLASSES = 2, 3, 2


def made(draw: np.random.Generator, **settings: object) -> tuple[Learner, object, Batch]:
    """A linear featurizer on vectors; each row meets the other one half way, or itself."""
    learner = Learner(nn.Linear(4, WIDTH, bias=False), CLASSES, width=WIDTH).double()
    batch = Batch(torch.from_numpy(draw.normal(size=(ROWS, 4))), torch.tensor([0, 1]), torch.zeros(ROWS), torch.arange(ROWS), [ROWS])
    learner.sample = batch.x[:1]
    method = load("test_time.itta", depth=2, alpha=1e9, **settings)
    learner.parts.update({name: part.double() for name, part in method.build(learner).items()})
    agreement = learner.parts["agreement"]
    with torch.no_grad():
        agreement.scale.copy_(torch.from_numpy(draw.normal(1, 0.3, (2, WIDTH))))
        agreement.shift.copy_(torch.from_numpy(draw.normal(0, 0.3, (2, WIDTH))))
    return learner, method, batch


def by_hand(w: np.ndarray, x: np.ndarray, learner: Learner, style: tuple) -> tuple[float, float]:
    """Task and agreement, the statistics (mean, deviation, mixed mean, mixed deviation) [row, 1] being constants."""
    head, bias = (v.detach().numpy() for v in (learner.head.weight, learner.head.bias))
    scale, shift = (v.detach().numpy() for v in (learner.parts["agreement"].scale, learner.parts["agreement"].shift))
    mean, deviation, mixed, spread = style
    z = x @ w.T
    other = (z - mean) / deviation * spread + mixed
    task = 0.0
    for view in (z, other):
        for row, label in enumerate((0, 1)):
            scores = head @ view[row] + bias
            task += (np.log(np.exp(scores).sum()) - scores[label]) / ROWS
    value = scale[1] * np.maximum(scale[0] * (other - z) + shift[0], 0) + shift[1]
    return task, float((value**2).mean())


def slopes(w: np.ndarray, *given: object) -> tuple[np.ndarray, np.ndarray]:
    """Standardised gradients of task and agreement, by central differences."""
    found = np.zeros((2, w.size))
    for place in range(w.size):
        step = np.zeros(w.size)
        step[place] = 1e-6
        up, down = by_hand(w + step.reshape(w.shape), *given), by_hand(w - step.reshape(w.shape), *given)
        found[:, place] = (np.array(up) - np.array(down)) / 2e-6
    return tuple((g - g.mean()) / g.std(ddof=1) for g in found)


def test_the_step_learns_task_and_agreement_then_aligns_their_gradients() -> None:
    learner, method, batch = made(np.random.default_rng(3))
    found = []
    for seed in range(20):  # among them one with which both passes meet the other row
        learner.generator.manual_seed(seed)
        (first, who), (gap, then) = method.step(learner, batch)
        assert (who, then) == (("featurizer", "head"), "agreement")
        found.append([first.item(), gap.item()])
    w, x = learner.featurizer.weight.detach().numpy(), batch.x.numpy()
    z = x @ w.T
    mean, deviation = z.mean(1, keepdims=True), np.sqrt(z.var(1, keepdims=True) + 1e-6)
    style = (mean, deviation, (mean + mean[::-1]) / 2, (deviation + deviation[::-1]) / 2)
    main, own = slopes(w, x, learner, style)
    expected = [sum(by_hand(w, x, learner, style)), 0.1 * ((own - main) ** 2).mean()]
    assert min(np.abs(np.array(found) - expected).max(1)) < 1e-5


def test_only_w_learns_to_align_and_the_task_teaches_nothing_through_it() -> None:
    learner, method, batch = made(np.random.default_rng(4))
    *_, (gap, _) = method.step(learner, batch)
    assert all(g is not None and g.abs().sum() > 0 for g in torch.autograd.grad(gap, list(learner.parts["agreement"].parameters())))


@pytest.mark.parametrize("players", ["added", "norms"])
def test_at_test_time_nothing_but_the_players_moves_and_learning_goes_on(players: str) -> None:
    torch.manual_seed(0)
    learner = Learner(ConvNet(4, 1), 3)
    learner.sample = torch.zeros(1, 1, 16, 16)
    method = load("test_time.itta", players=players, weight=1.0)
    online = Online(method, learner, Training(lr=1e-3))
    assert [part.scale.shape[1:] for part in learner.parts["added"]] == [(4, 8, 8), (4, 8, 8), (8, 4, 4), (16, 2, 2)]
    before = copy.deepcopy(learner.state_dict())
    rows = torch.rand(8, 1, 16, 16)
    first, again = online.predict(rows), online.predict(rows)
    moved = {name for name, value in learner.state_dict().items() if not torch.equal(value, before[name])}
    norms = {id(weight) for weight in learner.weights("norms")}
    allowed = {name for name, weight in learner.named_parameters() if (id(weight) in norms if players == "norms" else "added" in name)}
    assert moved
    assert moved <= allowed
    assert not torch.equal(first, again)


def test_layers_that_were_not_trained_leave_the_prediction_as_it_is() -> None:
    torch.manual_seed(0)
    learner = Learner(ConvNet(4, 1), 3).eval()
    learner.sample = torch.zeros(1, 1, 16, 16)
    rows = torch.rand(4, 1, 16, 16)
    plain = learner(rows)
    assert torch.allclose(Online(load("test_time.itta", steps=0), learner).predict(rows), plain, atol=1e-6)
