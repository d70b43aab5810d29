"""SLM: increments against weights that are changed by hand, picking in loops, fitted keys, what earlier tasks own, a stream."""

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.engines.continual import Task, learn
from acclimate.engines.shift import Batch, Learner, Pool, Training
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.models.causal import CausalNet, continued, rows_of
from acclimate.parts.increments import Increments, likeness, mixture
from worlds import far_domains, sentences

TRAINING = Training(steps=80, batch=16, lr=0.01, choose="last", seed=1)
KEYS = Training(**{**TRAINING.values(), "rates": {"retriever": 5.0}})


def network(classes=2, seed=0):
    torch.manual_seed(seed)
    return Learner(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8)), classes, width=8)


def encoded(made):
    """Rows are compared as they are."""
    made.parts["encoder"] = nn.Identity()
    made.parts["encoder"].features = 6
    return made


def test_increments_are_those_of_changed_weights_row_by_row():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5))
    pool = Increments(net, ["0", "3"], slots=4, rank=2)
    for weight in pool.parameters():
        nn.init.normal_(weight)
    x, shares = torch.randn(3, 2, 4, 4), torch.rand(3, 4)
    with pool.applied(net, shares):
        found = net(x)
    plain = [net[0].weight.clone(), net[3].weight.clone()]
    for row in range(3):
        for layer, before, a, b in zip((net[0], net[3]), plain, pool.a, pool.b, strict=True):
            change = sum(shares[row, n] * (a[n].T @ b[n].flatten(1)) for n in range(4))
            layer.weight.data = before + change.view_as(before)
        assert torch.allclose(net(x[row : row + 1])[0], found[row], atol=1e-4)


def test_nothing_is_changed_at_the_start():
    made, x = network(), torch.randn(5, 6)
    before = made.eval()(x)
    pool = Increments(made.featurizer, ["0", "2"], slots=3, rank=2)
    with pool.applied(made.featurizer, torch.rand(5, 3)):
        assert torch.equal(made(x), before)


def test_picking_agrees_with_loops_and_may_be_for_a_whole_batch():
    draw = np.random.default_rng(0)
    q, keys = draw.normal(size=(4, 8)), draw.normal(size=(3, 5, 3))
    wide = np.concatenate([q, np.zeros((4, 1))], 1).reshape(4, 3, 3)
    s = np.zeros((4, 5))
    for row in range(4):
        for n in range(5):
            cosines = [wide[row, g] @ keys[g, n] / np.linalg.norm(wide[row, g]) / np.linalg.norm(keys[g, n]) for g in range(3)]
            s[row, n] = np.mean(cosines)
    found = likeness(torch.tensor(q), torch.tensor(keys)).mean(1)
    assert found.numpy() == pytest.approx(s)
    wanted = np.zeros((4, 5))
    for row in range(4):
        best = np.argsort(-s[row])[:2]
        wanted[row, best] = s[row, best] / s[row, best].sum()
    assert mixture(found, 2).numpy() == pytest.approx(wanted, abs=1e-6)
    made = Learner(nn.Linear(8, 8), 2, width=8)
    method = load("continual.slm", pool=5, top=2, groups=3, pooled=True)
    made.parts.update(method.build(made))
    made.parts["retriever"].weight.data = torch.tensor(keys).float()
    made.memory["seen"] = 5
    rows = method.picked(made, torch.tensor(q).float())
    best = np.argsort(-s.mean(0))[:2]
    assert rows[:, best].numpy() == pytest.approx(np.tile(s.mean(0)[best] / s.mean(0)[best].sum(), (4, 1)), abs=1e-5)


def test_keys_move_towards_the_rows_and_are_clipped():
    made = encoded(network())
    method = load("continual.slm", pool=8, groups=2, hidden=0.0, clip=0.01)
    made.parts.update(method.build(made))
    (task, *_) = far_domains()
    method.before(made, task)
    batch = Batch(task.train.x, task.train.y, torch.zeros(60), torch.arange(60), [60])
    made.progress = 0.0
    ((loss, players),) = method.step(made, batch)
    assert players == "retriever"
    (grad,) = torch.autograd.grad(loss, made.parts["retriever"].weight)
    assert grad.norm().item() == pytest.approx(0.01, rel=1e-4)
    assert not grad[:, 4:].any()  # slots of later tasks


