"""d-Simplex: vertices, the contrast with the old network, where a task starts, networks that arrive, measures over pairs, the gallery."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.checks import _shifted
from acclimate.engines.continual import Memory, class_stream, learn
from acclimate.engines.shift import Batch, Data, Learner, Pool, Training, fit
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.methods.continual.d_simplex import Gallery, contrast, embedded, vertices
from acclimate.parts.continual import average_success, compatibility

TRAINING = Training(steps=30, batch=16, lr=0.01, choose="last", seed=3)


def batch(x, y):
    return Batch(torch.tensor(x).float(), torch.tensor(y), torch.zeros(len(y)), torch.arange(len(y)), [len(y)])


def rows(classes=4, each=12, wide=5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(classes).repeat_interleave(each)
    return Pool("rows", 3 * nn.functional.one_hot(y, wide) + torch.randn(len(y), wide, generator=draw), y)


def network(classes=4, seed=0, hidden=8):
    torch.manual_seed(seed)
    return Learner(nn.Sequential(nn.Linear(5, hidden), nn.ReLU(), nn.Linear(hidden, 6)), classes, width=6)


@pytest.mark.parametrize("count", [2, 5, 1024])
def test_vertices_are_a_regular_simplex(count):
    w = vertices(count).double()
    assert w.shape == (count, count - 1)
    cosines = w @ w.T
    assert cosines.diagonal().numpy() == pytest.approx(1, abs=1e-5)
    assert cosines[~torch.eye(count, dtype=torch.bool)].numpy() == pytest.approx(-1 / (count - 1), abs=1e-5)
    assert w.sum(0).abs().max() < 1e-4


def hoc(old, new, y, mu):
    """Equation 4 in loops."""
    unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (old, new)]
    found = 0.0
    for i, label in enumerate(y):
        others = [np.exp(mu * unit[0][i] @ unit[1][j]) for j in range(len(y)) if y[j] != label]
        found += (-mu * unit[0][i] @ unit[1][i] + (np.log(sum(others)) if others else 0)) / len(y)
    return found


@pytest.mark.parametrize("y", [[0, 1, 1, 2, 0, 2], [1] * 6])
def test_contrast_agrees_with_loops_and_its_gradient_is_finite(y):
    old, new = np.random.default_rng(0).normal(size=(2, 6, 4))
    z = torch.tensor(new, requires_grad=True)
    loss = contrast(torch.tensor(old), z, torch.tensor(y), 10.0)
    assert loss.item() == pytest.approx(hoc(old, new, y, 10.0), rel=1e-9)
    loss.backward()
    assert z.grad.isfinite().all()
    s = 10 * (old / np.linalg.norm(old, axis=1, keepdims=True)) @ (new / np.linalg.norm(new, axis=1, keepdims=True)).T
    told = np.log(np.exp(np.where(np.equal.outer(y, y), 0, s)).sum(1)) - np.diag(s)  # the authors' code
    assert contrast(torch.tensor(old), z, torch.tensor(y), 10.0, ones=True).item() == pytest.approx(told.mean(), rel=1e-9)


def test_step_by_hand_over_new_and_kept_rows_against_the_network_of_the_start():
    draw = np.random.default_rng(1)
    learner = Learner(nn.Identity(), 3, width=3)
    method = load("continual.d_simplex", vertices=5, share=0.3, mu=4.0)
    learner.parts.update(method.build(learner))
    learner.memory["trained"] = True
    method.before(learner, None)
    before = learner.parts["projection"].weight.detach().double().numpy().copy()
    now = draw.normal(size=(4, 3))
    with torch.no_grad():
        learner.parts["projection"].weight.copy_(torch.tensor(now))
    new, kept = draw.normal(size=(4, 3)), draw.normal(size=(3, 3))
    y = [2, 1, 1, 0, 0, 2]
    (loss,) = method.step(learner, batch(new, y[:4]), batch(kept[:2], y[4:]))
    x = np.concatenate([new, kept[:2]]).astype(np.float32).astype(np.float64)
    scores = x @ now.T @ vertices(5).double().numpy().T
    logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    wanted = -0.3 * np.mean([logs[i, 4 - label] for i, label in enumerate(y)]) + 0.7 * hoc(x @ before.T, x @ now.T, y, 4.0)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    assert method.predict(learner, torch.tensor(x[:1]).float())[0].detach().numpy() == pytest.approx(scores[0, [4, 3, 2]], abs=1e-5)


def test_a_network_at_random_has_no_old_one_and_a_pretrained_one_has():
    pool, method = rows(), load("continual.d_simplex", vertices=8)
    tasks, made = class_stream(pool, pool, 2), network()
    starts = []
    before = type(method).before

    class Told(type(method)):
        def before(self, learner, task):
            before(self, learner, task)
            starts.append(learner.memory["old"])

    learn(Told(vertices=8), made, tasks, TRAINING, Memory(per_class=3))
    base = network()
    fit(load("continual.d_simplex", vertices=8, side="start"), base, Data([pool]), TRAINING)
    learn(Told(vertices=8), network(), tasks[:1], TRAINING, Memory(per_class=3), arrivals={0: base})
    assert starts == [False, True, True]


def test_arrivals_take_the_place_and_a_killed_stream_goes_on(tmp_path):
    """The one that arrives is of another shape inside."""
    pool = rows()
    tasks, better = class_stream(pool, pool, 1), network(hidden=20, seed=5)
    fit(load("continual.d_simplex", vertices=8, side="start"), better, Data([rows(seed=9)]), TRAINING)
    frozen = copy.deepcopy(better.state_dict())

    def run(folder=None, dies=0):
        made, method, seen = network(), load("continual.d_simplex", vertices=8), []
        if dies:
            _shifted.killed(method, dies)
        watch = lambda task, learner: seen.append((task.number, learner.featurizer[0].out_features, embedded(learner, pool.x)))  # noqa: E731
        done = learn(method, made, tasks, TRAINING, Memory(per_class=3), arrivals={2: better}, watch=watch, folder=folder)
        return made, done, seen

    whole, told, seen = run()
    assert [(number, hidden) for number, hidden, _ in seen] == [(0, 8), (1, 8), (2, 20), (3, 20)]
    for dies in (100, 20):  # in the last task, and in one before
        folder = tmp_path / str(dies)
        with pytest.raises(KeyboardInterrupt):
            run(folder, dies)
        again, figures, also = run(folder)
        assert figures.matrix == told.matrix
        assert all(torch.equal(one[2], two[2]) for one, two in zip(seen, also, strict=True))
        assert all(torch.equal(one, two) for one, two in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    assert all(torch.equal(frozen[name], value) for name, value in better.state_dict().items())


def test_what_does_not_fit_is_refused():
    pool = rows()
    wide = Learner(nn.Linear(5, 7), 4, width=7)
    with pytest.raises(AcclimateError, match="7 features, but the head takes 6"):
        learn(load("continual.replay"), network(), class_stream(pool, pool, 2), TRAINING, Memory(per_class=3), arrivals={0: wide})
    with pytest.raises(AcclimateError, match="3 vertices for 4 classes"):
        learn(load("continual.d_simplex", vertices=3), network(), class_stream(pool, pool, 2), TRAINING)


def test_measures_over_pairs_agree_with_loops_in_numpy():
    matrix = np.random.default_rng(4).random((6, 6))
    pairs = [(i, j) for i in range(6) for j in range(i)]
    assert compatibility(matrix) == pytest.approx(sum(matrix[i, j] > matrix[j, j] for i, j in pairs) / 15)
    assert average_success(matrix) == pytest.approx(np.mean([matrix[i, j] for i in range(6) for j in range(i + 1)]))
    upper = np.where(np.triu(np.ones((6, 6)), 1) > 0, np.nan, matrix)
    assert compatibility(upper) == compatibility(matrix)
    assert compatibility(np.full((3, 3), 0.5)) == 0  # as good is not compatible
    with pytest.raises(AcclimateError, match="at least two"):
        compatibility([[1.0]])


def test_the_gallery_stays_and_the_contrast_keeps_old_vectors_findable():
    """Trained on with the contrast, features stay nearer to those that were indexed than with the labels alone."""
    pool = rows(each=20)
    tasks, near = class_stream(pool, pool, 2), {}
    for share in (0.1, 1.0):
        indexed, made = [], network()
        watch = lambda task, learner, indexed=indexed: indexed.append(embedded(learner, pool.x))  # noqa: E731
        learn(load("continual.d_simplex", vertices=8, share=share), made, tasks, TRAINING, Memory(per_class=3), watch=watch)
        near[share] = float((indexed[0] * indexed[1]).sum(1).mean())
    assert near[0.1] > near[1.0]
    gallery = Gallery().add(indexed[0][:5], torch.arange(5)).add(indexed[1][5:], torch.arange(5, 80))
    assert gallery.find(indexed[0][2:3], 1).item() == 2
    assert gallery.find(indexed[1], 200).shape == (80, 80)
