"""LFTL where the rows of one query cannot show it: the contrast of rounds, the loss and its anchors, mixup, a run that is killed."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from acclimate.checks import _shifted
from acclimate.engines.active import Rounds, learn
from acclimate.engines.shift import Batch, Learner, Training
from acclimate.method import load


def batch(x, y=None, rows=None):
    rows = torch.arange(len(x)) if rows is None else torch.tensor(rows)
    return Batch(torch.tensor(x, dtype=torch.float32), None if y is None else torch.tensor(y), torch.zeros(len(x)), rows, [len(x)])


def softmax(scores):
    shares = np.exp(scores - scores.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def entropy(shares):
    return -(shares * np.log(shares)).sum(1)


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


@pytest.fixture
def made():
    """A linear learner of 3 columns and 4 classes, and its weights in numpy."""
    head = np.random.default_rng(0).normal(size=(4, 3))
    learner = Learner(nn.Identity(), 4, width=3, head=nn.Linear(3, 4, bias=False))
    with torch.no_grad():
        learner.head.weight.copy_(torch.tensor(head))
    return learner, head


def test_the_second_round_contrasts_with_the_first(made):
    learner, head = made
    draw = np.random.default_rng(1)
    x, later = draw.normal(size=(2, 9, 3))
    method = load("active_learning.lftl", contrast=0.8, rare=0.3, surest=4)
    gone = method.query(learner, batch(x), 2).tolist()
    rest = [row for row in range(9) if row not in gone]
    found = method.query(learner, batch(later[rest], rows=rest), 7).tolist()
    p, q = softmax(later[rest] @ head.T), softmax(x[rest] @ head.T)
    ordered = np.sort(p + 0.8 * (p - q), 1)
    margin, label = ordered[:, -1] - ordered[:, -2], p.argmax(1)
    count = np.bincount(label[np.argsort(-margin)[:4]], minlength=4)
    assert found == np.argsort(margin / margin.max() + 0.3 * (count / count.max())[label]).tolist()
    assert found != np.argsort(-np.sort(-p, 1)[:, 0]).tolist()


def test_loss_and_anchors_by_hand(made):
    learner, head = made
    draw = np.random.default_rng(2)
    target, asked = draw.normal(size=(6, 3)), draw.normal(size=(3, 3))
    y, rows, method = [3, 0, 2], [7, 2, 8], load("active_learning.lftl", inform=0.9, persist=2.0, alpha=0.0)
    seen = batch(target, rows=[0, 1, 3, 4, 5, 6])
    method.refresh(learner, None, seen, batch(asked, y, rows))
    assert learner.memory["anchors"][rows].numpy() == pytest.approx(0.9 * asked, abs=1e-6)  # from 0, nine tenths are new
    moved = asked[1:] + 1.0
    (loss,) = method.step(learner, seen, batch(moved, y[1:], rows[1:]))
    anchors = np.concatenate([0.9 * asked[:1], 0.1 * 0.9 * asked[1:] + 0.9 * moved])
    p, own = softmax(target @ head.T), softmax(moved @ head.T)
    inform = entropy(p).mean() - entropy(p.mean(0, keepdims=True))[0]
    persist = entropy(softmax(unit(target) @ unit(anchors).T)).mean()
    wanted = -np.log(own[[0, 1], y[1:]]).mean() + 0.9 * inform + 2.0 * persist
    assert loss.item() == pytest.approx(wanted, abs=1e-5)
    assert learner.memory["anchors"][rows].numpy() == pytest.approx(anchors, abs=1e-6)
    method.refresh(learner, None, seen, batch(asked, y, rows))  # the next pass moves all of them again
    assert learner.memory["anchors"][rows].numpy() == pytest.approx(0.1 * anchors + 0.9 * asked, abs=1e-6)


def test_anchors_carry_no_gradient(made):
    learner, _ = made
    asked = batch([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [0, 1], [0, 1])
    target = batch([[1.0, 2.0, 0.5]], rows=[2])
    asked.x.requires_grad_()
    method = load("active_learning.lftl", inform=0.0, persist=5.0, alpha=0.0)
    method.refresh(learner, None, target, batch([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [0, 1], [0, 1]))
    (loss,) = method.step(learner, target, asked)
    (found,) = torch.autograd.grad(loss, asked.x)
    (plain,) = torch.autograd.grad(cross_entropy(learner.head(asked.x), asked.y), asked.x)
    assert torch.allclose(found, plain)


def test_mixup_follows_each_pass_over_the_target(made):
    learner, _ = made
    method = load("active_learning.lftl")
    target, asked = batch(np.ones((6, 3)), rows=range(3, 9)), batch(np.eye(3), [0, 1, 2], [0, 1, 2])
    counts = []
    for step in range(6):
        if step % 3 == 0:
            method.refresh(learner, None, target, asked)
        counts.append(len(list(method.step(learner, batch(np.ones((2, 3)), rows=[3, 4]), asked))))
    assert counts == [1, 1, 4, 1, 1, 4]  # 3 steps of 3 labelled rows: 3 batches of mixtures


def test_mixtures_are_of_labelled_rows_in_shares_of_at_least_a_half():
    seen = []
    learner = Learner(nn.Identity(), 3, width=3, head=nn.Identity())
    learner.featurizer.register_forward_hook(lambda _module, given, _out: seen.append(given[0]))
    given = {"x": torch.eye(3), "y": torch.arange(3), "rows": torch.arange(3)}  # so that a mixture is its own soft label
    losses = list(load("active_learning.lftl").mixed(learner, given, 300, 30))
    assert [len(x) for x in seen] == [30] * 10
    for x, loss in zip(seen, losses, strict=True):
        assert loss.item() == pytest.approx(entropy_of(x, softmax(x.numpy())), abs=1e-5)
    shares = torch.cat(seen).amax(1)
    assert shares.min() >= 0.5
    assert len(shares.unique()) > 100
    assert torch.cat(seen).sum(0).std() < 20  # the first of each pair comes equally often


def entropy_of(labels, shares):
    return float(-(labels.numpy() * np.log(shares)).sum(1).mean())


def test_rounds_make_the_target_right_and_survive_a_kill(tmp_path):
    def run(folder=None, dies=0):
        learner, data = _shifted.source_model("table")
        method = load("active_learning.lftl", surest=10, persist=1.0)
        if dies:
            _shifted.killed(method, dies)
        training = Training(**{**method.training, "steps": 40, "batch": 8, "target_batch": 8, "lr": 0.01, "rates": None})
        plan = Rounds(rounds=3, share=0.1, warm=False)
        done = learn(method, learner, data, _shifted.table().oracle, plan, training, folder=folder)
        return done, learner

    done, whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, dies=70)
    again, resumed = run(tmp_path)
    assert done.rows == again.rows
    assert all(torch.equal(one, two) for one, two in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))
    assert len({row for rows in done.rows for row in rows}) == 15
    assert done.accuracy[-1] > done.accuracy[0]
