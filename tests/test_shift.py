"""The shift and online engines, and the verb on top of them: bad input, games, players, choice of the model, streams."""

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.checks import _shifted
from acclimate.engines.online import Online, stream, streamed_accuracy
from acclimate.engines.shift import Data, Learner, Pool, Sampler, Training, accuracy, fit
from acclimate.engines.shift.games import RungeKutta
from acclimate.errors import AcclimateError
from acclimate.kinds import DomainAdaptation
from acclimate.method import load

ERM = load("domain_generalization.erm")


def pool(name="a", rows=6, labelled=True):
    x = torch.arange(rows * 2.0).view(rows, 2) / rows
    return Pool(name, x, torch.arange(rows) % 2 if labelled else None)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Pool("a", torch.zeros(0, 2)), "no rows"),
        (lambda: Pool("a", torch.tensor([[1.0], [float("nan")]])), "row 2 holds nan"),
        (lambda: Pool("a", torch.zeros(2, 1), torch.zeros(3)), "one label per row"),
        (lambda: Data([pool(), pool()]), "given twice"),
        (lambda: Data([pool(labelled=False)]), "has no labels"),
        (lambda: Data([pool()], pool("t")), "would leak"),
        (lambda: Data([Pool("a", torch.ones(4, 2), torch.zeros(4).long())]), "all rows"),
        (lambda: Data([pool(), Pool("b", torch.zeros(2, 3), torch.zeros(2))]), "shape"),
        (lambda: Data(), "no domain"),
    ],
)
def test_bad_rows_are_one_line(make, said):
    with pytest.raises(AcclimateError, match=said):
        make()


def made():
    return Learner(nn.Linear(2, 3), 2, width=3)


def test_what_a_method_needs_is_said_before_the_first_step():
    with pytest.raises(AcclimateError, match=r"at least 2 labelled domains.*only 1"):
        fit(load("domain_generalization.irm"), made(), Data([pool()]), Training(steps=2))
    with pytest.raises(AcclimateError, match="no target was given"):
        fit(load("domain_adaptation.mcd"), made(), Data([pool()]), Training(steps=2))
    with pytest.raises(AcclimateError, match="domains = "):
        fit(load("domain_adaptation.dann"), made(), Data([pool()]), Training(steps=2))
    with pytest.raises(AcclimateError, match="no oracle"):
        fit(ERM, made(), Data([pool()]), Training(steps=2, choose="oracle"))
    with pytest.raises(AcclimateError, match="rates name 'haed'"):
        fit(ERM, made(), Data([pool()]), Training(steps=2, rates={"haed": 2.0}))
    with pytest.raises(AcclimateError, match="in turn"):
        fit(load("domain_adaptation.mcd"), made(), Data([pool()], pool("t", labelled=False)), Training(steps=2, optimizer="rk2"))
    with pytest.raises(AcclimateError, match="lower lr"):
        fit(ERM, made(), Data([pool()]), Training(steps=50, lr=1e30, optimizer="sgd"))


def test_a_folder_of_another_run_is_refused_and_a_finished_one_is_read(tmp_path):
    data = Data([pool()])
    torch.manual_seed(0)
    one = made()
    start = {name: value.clone() for name, value in one.state_dict().items()}
    fit(ERM, one, data, Training(steps=4), folder=tmp_path)
    again = made()
    again.load_state_dict(start)
    fit(ERM, again, data, Training(steps=4), folder=tmp_path)
    assert all(torch.equal(one.state_dict()[name], again.state_dict()[name]) for name in start)
    with pytest.raises(AcclimateError, match="other settings"):
        fit(ERM, again, data, Training(steps=5), folder=tmp_path)


def test_every_domain_gives_as_many_rows_and_every_row_comes_once_a_pass():
    sampler = Sampler([pool("a", 6), pool("b", 4)], 2, seed=0)
    seen = [sampler[k] for k in range(6)]
    assert all(batch.sizes == [2, 2] for batch in seen)
    assert sorted(torch.cat([batch.rows[:2] for batch in seen[:3]]).tolist()) == list(range(6))
    assert sorted(torch.cat([batch.rows[2:] for batch in seen[:2]]).tolist()) == list(range(6, 10))
    assert torch.equal(sampler[4].rows, Sampler([pool("a", 6), pool("b", 4)], 2, seed=0)[4].rows)
    large = Sampler([pool("a", 3)], 8, seed=0)[0]  # a batch larger than the domain takes rows again
    assert np.bincount(large.rows.numpy()).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


