"""The continual engine: streams, memories, matrices; EWC and LwF against plain loops."""

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.checks import _shifted
from acclimate.engines.continual import Memory, class_stream, domain_stream, learn
from acclimate.engines.shift import Batch, Learner, Pool, Training
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.parts.continual import backward_transfer, final_success, fisher, forgetting


def clusters(classes=6, rows=20, seed=0):
    """Rows around one corner of a cube for each class."""
    draw = np.random.default_rng(seed)
    y = np.arange(classes * rows) % classes
    corners = np.array([[(c >> bit) & 1 for bit in range(3)] for c in range(classes)])
    x = 4 * corners[y] - 2 + 0.3 * draw.normal(size=(len(y), 3))
    return Pool("cube", torch.tensor(x, dtype=torch.float32), torch.tensor(y))


def network(classes=6):
    torch.manual_seed(0)
    return Learner(nn.Sequential(nn.Linear(3, 32), nn.ReLU()), classes, width=32)


TRAINING = Training(steps=80, batch=16, lr=0.01, choose="last")


def streamed(name, memory=None, tasks=None, **settings):
    learner = network()
    tasks = tasks or class_stream(clusters(), clusters(seed=1), 2)
    return learn(load(f"continual.{name}", **settings), learner, tasks, TRAINING, memory), learner


def test_new_classes_push_out_old_ones_unless_rows_are_kept():
    plain, _ = streamed("fine_tuning")
    kept, _ = streamed("replay", Memory(per_class=3))
    assert final_success(plain.matrix) < 0.8
    assert final_success(kept.matrix) > 0.9
    assert forgetting(plain.matrix) > 0.3 > forgetting(kept.matrix)
    assert backward_transfer(plain.matrix) < -0.3
    assert kept.kept == [6, 12, 18]
    assert plain.kept == [0, 0, 0]


def test_a_total_is_shared_evenly_over_tasks_and_classes():
    found, _ = streamed("replay", Memory(rows=12))
    assert found.kept == [12, 12, 12]
    herded, _ = streamed("replay", Memory(rows=12, choose="herding"))
    assert herded.kept == [12, 12, 12]
    assert final_success(herded.matrix) > 0.9


def test_bad_streams_are_one_line():
    pool = clusters()
    with pytest.raises(AcclimateError, match="no task"):
        learn(load("continual.replay"), network(), [])
    with pytest.raises(AcclimateError, match="class 5, but the learner only 3"):
        learn(load("continual.replay"), network(3), class_stream(pool, pool, 2, order=[4, 5, 0]), TRAINING)
    with pytest.raises(AcclimateError, match="no rows"):
        class_stream(pool, pool, 1, order=[0, 9])

    class Needs(type(load("continual.replay"))):
        def step(self, learner, domains, replay):
            yield learner.loss(learner(replay.x), replay.y)

    with pytest.raises(AcclimateError, match="no memory is kept"):
        learn(Needs(), network(), class_stream(pool, pool, 2), TRAINING)


def test_first_classes_and_an_order_make_the_tasks():
    pool = clusters()
    tasks = class_stream(pool, pool, 2, first=1, order=[3, 1, 0, 2, 5])
    assert [task.classes for task in tasks] == [(3,), (1, 0), (2, 5)]
    assert [task.number for task in tasks] == [0, 1, 2]
    assert set(tasks[1].train.y.tolist()) == {0, 1}
    domains = domain_stream([(each, each) for each in _shifted.table().labelled])
    assert [task.name for task in domains] == ["domain 0", "domain 1", "domain 2"]


def test_fisher_is_the_mean_of_squared_gradients_row_by_row():
    net, pool = network(), clusters(rows=3)
    found = fisher(net, pool.x, pool.y)
    wanted = {name: torch.zeros_like(value) for name, value in net.named_parameters()}
    for x, y in zip(pool.x, pool.y, strict=True):
        net.zero_grad()
        nn.functional.cross_entropy(net(x[None]), y[None]).backward()
        for name, value in net.named_parameters():
            wanted[name] += value.grad**2 / len(pool)
    assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)


def test_springs_hold_what_mattered():
    """On domains that share their classes, stiff springs leave the weights where they were."""
    pools = _shifted.table().labelled
    tasks = domain_stream([(pool, pool) for pool in pools])
    moved = {}
    for strength in (0.0, 1e6):
        learner = _shifted.learner("table")
        training = Training(steps=30, batch=8, lr=0.01, choose="last")
        learn(load("continual.ewc", strength=strength), learner, tasks[:1], training)
        before = {name: value.clone() for name, value in learner.state_dict().items()}
        learn(load("continual.ewc", strength=strength), learner, [tasks[1]], training)
        weight = learner.memory["importance"]["head.weight"]
        moved[strength] = float(((learner.state_dict()["head.weight"] - before["head.weight"]).abs() * (weight > weight.median())).sum())
    assert moved[1e6] < 0.5 * moved[0.0]


def test_old_answers_count_over_the_known_classes_alone():
    learner = Learner(nn.Identity(), 3, width=3, head=nn.Identity())
    method = load("continual.lwf", weight=2.0, temperature=2.0)
    learner.parts["before"] = nn.Sequential(nn.Identity(), nn.Identity())
    learner.memory["known"] = [0, 2]
    x = np.array([[1.0, 5.0, -1.0], [0.5, 0.0, 2.0]])
    batch = Batch(torch.tensor(x), torch.tensor([1, 1]), torch.zeros(2), torch.arange(2), [2])
    (loss,) = method.step(learner, batch)
    soft = np.exp(x[:, [0, 2]] / 2) / np.exp(x[:, [0, 2]] / 2).sum(1, keepdims=True)
    own = -np.log(np.exp(x[:, 1]) / np.exp(x).sum(1)).mean()
    assert float(loss) == pytest.approx(own + 2 * -(soft * np.log(soft)).sum(1).mean(), abs=1e-9)