def test_a_stream_that_turns_its_labels_is_kept_and_slots_of_others_stay():
    """Fine-tuning forgets, as each domain answers the other way round."""
    tasks = far_domains()
    states = []

    def watch(task, learner):
        states.append({name: value.clone() for name, value in learner.state_dict().items()})

    settings = {"groups": 2, "pool": 12, "rank": 2}
    made, frozen = encoded(network()), network().featurizer.state_dict()
    found = learn(load("continual.slm", **settings), made, tasks, KEYS, watch=watch)
    assert min(found.matrix[-1]) > 0.95
    for name, value in made.featurizer.state_dict().items():
        assert torch.equal(value, frozen[name])
    for name in (n for n in states[0] if n.startswith(("parts.increments", "parts.retriever"))):
        slot = 1 if "retriever" in name else 0
        assert torch.equal(states[0][name].narrow(slot, 0, 4), states[2][name].narrow(slot, 0, 4))
        assert not torch.equal(states[0][name].narrow(slot, 4, 4), states[2][name].narrow(slot, 4, 4))
    assert torch.equal(states[0]["head.weight"], states[2]["head.weight"])  # the label set was learned in the first task
    plain = learn(load("continual.fine_tuning"), network(), tasks, TRAINING)
    assert min(plain.matrix[-1]) < 0.7


def test_heads_of_other_label_sets_stay():
    one, other = (task.train for task in far_domains(2))
    pools = [Pool("a", one.x, one.y), Pool("b", other.x, other.y + 2)]
    tasks = [Task(pool.name, pool, pool, classes, n) for n, (pool, classes) in enumerate(zip(pools, [(0, 1), (2, 3)], strict=True))]
    made, heads = encoded(network(4)), []
    learn(load("continual.slm", pool=8), made, tasks, KEYS, watch=lambda task, learner: heads.append(learner.head.weight.clone()))
    assert torch.equal(heads[0][:2], heads[1][:2])
    assert not torch.equal(heads[0][2:], heads[1][2:])


def test_a_pool_that_is_full_is_refused():
    with pytest.raises(AcclimateError, match="too few for task 'domain 1'"):
        learn(load("continual.slm", pool=5), network(), far_domains(2), TRAINING)


def test_a_language_model_learns_answers_of_one_domain_after_another():
    net = CausalNet("seedling-xs")
    tasks, said = [], {"pipes": "of water", "kitchen": "of bread"}
    for number, (topic, answer) in enumerate(said.items()):
        texts = [text.partition(". ")[2][:60] for text in sentences(topic, 32)]
        x, y = rows_of(net, [(text, answer) for text in texts], 40)
        assert net.tokenizer.decode(y[0][y[0] >= 0]).startswith(answer)
        tasks.append(Task(topic, Pool(topic, x[:24], y[:24]), Pool(topic, x[24:], y[24:]), number=number))
    torch.manual_seed(0)
    learner = Learner(net, net.vocabulary, head=net.head)
    slm = load("continual.slm", pool=8, slots=4, top=2, rank=4, keys=0.4)
    training = Training(**{**slm.training, "steps": 40, "lr": 0.01, "rates": {"retriever": 5.0}, "seed": 0})
    before = net.vectors(tasks[0].test.x)
    found = learn(slm, learner, tasks, training)
    assert found.matrix[0][0] > 0.9
    assert found.matrix[1][0] > 0.9
    assert found.matrix[1][1] > 0.9
    assert found.matrix[0][1] < 0.7  # the answers share their first word
    assert torch.equal(net.vectors(tasks[0].test.x), before)  # the network itself is as it was
    for topic, answer in said.items():
        assert continued(lambda ids: slm.predict(learner, ids), net, [sentences(topic, 40)[35].partition(". ")[2][:60]], 6) == [answer]
    with pytest.raises(AcclimateError, match="row 2: prompt and answer are"):
        rows_of(net, [("a", "b"), ("word " * 50, "b")], 16)
    with pytest.raises(AcclimateError, match="writes no text"):
        CausalNet("minilm")
