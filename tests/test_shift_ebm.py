"""EBM: which labels are contrasted, what is touched, springs, kept rows; streams without borders."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.engines.borderless import learn_borderless, mixed, reservoir
from acclimate.engines.continual import Memory, Task, class_stream, domain_stream, learn
from acclimate.engines.shift import Batch, Learner, Pool, Training
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.parts.continual import final_success


def clusters(seed=0, classes=6, rows=30):
    """Rows of 30 columns that are not negative, around a middle for each class."""
    draw, middle = np.random.default_rng(seed), np.random.default_rng(99).normal(size=(classes, 30))
    y = np.arange(classes * rows) % classes
    x = np.abs(middle[y] + 0.6 * draw.normal(size=(len(y), 30)))
    return Pool("clusters", torch.tensor(x, dtype=torch.float32), torch.tensor(y))


def network(classes=6, width=64):
    torch.manual_seed(0)
    return Learner(nn.Linear(30, width), classes, width=width)


def built(method, classes=4, width=3):
    torch.manual_seed(1)
    learner = Learner(nn.Identity(), classes, width=width)
    learner.sample = torch.zeros(1, width)
    learner.parts.update(method.build(learner))
    return learner


def batch(x, y):
    return Batch(x, torch.tensor(y), torch.zeros(len(y)), torch.arange(len(y)), [len(y)])


def task(*classes):
    return Task("t", clusters(), clusters(), classes)


TRAINING = Training(steps=100, batch=16, lr=0.001, choose="last")
X = torch.tensor(np.random.default_rng(3).normal(size=(40, 3)), dtype=torch.float32)


def touched(method, learner, y, replay=None):
    (loss,) = method.step(learner, batch(X[: len(y)], y), replay)
    loss.backward()
    return (learner.parts["energy"].label.weight.grad.abs().sum(1) > 0).nonzero()[:, 0].tolist()


def test_only_labels_of_the_task_or_the_batch_are_touched():
    rows = [2, 3] * 20
    method = load("continual.ebm")
    learner = built(method)
    method.before(learner, task(0, 1))
    method.before(learner, task(2, 3))
    assert touched(method, learner, rows) == [2, 3]
    assert touched(load("continual.ebm", pool="batch"), built(method), rows) == [2, 3]
    seen = load("continual.ebm", pool="seen")
    learner = built(seen)
    assert touched(seen, learner, [0, 1] * 20) == [0, 1]
    learner.zero_grad()
    assert touched(seen, learner, rows) == [0, 1, 2, 3]


def test_kept_rows_are_contrasted_within_their_own_task():
    method = load("continual.ebm", negatives="all")
    learner = built(method)
    for classes in ((0, 1), (2, 3)):
        method.before(learner, task(*classes))
    (loss,) = method.step(learner, batch(X[:2], [2, 3]), batch(X[2:4], [0, 1]))
    wanted = []
    for row, (y, other) in zip(X, [(2, 3), (3, 2), (0, 1), (1, 0)], strict=False):
        energy = method.energy(learner, row[None], torch.tensor([[y, other]]))[0].tolist()
        wanted.append(math.log1p(math.exp(energy[0] - energy[1])))
    assert loss.item() == pytest.approx(np.mean(wanted), abs=1e-6)


def test_a_row_alone_in_its_batch_teaches_nothing():
    method = load("continual.ebm", pool="batch")
    learner = built(method)
    assert touched(method, learner, [1, 1]) == []


def test_one_label_is_drawn_evenly_from_the_others():
    """The mean over many draws of the contrast is the mean over the other labels."""
    method = load("continual.ebm", pool="batch")
    learner, y = built(method), [0, 1, 2, 3]
    found = []
    for seed in range(400):
        learner.generator.manual_seed(seed)
        found.append(method.contrast(learner, X[:4], torch.tensor(y)).item())
    energy = method.energy(learner, X[:4], torch.arange(4).expand(4, -1)).detach().numpy()
    pairs = [math.log1p(math.exp(energy[row, row] - energy[row, other])) for row in range(4) for other in range(4) if other != row]
    assert np.mean(found) == pytest.approx(np.mean(pairs), abs=4 * np.std(found) / 20)


@pytest.mark.parametrize("where", ["early", "middle", "late"])
def test_places_of_the_gate_by_hand(where):
    method = load("continual.ebm", where=where)
    learner = built(method, classes=2)
    part = learner.parts["energy"]
    x, e, w, b = (v.detach().double().numpy() for v in (X[0], part.label.weight, part.out.weight[0], part.out.bias[0]))
    found = method.energy(learner, X[:1], torch.tensor([[0, 1]]))[0].tolist()
    for c in range(2):
        gated = np.maximum(x * (1 + e[c] / np.linalg.norm(e[c])), 0)
        assert found[c] == pytest.approx(-(np.maximum(x, 0) @ e[c]) if where == "late" else gated @ w + b, abs=1e-5)


def test_old_classes_are_kept_where_a_softmax_forgets_them():
    tasks = class_stream(clusters(), clusters(seed=1), 2)
    plain, ours, seen = (
        final_success(learn(method, network(), tasks, TRAINING).matrix)
        for method in (load("continual.fine_tuning"), load("continual.ebm"), load("continual.ebm", pool="seen"))
    )
    assert ours > plain + 0.15
    assert ours > seen + 0.15
    kept = learn(load("continual.ebm"), network(), tasks, TRAINING, Memory(per_class=3))
    assert final_success(kept.matrix) > 0.9


def test_springs_hold_the_featurizer():
    tasks = class_stream(clusters(), clusters(), 2)
    moved = {}
    for strength in (1e-9, 1e6):
        learner, method = network(), load("continual.ebm", strength=strength)
        learn(method, learner, tasks[:1], TRAINING)
        before, weight = learner.featurizer.weight.detach().clone(), learner.memory["importance"]["featurizer.weight"]
        assert set(learner.memory["importance"]) <= set(dict(learner.named_parameters()))
        learn(method, learner, tasks[1:2], TRAINING)
        moved[strength] = float(((learner.featurizer.weight.detach() - before).abs() * (weight > weight.median())).sum())
    assert moved[1e6] < 0.5 * moved[1e-9]


def test_a_stream_without_borders_passes_over():
    rows = mixed([50, 70, 30], 90, 200, seed=1)
    task = np.searchsorted([50, 120], rows.numpy(), side="right")
    assert set(np.unique(rows)) == set(range(150))
    assert (task[:22] == 0).all()
    assert (task[38:52] == 1).all()
    assert (task[68:] == 2).all()
    shares = (task[23:37] == 1).mean(1)  # 30 steps per task, a quarter on both sides of step 30: from 22.5 to 37.5
    assert shares == pytest.approx((np.arange(23, 37) + 0.5 - 22.5) / 15, abs=0.12)
    assert torch.equal(rows, mixed([50, 70, 30], 90, 200, seed=1))
    assert (np.searchsorted([50], mixed([50, 50], 10, 20, overlap=0.0), side="right") == np.arange(10)[:, None] // 5).all()


def test_a_reservoir_keeps_every_row_with_the_same_chance():
    kept = np.zeros(20)
    for seed in range(300):
        found = reservoir(torch.arange(24).view(6, 4), 5, seed)
        assert (found[0] == -1).all()
        assert (found[1] < 4).all()
        kept += np.bincount(found[5], minlength=20)[:20]
    assert kept / kept.sum() == pytest.approx(1 / 20, abs=0.02)


def test_learning_without_borders(tmp_path):
    tasks = class_stream(clusters(), clusters(seed=1), 2)
    training = Training(steps=300, batch=16, lr=0.001)
    method = load("continual.ebm", pool="batch", layers=2)
    plain = learn_borderless(load("continual.fine_tuning"), network(), tasks, training)
    ours = learn_borderless(method, network(), tasks, training)
    kept = learn_borderless(method, network(), tasks, training, Memory(rows=30), folder=tmp_path)
    assert np.mean(ours) > np.mean(plain) + 0.15
    assert np.mean(kept) > 0.9
    assert learn_borderless(method, network(), tasks, training, Memory(rows=30), folder=tmp_path) == kept  # read from the folder
    with pytest.raises(AcclimateError, match="other settings, data"):
        learn_borderless(method, network(), tasks, training, Memory(rows=29), folder=tmp_path)


def test_methods_that_need_borders_are_refused():
    tasks = domain_stream([(clusters(), clusters())])
    assert not load("continual.replay").borders
    for name, settings in (("ewc", {}), ("lwf", {}), ("ebm", {}), ("ebm", {"pool": "batch", "strength": 1.0})):
        with pytest.raises(AcclimateError, match="must be told where a task ends"):
            learn_borderless(load(f"continual.{name}", **settings), network(), tasks)
    with pytest.raises(AcclimateError, match="drawn at random"):
        learn_borderless(load("continual.replay"), network(), tasks, memory=Memory(per_class=2))
    with pytest.raises(AcclimateError, match="no task"):
        learn_borderless(load("continual.replay"), network(), [])