class Turns(DomainAdaptation):
    """Trains the head, then the featurizer, then both at once on losses of their own."""

    def step(self, learner, source):
        loss = learner.loss(learner(source.x), source.y)
        yield loss, "head"
        z = learner.features(source.x)
        yield [(learner.head(z.detach()).square().mean(), "head"), (z.square().mean(), "featurizer")]


def test_only_who_is_named_learns():
    learner, data = made(), Data([pool()])
    data = Data([pool()])

    class HeadOnly(Turns):
        def step(self, learner, source):
            yield learner.loss(learner(source.x), source.y), "head"

    before = {name: value.clone() for name, value in learner.state_dict().items()}
    fit(HeadOnly(), learner, data, Training(steps=3, choose="last"))
    changed = {name for name, value in learner.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}
    fit(Turns(), learner, data, Training(steps=3, choose="last"))
    assert all(not torch.equal(value, before[name]) for name, value in learner.state_dict().items())

    class Nobody(Turns):
        def step(self, learner, source):
            yield learner.loss(learner(source.x), source.y), "haed"

    with pytest.raises(AcclimateError, match="'haed'; nearest: head"):
        fit(Nobody(), learner, data, Training(steps=1))


def test_losses_that_are_played_at_once_see_the_same_weights():
    """One step of SGD on both must equal the gradients taken by hand at the start."""
    torch.manual_seed(1)
    learner, x = made(), pool().x

    class Once(Turns):
        def step(self, learner, source):
            z = learner.features(source.x)
            yield [(learner.head(z).square().mean(), "head"), (learner.head(z).abs().mean(), "featurizer")]

    z = learner.features(x)
    head = torch.autograd.grad(learner.head(z).square().mean(), learner.head.weight)[0]
    body = torch.autograd.grad(learner.head(learner.features(x)).abs().mean(), learner.featurizer.weight)[0]
    wanted = learner.head.weight.detach() - 0.1 * head, learner.featurizer.weight.detach() - 0.1 * body
    fit(Once(), learner, Data([pool()]), Training(steps=1, batch=6, optimizer="sgd", momentum=0.0, lr=0.1, choose="last"))
    assert torch.allclose(learner.head.weight, wanted[0], atol=1e-6)
    assert torch.allclose(learner.featurizer.weight, wanted[1], atol=1e-6)


@pytest.mark.parametrize(("order", "stays"), [(2, True), (4, True), (0, False)])
def test_runge_kutta_settles_a_game_that_plain_steps_leave(order, stays):
    """min over x, max over y of x y + 0.05 (x^2 - y^2): plain steps of 0.3 spiral out, Runge-Kutta steps spiral in."""
    x, y = (torch.ones(1, requires_grad=True) for _ in range(2))
    optimizer = RungeKutta([x, y], lr=0.3, order=order) if order else torch.optim.SGD([x, y], lr=0.3)

    def closure():
        x.grad, y.grad = (y + 0.1 * x).detach(), -(x - 0.1 * y).detach()

    for _ in range(100):
        if not order:
            closure()
        optimizer.step(closure) if order else optimizer.step()
    assert (float((x**2 + y**2).detach()) < 1) == stays


def test_one_game_step_sees_one_batch_and_moves_statistics_once():
    data, learner = _shifted.images(), _shifted.learner("images")
    dann = load("domain_adaptation.dann", hidden=(8,))
    done = fit(dann, learner, data, Training(steps=3, batch=4, optimizer="rk4", lr=0.05, choose="last"))
    assert done.plays == 12
    counts = {int(m.num_batches_tracked) for m in learner.modules() if isinstance(m, nn.BatchNorm2d)}
    assert counts == {6}  # source and target once a step


def test_the_best_weights_on_held_out_source_rows_are_kept_and_the_oracle_is_marked():
    data, learner = _shifted.table(), _shifted.learner("table")
    done = fit(ERM, learner, data, Training(steps=60, batch=8, lr=0.01))
    best = max(score for _, score in done.looks)
    assert done.choice == "source_validation"
    assert sum(accuracy(ERM, learner, each) for each in data.validation) / 3 == pytest.approx(best)
    oracle = fit(ERM, _shifted.learner("table"), data, Training(steps=20, batch=8, choose="oracle"))
    assert oracle.choice == "oracle"


