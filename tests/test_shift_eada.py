"""EADA where the rows of a query cannot show it: the loss, the running mean and its gradient, rounds on a shifted toy."""

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.checks import _shifted
from acclimate.engines.active import Rounds, learn
from acclimate.engines.shift import Batch, Learner, Training
from acclimate.method import load


def batch(x, y=None):
    rows = torch.tensor(x, dtype=torch.float32)
    return Batch(rows, None if y is None else torch.tensor(y), torch.zeros(len(x)), torch.arange(len(x)), [len(x)])


def free(scores: np.ndarray, beta: float) -> np.ndarray:
    return -np.log(np.exp(beta * scores).sum(1)) / beta


@pytest.mark.parametrize("align", ["hinge", "l1", "mse"])
@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_the_loss_by_hand(align, beta):
    draw = np.random.default_rng(0)
    source, target, asked, head = (draw.normal(size=size) for size in ((6, 3), (5, 3), (2, 3), (4, 3)))
    y, own = draw.integers(4, size=6), draw.integers(4, size=2)
    learner = Learner(nn.Identity(), 4, width=3, head=nn.Linear(3, 4, bias=False))
    with torch.no_grad():
        learner.head.weight.copy_(torch.tensor(head))
    method = load("active_learning.eada", beta=beta, align=align, keep=0.9, weight=0.3)
    learner.memory["bound"] = torch.tensor(-1.0)
    (found,) = method.step(learner, batch(source, y), batch(target), batch(asked, own))

    def likelihood(x, labels):
        scores = x @ head.T
        return (-scores[np.arange(len(x)), labels] - free(scores, beta)).mean()

    bound = 0.9 * -1.0 + 0.1 * free(source @ head.T, beta).mean()
    gap = free(target @ head.T, beta) - bound
    assert (gap > 0).any()
    assert (gap < 0).any()
    above = {"hinge": np.maximum(gap, 0), "l1": np.abs(gap), "mse": gap**2}[align].mean()
    assert found.item() == pytest.approx(likelihood(source, y) + 0.3 * above + likelihood(asked, own), abs=1e-5)
    assert learner.memory["bound"].item() == pytest.approx(bound, abs=1e-5)
    if beta == 1:
        scores = torch.tensor(source @ head.T)
        assert likelihood(source, y) == pytest.approx(nn.functional.cross_entropy(scores, torch.tensor(y)).item())


def test_only_target_energies_above_the_mean_move_and_the_mean_carries_no_gradient():
    learner = Learner(nn.Identity(), 2, width=2, head=nn.Identity())
    source = torch.tensor([[2.0, 0.0], [0.0, 2.0]], requires_grad=True)
    target = torch.tensor([[9.0, 0.0], [0.0, 0.0]], requires_grad=True)  # free energies -9 and -log 2; the source's is -2.13
    heavy = load("active_learning.eada", weight=1.0)
    rows = torch.arange(2)
    one, two = (Batch(x, y, rows, rows, [2]) for x, y in ((source, rows), (target, None)))
    (loss,) = heavy.step(learner, one, two)
    loss.backward()
    assert target.grad[0].tolist() == [0, 0]
    assert target.grad[1].tolist() == pytest.approx([-0.25, -0.25])  # scores rise, so energies fall
    with_target = source.grad.clone()
    source.grad = None
    (plain,) = load("active_learning.eada", weight=0.0).step(learner, one, two)
    plain.backward()
    assert torch.equal(source.grad, with_target)
    assert learner.memory["bound"].item() == pytest.approx(-np.log(np.exp(2) + 1))


def test_the_share_of_the_mean_is_drawn_between_nothing_and_all():
    learner, method = Learner(nn.Identity(), 2, width=2), load("active_learning.eada")
    seen = []
    for _ in range(200):
        learner.memory["bound"] = torch.tensor(1.0)
        seen.append(method.bound(learner, torch.tensor(0.0)).item())
    assert min(seen) >= 0
    assert max(seen) <= 1
    assert 0.4 < np.mean(seen) < 0.6
    assert np.std(seen) == pytest.approx(12**-0.5, abs=0.05)


def test_the_first_step_of_the_selection_counts_rows_that_were_asked_for_before():
    learner = Learner(nn.Identity(), 2, width=2, head=nn.Identity())
    x = [[4.0, 0.0], [3.0, 2.9], [1.0, 0.0], [0.5, 0.3]]  # free energies rise from row to row
    method = load("active_learning.eada", first=0.5)
    assert method.query(learner, batch(x), 1).tolist() == [3]
    assert method.query(learner, batch(x), 1, batch(x[:2])).tolist() == [1]  # 3 of 6 rows


def test_rounds_make_the_target_right():
    learner, _data = _shifted.source_model("table")
    oracle = _shifted.table().oracle
    method = load("active_learning.eada")
    training = Training(**{**method.training, "steps": 60, "batch": 8, "lr": 1.0, "rates": None})
    done = learn(method, learner, _shifted.table(), oracle, Rounds(rounds=3, share=0.1, warm=False), training)
    assert len({row for rows in done.rows for row in rows}) == 15
    assert done.accuracy[-1] > done.accuracy[0]
