"""ADAM and SimpleCIL: class means over both branches against numpy, every module, what is frozen when; the upper blocks; SSF folded."""

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.checks import tiny
from acclimate.engines.continual import class_stream, learn
from acclimate.engines.shift import Learner, Pool, Training
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.models.convnet import ConvNet
from acclimate.models.upper_blocks import UpperBlocks

STEPS = Training(steps=8, batch=8, lr=0.02, optimizer="adam", choose="last")


def rows(seed=0, count=48, shape=(5,)):
    draw = np.random.default_rng(seed)
    y = np.arange(count) % 4
    centres = np.random.default_rng(9).normal(size=(4, *shape))
    return Pool("d", torch.tensor(centres[y] + 0.4 * draw.normal(size=(count, *shape)), dtype=torch.float32), torch.tensor(y))


def network(seed=0):
    torch.manual_seed(seed)
    return Learner(nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 6)), 4, width=6)


def nearest_mean(z, y, queries, count):
    """Cosine with each class's mean, in numpy."""
    means = np.stack([z[y == c].mean(0) for c in range(count)])
    return (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("module", ["none", "full", "adapter", "ssf", "lora"])
def test_class_means_of_both_branches_as_in_numpy(module, joined):
    learner, method = network(), load("continual.adam_cil", module=module, joined=joined, width=3, scale=1.0)
    before = {name: value.clone() for name, value in learner.featurizer.state_dict().items()}
    train, test = rows(), rows(1)
    learn(method, learner, class_stream(train, test, 2), STEPS)
    assert all(torch.equal(before[name], value) for name, value in learner.featurizer.state_dict().items())
    with torch.no_grad():
        branches = [learner.featurizer] + ([learner.parts["tuned"]] if module != "none" else [])
        if not joined:
            branches = branches[-1:]
        z, queries = (np.concatenate([net(x).double().numpy() for net in branches], 1) for x in (train.x, test.x))
        scores = method.predict(learner, test.x)
    assert np.allclose(scores, nearest_mean(z, train.y.numpy(), queries, 4), atol=1e-5)
    if module != "none":
        with torch.no_grad():
            assert float((learner.parts["tuned"](train.x) - learner.featurizer(train.x)).abs().max()) > 1e-3


def test_only_the_first_task_tunes():
    learner, method = network(), load("continual.adam_cil", module="full")
    tasks = class_stream(rows(), rows(1), 2)
    learn(method, learner, tasks[:1], STEPS)
    once = {name: value.clone() for name, value in learner.state_dict().items()}
    fresh = network()
    done = learn(method, fresh, tasks, STEPS)
    assert all(torch.equal(once[name], value) for name, value in fresh.state_dict().items())
    assert done.matrix[1][1] > 0.9
    assert method.predict(learner, rows().x)[:, 2:].eq(-1).all()  # classes without a mean


def test_tuning_is_over_the_first_task_s_classes():
    learner, method = network(), load("continual.adam_cil", module="full", views=0.0)
    (task, _) = class_stream(rows(), rows(1), 2, order=[3, 1, 0, 2])
    learner.parts.update(method.build(learner))
    method.before(learner, task)
    ((loss, players),) = method.step(learner, task.batch)
    with torch.no_grad():
        z = nn.functional.normalize(learner.featurizer(task.train.x), dim=1).double().numpy()
    weight = learner.parts["cosine"].weight.detach().double().numpy()[[1, 3]]
    scores = 10 * z @ (weight / np.linalg.norm(weight, axis=1, keepdims=True)).T
    own = np.where(task.train.y.numpy() == 1, 0, 1)
    wanted = -(scores[np.arange(len(own)), own] - np.log(np.exp(scores).sum(1))).mean()
    assert loss.item() == pytest.approx(wanted, abs=1e-5)
    assert players == ("tuned", "cosine")


def test_norms_move_statistics_alone_and_other_modules_leave_them():
    pools = [rows(seed, shape=(1, 8, 8)) for seed in (0, 1)]
    found = {}
    for module in ("norms", "adapter"):
        torch.manual_seed(0)
        learner = Learner(ConvNet(4, 1), 4)
        learn(load("continual.adam_cil", module=module, width=4), learner, class_stream(*pools, 2), STEPS)
        tuned = learner.parts["tuned"] if module == "norms" else learner.parts["tuned"].net
        pairs = zip(tuned.stem.state_dict().values(), learner.featurizer.stem.state_dict().values(), strict=True)
        found[module] = [torch.equal(*pair) for pair in pairs]
    assert found == {"norms": [True, True, True, False, False, False], "adapter": [True] * 6}  # weight, scale, shift; mean, variance, count
    with pytest.raises(AcclimateError, match="no batch-norm"):
        learn(load("continual.adam_cil", module="norms"), network(), class_stream(rows(), rows(1), 2), STEPS)


def test_a_class_that_comes_again_keeps_one_mean():
    learner, method = network(), load("continual.adam_cil", module="none")
    pool, other = rows(), rows(3, 20)
    for each in (pool, other):
        learn_task = class_stream(each, each, 4)[0]
        method.after(learner, learn_task)
    both = Pool("d", torch.cat([pool.x, other.x]), torch.cat([pool.y, other.y]))
    with torch.no_grad():
        z, queries = (learner.featurizer(x).double().numpy() for x in (both.x, pool.x))
    assert np.allclose(method.predict(learner, pool.x).detach(), nearest_mean(z, both.y.numpy(), queries, 4), atol=1e-5)


def test_upper_blocks_end_where_the_whole_encoder_does_and_take_every_module():
    net = tiny.encoder()
    body = net.base_model
    ids, mask = torch.tensor([[5, 9, 3, 17], [7, 7, 12, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.no_grad():
        found = body(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        wanted = (found.last_hidden_state * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        upper = UpperBlocks(body, 1).eval()
        x = found.hidden_states[1] * mask[..., None]
        assert torch.allclose(upper(x), wanted, atol=1e-6)
    for module in ("adapter", "ssf", "lora", "prompt", "full"):
        learner = Learner(upper, 2)
        tuned = load("continual.adam_cil", module=module, width=4).build(learner)["tuned"]
        assert any(value.requires_grad for value in tuned.parameters())
        assert module == "prompt" or torch.allclose(tuned.eval()(x), wanted, atol=1e-6)