def test_a_source_free_method_never_sees_the_source():
    learner, data = _shifted.learner("table"), _shifted.table()
    seen = []

    class Watching(type(load("domain_adaptation.shot"))):
        def refresh(self, learner, source, target):
            seen.append(source)
            super().refresh(learner, source, target)

    fit(Watching(), learner, data, Training(steps=3, batch=8))
    assert seen
    assert all(each is None for each in seen)


def test_streams_are_refused_when_empty_and_measured_as_they_come():
    learner, data = _shifted.source_model("table")
    online = Online(load("test_time.source"), learner)
    with pytest.raises(AcclimateError, match="empty"):
        online.run([])
    with pytest.raises(AcclimateError, match="batch 1 of the stream is empty"):
        online.predict(torch.zeros(0, 4))
    found = streamed_accuracy(online, stream(data.oracle, 8))
    assert found == pytest.approx(accuracy(ERM, learner, data.oracle))
    with pytest.raises(AcclimateError, match="no such weights"):
        Online(load("test_time.tent"), learner).predict(data.oracle.x[:4])


def test_statistics_of_the_batch_are_mixed_with_those_of_the_source():
    """Against numpy, on images: (N x source + n x batch) / (N + n) in every batch-norm layer, first layer seen."""
    draw = np.random.default_rng(0)
    layer = nn.BatchNorm2d(2).eval()
    layer.running_mean.copy_(torch.tensor([0.5, -0.5]))
    layer.running_var.copy_(torch.tensor([2.0, 0.5]))
    x = draw.normal(1.0, 2.0, (4, 2, 3, 3)).astype(np.float32)
    learner = Learner(nn.Sequential(layer, nn.Flatten()), 18, width=18, head=nn.Identity()).eval()
    found = load("test_time.bn_adapt", prior=12).adapt(learner, torch.from_numpy(x)).numpy().reshape(x.shape)
    mean = (12 * np.array([0.5, -0.5]) + 4 * x.mean((0, 2, 3))) / 16
    variance = (12 * np.array([2.0, 0.5]) + 4 * x.var((0, 2, 3))) / 16
    wanted = (x - mean[:, None, None]) / np.sqrt(variance + layer.eps)[:, None, None]
    assert np.allclose(found, wanted, atol=1e-5)
    assert layer.running_mean.tolist() == [0.5, -0.5]


def test_a_budget_is_spent_in_rounds_and_labels_help():
    from acclimate.engines.active import Rounds, learn

    learner, data = _shifted.source_model("table")
    oracle = _shifted.table().oracle
    training = Training(steps=60, batch=8, lr=0.01, choose="last")
    done = learn(load("active_learning.uncertainty", by="margin"), learner, _shifted.table(), oracle, Rounds(rounds=3, share=0.1), training)
    assert [len(rows) for rows in done.rows] == [5, 5, 5]
    assert len({row for rows in done.rows for row in rows}) == 15
    assert done.accuracy[-1] > done.accuracy[0]
    with pytest.raises(AcclimateError, match="more than the 48 rows"):
        learn(load("active_learning.random_sampling"), learner, data, oracle, Rounds(rounds=3, share=0.5))


def test_the_greedy_centres_are_those_of_a_plain_loop():
    from acclimate.engines.shift import Batch

    draw = np.random.default_rng(0)
    x, held = draw.normal(size=(30, 4)), draw.normal(size=(3, 4))
    learner = Learner(nn.Identity(), 2, width=4)
    batch = [Batch(torch.tensor(each), None, torch.zeros(len(each)), torch.arange(len(each)), [len(each)]) for each in (x, held)]
    learner.double()
    found = load("active_learning.core_set").query(learner, batch[0], 6, batch[1]).tolist()
    centres, wanted = list(held), []
    for _ in range(6):
        gaps = [min(((row - centre) ** 2).sum() for centre in centres) for row in x]
        wanted.append(int(np.argmax(gaps)))
        centres.append(x[wanted[-1]])
    assert found == wanted
