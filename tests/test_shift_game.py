"""The solver of adversarial games: its steps by hand, what it costs, and the theory on quadratic games."""

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.checks import _shifted
from acclimate.engines.shift import Learner, Training, fit
from acclimate.engines.shift.games import RungeKutta
from acclimate.method import load
from acclimate.parts.games import growth, largest_rate, quadratic_game
from acclimate.parts.heads import reverse

GAME = quadratic_game(np.diag([0.1, 0.3]), np.array([[1.0, 0.5], [0.0, 2.0]]), np.diag([0.2, 0.1]))


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("share", [0.9, 1.1])
def test_a_quadratic_game_settles_below_the_largest_rate_and_not_above(order, share):
    rate = share * largest_rate(GAME, order)
    players = torch.ones(4, dtype=torch.float64, requires_grad=True)
    optimizer = RungeKutta([players], lr=rate, order=order)
    field = torch.from_numpy(GAME)

    def closure():
        players.grad = -(field @ players.detach())

    for _ in range(400):
        optimizer.step(closure)
    reached = players.detach().norm().item()
    assert reached < 1e-2 if share < 1 else reached > 1e2
    assert (growth(GAME, rate, order) < 1) == (share < 1)


def test_order_one_is_gradient_descent():
    values = np.linalg.eigvals(GAME)
    assert largest_rate(GAME, 1) == pytest.approx((-2 * values.real / np.abs(values) ** 2).min(), rel=1e-6)
    assert largest_rate(GAME, 1) < largest_rate(GAME, 2) < largest_rate(GAME, 4)
    assert largest_rate(np.array([[0.0, -1.0], [1.0, 0.0]]), 1) == 0.0


@pytest.mark.parametrize("order", [2, 4])
def test_a_step_of_the_three_players_by_hand(order):
    """Encoder, head and domain head of one weight each, squared losses, written out in numpy."""
    start, rate, strength = np.array([0.5, -0.3, 0.8]), 0.2, 0.7
    w1, w2, w3 = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in start)  # encoder, head, domain head
    optimizer = RungeKutta([w1, w2, w3], lr=rate, order=order)

    def closure():
        for w in (w1, w2, w3):
            w.grad = None
        ((w2 * w1 - 1) ** 2 + (w3 * reverse(w1, strength) - 2) ** 2).sum().backward()

    def field(w):
        class_error, domain_error = 2 * (w[1] * w[0] - 1), 2 * (w[2] * w[0] - 2)
        return -np.array([class_error * w[1] - strength * domain_error * w[2], class_error * w[0], domain_error * w[0]])

    k1 = field(start)
    if order == 2:
        expected = start + rate / 2 * (k1 + field(start + rate * k1))
    else:
        k2 = field(start + rate / 2 * k1)
        k3 = field(start + rate / 2 * k2)
        expected = start + rate / 6 * (k1 + 2 * k2 + 2 * k3 + field(start + rate * k3))
    optimizer.step(closure)
    assert [w.item() for w in (w1, w2, w3)] == pytest.approx(list(expected), rel=1e-12)


@pytest.mark.parametrize("order", [2, 4])
def test_stages_share_batch_and_dropout_and_move_statistics_once(order):
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    learner = Learner(net, ["no", "yes"], width=8, dropout=0.5)
    method = load("domain_adaptation.game", hidden=(4,))
    seen = []
    step = method.step

    def watched(**words):
        state = torch.random.get_rng_state()
        mask = learner.dropout(torch.ones(64))
        torch.random.set_rng_state(state)
        seen.append((words["source"].rows.tolist(), mask.tolist()))
        yield from step(**words)

    method.step = watched
    done = fit(method, learner, _shifted.table(), Training(steps=2, batch=4, optimizer=f"rk{order}", lr=0.01, looks=1))
    assert done.plays == 2 * order
    assert seen[:order] == [seen[0]] * order
    assert seen[order] != seen[0]
    assert int(net[1].num_batches_tracked) == 2 * 2  # source and target, once a step each
