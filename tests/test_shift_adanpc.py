"""AdaNPC: the loss of training by hand, the queue, what joins the memory and leaves it, the variant that learns, the choice of settings."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.checks import _shifted
from acclimate.engines.online import Online, chosen
from acclimate.engines.shift import Batch, Learner, Training, fit
from acclimate.errors import AcclimateError
from acclimate.method import load


def batch(x: np.ndarray, y: np.ndarray) -> Batch:
    return Batch(torch.tensor(x), torch.tensor(y), torch.zeros(len(x)), torch.arange(len(x)), [len(x)])


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_loss_of_votes_by_hand_and_the_queue_moves_on(progress):
    draw = np.random.default_rng(0)
    held, x, labels, y = draw.normal(size=(9, 3)), draw.normal(size=(4, 3)), np.arange(9) % 3, np.array([0, 1, 2, 0])
    learner, method = Learner(nn.Identity(), 3, width=3).double(), load("test_time.adanpc", queue=9, k_train=4)
    learner.progress = progress
    method.begin(learner, batch(held, labels), None)
    (loss,) = method.step(learner, batch(x, y))
    wanted = []
    for row, label in zip(unit(x), y, strict=True):
        near = sorted(zip(unit(held) @ row, labels, strict=True), reverse=True)[:4]
        weight = [np.exp(cosine / (1 - 0.9 * progress)) for cosine, _ in near]
        share = sum(w for w, (_, of) in zip(weight, near, strict=True) if of == label) / sum(weight)
        wanted.append(-np.log(min(share + 1e-5, 1)))
    assert loss.item() == pytest.approx(np.mean(wanted), abs=1e-9)
    memory = learner.memory["memory"]
    assert len(memory["z"]) == 9
    assert memory["z"][-4:].numpy() == pytest.approx(unit(x))
    assert memory["y"][-4:].tolist() == y.tolist()


def waiting(**settings) -> Online:
    """Two classes in eight directions each."""
    draw = np.random.default_rng(1)
    x = np.repeat([[4.0, 0, 0], [0, 4.0, 0]], 8, 0) + draw.normal(size=(16, 3))
    source = batch(x.astype(np.float32), np.repeat([0, 1], 8))
    return Online(load("test_time.adanpc", **{"k": 3, **settings}), Learner(nn.Identity(), 2, width=3), source=source)


ROWS = torch.tensor([[5.0, 0.1, 0], [0.2, 4.0, 0], [1.0, 1.1, 5.0]])


@pytest.mark.parametrize(("beta", "joined"), [(0.0, 3), (1.1, 0)])
def test_how_many_rows_join(beta, joined):
    online = waiting(beta=beta)
    scores = online.predict(ROWS)
    memory = online.learner.memory["memory"]
    assert len(memory["y"]) == 16 + joined
    assert memory["y"][16:].tolist() == scores.argmax(1).tolist()[:joined]
    online.reset()
    assert len(online.learner.memory["memory"]["y"]) == 16


def test_the_oldest_rows_of_the_stream_leave_first():
    online = waiting(beta=0.0, most=4)
    online.predict(ROWS)
    online.predict(2 * ROWS.roll(1, 0))
    memory = online.learner.memory["memory"]
    assert len(memory["z"]) == 20
    assert memory["z"][16:].numpy() == pytest.approx(unit(torch.cat([ROWS[2:], ROWS.roll(1, 0)]).numpy()))


def test_the_batch_norm_learns_and_nothing_else():
    online = waiting(beta=0.0, steps=2, k=12)  # so many that both classes vote
    before = copy.deepcopy(online.learner.state_dict())
    online.predict(ROWS)
    moved = {name for name, value in online.learner.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"parts.norm.weight", "parts.norm.bias"}
    assert online.updates == 2


def test_after_training_the_memory_holds_every_source_row_under_the_kept_weights():
    data, learner = _shifted.table(), _shifted.learner("table")
    method = load("test_time.adanpc", queue=20)
    fit(method, learner, data, Training(steps=4, batch=4, lr=0.01, choose="last"))
    memory = learner.memory["memory"]
    z = learner.outputs(data.source.x)[0]
    assert memory["source"] == len(memory["z"]) == len(data.source)
    assert sorted(memory["y"].tolist()) == sorted(data.source.y.tolist())
    assert memory["z"].sum(0).tolist() == pytest.approx(nn.functional.normalize(z).sum(0).tolist(), abs=1e-4)
    assert Online(method, learner).predict(data.target.x[:5]).shape == (5, 2)


def test_settings_are_chosen_by_held_out_rows():
    learner, _ = _shifted.source_model("table")
    data = _shifted.table()
    methods = [load("test_time.adanpc", k=k, beta=1.1) for k in (5, 3)]
    wrong = replace(data.source, y=1 - data.source.y)

    def make(method):
        return Online(method, copy.deepcopy(learner), source=data.source if method is methods[1] else wrong)

    assert chosen(methods, make, data.validation, 16) is methods[1]
    with pytest.raises(AcclimateError, match="held-out rows"):
        chosen(methods, waiting, [], 16)
    with pytest.raises(AcclimateError, match="pass source="):
        Online(methods[0], learner)
