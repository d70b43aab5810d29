"""Incremental self-training: what stays in the buffer, who labels, where a model begins; a stream that turns away from its first labels."""

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.engines.continual import Task, learn
from acclimate.engines.shift import Batch, Learner, Pool, Training
from acclimate.method import load

STEPS = Training(steps=60, batch=32, lr=0.05, optimizer="adam", choose="last")


def turned(number, seed=0, rows=80):
    """Two classes on a line that turns by 25 degrees each period."""
    draw = np.random.default_rng([seed, number])
    y = np.arange(rows) % 2
    angle = np.radians(25 * number)
    x = np.outer(2 * y - 1.0, [np.cos(angle), np.sin(angle)]) + 0.2 * draw.normal(size=(rows, 2))
    return Pool(f"period {number}", torch.tensor(x, dtype=torch.float32), torch.tensor(y))


def network():
    torch.manual_seed(0)
    return Learner(nn.Identity(), 2, width=2)


def followed(periods=6, labelled=(0,), **settings):
    """The learner and the accuracy of each period's model on its period."""
    learner, method, found = network(), load("continual.evolving", **settings), []
    for number in range(periods):
        pool = turned(number)
        task = Task(pool.name, pool if number in labelled else pool.unlabelled(), turned(number, 1), (0, 1), number)
        found.append(learn(method, learner, [task], STEPS).matrix[0][0])
    return learner, found


def test_step_by_step_it_follows_where_one_step_cannot():
    _, ours = followed()
    _, gradual = followed(window=1, anchor=False, restart=False)
    learner, one_shot = followed(teacher="first", window=1, anchor=False)
    last = turned(5, 1)
    static = learner.memory["first"]
    scores = last.x @ static["1.weight"].T + static["1.bias"]
    assert (scores.argmax(1) == last.y).float().mean() < 0.2  # turned by 125 degrees
    assert min(gradual) > 0.95
    assert one_shot[-1] < 0.2
    assert ours[3] > one_shot[-1]


def test_the_buffer_holds_what_the_settings_say():
    for settings, wanted in (
        ({}, [80, 40, 40, 40]),
        ({"window": 1}, [80, 0, 0, 40]),
        ({"window": 2, "anchor": False}, [0, 0, 40, 40]),
        ({"share": 1.0}, [80, 80, 80, 80]),
    ):
        learner, _ = followed(4, **settings)
        assert torch.bincount(learner.memory["period"], minlength=4).tolist() == wanted
    learner, _ = followed(3, labelled=(0, 2))
    own = learner.memory["period"] == 2
    assert torch.equal(learner.memory["y"][own].argmax(1), turned(2).y)  # labels of a later period are taken


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("teacher", ["previous", "first"])
def test_who_labels_and_where_a_model_begins(teacher, restart):
    learner, method = network(), load("continual.evolving", teacher=teacher, restart=restart, soft=True, share=1.0)
    base = {name: value.clone() for name, value in learner.head.state_dict().items()}
    tasks = [Task(p.name, p if not number else p.unlabelled(), p, (0, 1), number) for number, p in enumerate(map(turned, (0, 3, 5)))]
    models = []
    for task in tasks[:2]:
        learn(method, learner, [task], STEPS)
        models.append({name: value.clone() for name, value in learner.head.state_dict().items()})
    method.before(learner, tasks[2])
    by = models[0 if teacher == "first" else 1]
    scores = (tasks[2].train.x @ by["weight"].T + by["bias"]).double().numpy()
    wanted = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert np.allclose(learner.memory["y"][learner.memory["period"] == 2], wanted, atol=1e-5)
    begins = base if restart else models[1]
    assert all(torch.equal(begins[name], value) for name, value in learner.head.state_dict().items())


def test_the_loss_is_cross_entropy_with_what_the_buffer_says():
    learner, method = Learner(nn.Identity(), 2, width=2, head=nn.Identity()), load("continual.evolving")
    learner.memory |= {"x": torch.tensor([[2.0, 0.0]]), "y": torch.tensor([[0.3, 0.7]]), "period": torch.tensor([1])}
    batch = Batch(torch.zeros(4, 2), None, torch.zeros(4), torch.arange(4), [4])
    (loss,) = method.step(learner, target=batch)
    logs = np.log(np.exp([2.0, 0.0]) / np.exp([2.0, 0.0]).sum())
    assert loss.item() == pytest.approx(-(0.3 * logs[0] + 0.7 * logs[1]), abs=1e-6)


def test_balanced_batches_hold_as_many_rows_of_each_period():
    learner, method = Learner(nn.Identity(), 2, width=2, head=nn.Linear(2, 2)), load("continual.evolving", balanced=True)
    x = torch.zeros(100, 2)
    x[90:, 0] = 1.0
    learner.memory |= {"x": x, "y": torch.ones(100, 2) / 2, "period": (torch.arange(100) >= 90).long()}
    seen = []
    learner.head.register_forward_hook(lambda layer, given, out: seen.append(given[0][:, 0].mean()))
    list(method.step(learner, target=Batch(torch.zeros(1000, 2), None, torch.zeros(1000), torch.arange(1000), [1000])))
    assert 0.4 < seen[0] < 0.6
