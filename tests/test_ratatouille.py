"""Model Ratatouille and the fine-tuning engine under it: pool, shared head, warm-up, draws, selection, averages, baselines, errors."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from acclimate import datasets
from acclimate.domain.arrays import ArrayDomain, Arrays
from acclimate.engines import finetune
from acclimate.engines.finetune import (
    FeatureModel,
    FineTuning,
    accuracy,
    average,
    fine_tune,
    interpolation,
    mean_accuracy,
    probed_head,
    split,
)
from acclimate.errors import AcclimateError
from acclimate.experiments import load as experiment
from acclimate.method import load
from acclimate.methods.merging.model_ratatouille import greedy
from acclimate.model import ArrayModel
from acclimate.models.convnet import ConvNet

SMALL = {"n_runs": 3, "steps": 8, "lp_steps": 4, "lr": [1e-2, 3e-3], "batch_size": 8}


def rows(seed, shift=0.0, classes=3, count=60):
    """Points of classes that a random layer can tell apart, moved by the domain."""
    draw = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, 6, generator=torch.Generator().manual_seed(classes))
    y = torch.arange(count) % classes
    return centres[y] + torch.randn(count, 6, generator=draw) + shift, y


def featurizer(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU())


def domain(name, pair):
    x, y = (part.numpy() for part in pair)
    return ArrayDomain(name, {"train": Arrays(name, x, y, [str(number) for number in range(1 + y.max())])})


class Tools:
    seed = 0

    def __init__(self):
        self.notes, self.calls = {}, []

    def note(self, name, value):
        self.notes[name] = copy.deepcopy(value)

    def fine_tune(self, name, model, train, held, plan, seed, only=""):
        self.calls.append((name, model, plan, only))
        return fine_tune(model, train, held, plan, seed, only=only)


@pytest.fixture(scope="module")
def world():
    target = {"a": rows(1), "b": rows(2, 0.5)}
    auxiliaries = {"two": {"c": rows(3, classes=2)}, "four": {"d": rows(4, classes=4), "e": rows(5, 1.0, classes=4)}}
    return featurizer(), target, auxiliaries


def given(world):
    """Target and auxiliaries as domains; a task of one domain may be given as that alone."""
    _, target, auxiliaries = world
    tasks = {task: {name: domain(name, pair) for name, pair in some.items()} for task, some in auxiliaries.items()}
    tasks = {task: some if len(some) > 1 else next(iter(some.values())) for task, some in tasks.items()}
    return {name: domain(name, pair) for name, pair in target.items()}, tasks


def cook(world, **settings):
    tools = Tools()
    start, target, auxiliaries = world[0], *given(world)
    before = copy.deepcopy(start.state_dict())
    made = load("merging.model_ratatouille", **{**SMALL, **settings}).run(
        tools, start=ArrayModel("start", FeatureModel(start)), target=target, auxiliaries=auxiliaries
    )
    made = {name: model.net for name, model in made.items()}
    assert all(torch.equal(before[name], value) for name, value in start.state_dict().items())
    return tools, made


# the engine


def test_validation_is_a_fifth_of_each_domain_and_apart(world):
    train, held = split(world[1], seed=3)
    for name, (x, _) in world[1].items():
        assert (len(train[name][1]), len(held[name][1])) == (48, 12)
        assert torch.equal(torch.cat([train[name][0], held[name][0]]).sort(0).values, x.sort(0).values)
    with pytest.raises(AcclimateError, match="too few to hold out"):
        split({"a": (torch.zeros(2, 6), torch.zeros(2).long())})


def test_the_best_checkpoint_and_the_same_again(world):
    train, held = split(world[1])
    model = FeatureModel(world[0], nn.Linear(12, 3))
    plan = FineTuning(steps=30, batch=8, lr=1e-2, check_every=3, dropout=0.5)
    state = torch.get_rng_state()
    one, two = fine_tune(model, train, held, plan, 5), fine_tune(model, train, held, plan, 5)
    assert torch.equal(state, torch.get_rng_state())
    assert [step for step, _ in one.curve] == list(range(3, 31, 3))
    assert one.accuracy == max(score for _, score in one.curve) == pytest.approx(mean_accuracy(one.model, held))
    assert one.accuracy > 0.8
    assert all(torch.equal(value, two.model.state_dict()[name]) for name, value in one.model.state_dict().items())
    other = fine_tune(model, train, held, plan, 6)
    assert not torch.equal(other.model.head.weight, one.model.head.weight)
    assert fine_tune(model, train, held, FineTuning(steps=0), 0).accuracy == pytest.approx(mean_accuracy(model, held))


def test_batches_hold_as_many_rows_of_every_domain(world):
    seen = []

    class Spy(nn.Linear):
        def forward(self, x):
            if self.training:
                seen.append(x)
            return super().forward(x)

    large = {"a": rows(1, count=600), "b": rows(2, shift=100.0, count=30)}
    fine_tune(FeatureModel(Spy(6, 6), nn.Linear(6, 3)), large, large, FineTuning(steps=2, batch=5, lr=1e-3), 0)
    assert [len(x) for x in seen] == [10, 10]
    assert all((x.mean(1) > 50).sum() == 5 for x in seen)


def test_only_the_head_learns_in_the_warm_up(world):
    train, held = split(world[1])
    model = FeatureModel(world[0], nn.Linear(12, 3))
    tuned = fine_tune(model, train, held, FineTuning(steps=5, batch=8, lr=1e-2), 0, only="head").model
    assert all(torch.equal(value, tuned.featurizer.state_dict()[name]) for name, value in model.featurizer.state_dict().items())
    assert not torch.equal(tuned.head.weight, model.head.weight)
    frozen = fine_tune(model, train, held, FineTuning(steps=5, batch=8, lr=1e-2, batch_norm="freeze"), 0).model
    assert torch.equal(frozen.featurizer[1].running_mean, model.featurizer[1].running_mean)
    assert not torch.equal(frozen.featurizer[0].weight, model.featurizer[0].weight)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_probed_head_is_scikit_learns(world, classes):
    from sklearn.linear_model import LogisticRegression

    sources = {"a": rows(1, classes=classes), "b": rows(2, 0.5, classes=classes)}
    head = probed_head(world[0], sources, classes)
    x = torch.cat([finetune.features(world[0], part) for part, _ in sources.values()])
    y = torch.cat([labels for _, labels in sources.values()])
    wanted = LogisticRegression(max_iter=2000).fit(x.double().numpy(), y.numpy()).predict_proba(x.double().numpy())
    assert np.allclose(head(x).detach().softmax(1), wanted, atol=1e-4)


def test_classes_that_do_not_occur_are_never_guessed(world):
    sources = {"a": rows(1, classes=3)}
    head = probed_head(world[0], sources, 5)
    assert head.weight.shape == (5, 12)
    assert accuracy(FeatureModel(world[0], head), sources["a"]) > 0.8


def test_averages_by_hand(world):
    one, two = (FeatureModel(featurizer(seed), nn.Linear(12, 3)) for seed in (1, 2))
    two.featurizer[1].running_mean.fill_(4.0)
    two.featurizer[1].num_batches_tracked.fill_(7)
    made = average([one, two], [1.0, 3.0])
    assert torch.allclose(made.head.weight, one.head.weight / 4 + 3 * two.head.weight / 4)
    assert torch.allclose(made.featurizer[1].running_mean, torch.full((12,), 3.0))
    assert made.featurizer[1].num_batches_tracked == 0
    line = interpolation(one, two, world[1], points=3)
    assert line == pytest.approx([mean_accuracy(model, world[1]) for model in (one, average([one, two]), two)])


# the strategy


def test_draws_heads_and_warm_ups(world):
    tools, made = cook(world, n_runs=6)
    assert list(made) == ["ratatouille"]
    assert tools.notes["pool"] == ["start", "two", "four"]
    assert [name for name, *_ in tools.calls[:2]] == ["aux-two", "aux-four"]
    told, calls = tools.notes["runs.ratatouille"], [call[1:] for call in tools.calls[2:]]
    assert len({name for name, *_ in tools.calls}) == len(tools.calls)
    assert {row["start"] for row in told} == {"start", "two", "four"}
    train, _ = split(world[1])
    shared = probed_head(world[0], train, 3)
    for row in told:
        model, plan, only = calls.pop(0)
        assert torch.equal(model.head.weight, shared.weight)  # one head for all, probed on the start
        if row["start"] != "start":
            assert (only, plan.steps, plan.lr) == ("head", 4, row["lr"])
            _, plan, only = calls.pop(0)
        assert (only, plan.steps, plan.lr, plan.dropout, plan.weight_decay) == ("", 8, row["lr"], row["dropout"], row["weight_decay"])
        assert row["lr"] in SMALL["lr"]
    assert not calls
    assert len({(row["lr"], row["weight_decay"], row["dropout"], row["start"]) for row in told}) > 3


def test_the_average_and_every_baseline(world):
    tools, made = cook(world, baselines=True)
    assert list(made) == ["erm", "diwa", "inter_training", "fusing", "ratatouille"]
    assert {row["start"] for row in tools.notes["runs.diwa"]} == {"start"}
    assert {row["start"] for row in tools.notes["runs.fusing"]} == {"mixture"}
    assert tools.notes["kept.ratatouille"]["runs"] == [0, 1, 2]
    _, held = split(world[1])
    for name, kind in (("erm", "diwa"), ("inter_training", "ratatouille"), ("fusing", "fusing")):
        best = max(row["validation"] for row in tools.notes[f"runs.{kind}"])
        assert mean_accuracy(made[name], held) == pytest.approx(best)
    assert mean_accuracy(made["ratatouille"], held) == pytest.approx(tools.notes["kept.ratatouille"]["validation"])
    assert accuracy(made["ratatouille"], rows(9, 1.0)) > 0.6  # a domain that was never given
    again = cook(world, baselines=True)[1]
    for name, model in made.items():
        assert all(torch.equal(value, again[name].state_dict()[key]) for key, value in model.state_dict().items()), name


def test_greedy_selection_by_source_validation(world):
    tools, _ = cook(world, selection="greedy", n_runs=4)
    kept = tools.notes["kept.ratatouille"]
    runs = tools.notes["runs.ratatouille"]
    assert kept["runs"][0] == max(range(4), key=lambda i: runs[i]["validation"])
    assert kept["validation"] >= max(row["validation"] for row in runs)
    score = {(1,): 0.5, (1, 2): 0.5, (1, 2, 0): 0.4, (1, 2, 3): 0.6}
    assert greedy([(0.3, 0), (0.5, 1), (0.4, 2), (0.2, 3)], lambda kept: score[tuple(kept)]) == ([1, 2, 3], 0.6)


def test_a_target_in_the_pool_is_refused(world):
    start, (target, auxiliaries) = ArrayModel("start", FeatureModel(world[0])), given(world)
    method = load("merging.model_ratatouille", **SMALL)
    leak = domain("x", tuple(part[:5] for part in world[1]["b"]))
    with pytest.raises(AcclimateError, match="'leak' holds rows of the target task"):
        method.run(Tools(), start=start, target=target, auxiliaries={**auxiliaries, "leak": leak})
    with pytest.raises(AcclimateError, match="needs from: a network and on:"):
        method.run(Tools(), start=start, target=target)
    with pytest.raises(AcclimateError, match="b has the classes 0, 1, but a 0, 1, 2; name the same"):
        method.run(Tools(), start=start, target={**target, "b": domain("b", rows(2, classes=2))}, auxiliaries=auxiliaries)


def test_a_start_may_learn_something_first(world):
    start, (target, auxiliaries) = ArrayModel("start", FeatureModel(world[0])), given(world)
    tools = Tools()
    method = load("merging.model_ratatouille", **SMALL)
    method.run(tools, start=start, target=target, auxiliaries=auxiliaries, pretraining=domain("f", rows(6, classes=5)))
    first, second = tools.calls[:2]
    assert (first[0], len(first[1].classes)) == ("pretrained", 5)
    assert not torch.equal(second[1].featurizer[0].weight, world[0][0].weight)  # the auxiliaries start from what it learned


def test_the_convnet_has_batch_norm_and_averages():
    net = ConvNet(width=4)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 16)
    assert net.features == 16
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())
    assert average([net, copy.deepcopy(net)])(torch.rand(1, 3, 32, 32)).isfinite().all()


# data and the experiment


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("pacs/photo", (720, 3, 32, 32), 6), ("digits/usps", (1800, 1, 16, 16), 10), ("digits/sklearn", (1797, 1, 8, 8), 10)],
)
def test_images_load_as_arrays(name, shape, classes):
    try:
        data = datasets.load(name)
    except AcclimateError as error:
        pytest.skip(str(error))
    assert data.x.shape == shape
    assert (data.x.dtype, data.y.dtype) == (np.float32, np.int64)
    assert data.x.min() >= 0
    assert 0.9 < data.x.max() <= 1
    assert set(data.y) == set(range(classes))
    some = data.only(data.classes[2:0:-1])
    assert len(some.y) == np.isin(data.y, [1, 2]).sum()
    assert np.array_equal(some.x[some.y == 0], data.x[data.y == 2])
    with pytest.raises(AcclimateError, match="nearest"):
        datasets.load(name + "s")


@pytest.mark.parametrize(
    ("more", "verdict", "failing"),
    [
        ({}, "holds", []),
        ({"ratatouille": [51.2] * 3}, "does_not_hold", [1]),
        ({"DiWA": [50.2] * 3}, "does_not_hold", [2]),
        ({"ERM": [50.0, 50.0, 52.1], "DiWA": [51.3] * 3}, "does_not_hold", [3]),
        ({"inter-training": [52.5] * 3}, "does_not_hold", [4]),
        ({"ERM": [40.0] * 3}, "not_testable", []),
    ],
)
def test_the_verdict_of_the_experiment(more, verdict, failing):
    module = experiment("model_ratatouille")
    figures = {"ERM": [50.0] * 3, "DiWA": [51.0] * 3, "ratatouille": [52.0] * 3, "inter-training": [51.0] * 3, "fusing": [50.0] * 3, **more}
    assert [number for number, (_, met) in enumerate(module.clauses(figures), 1) if not met] == failing
    assert module.verdict(figures) == verdict
    assert (module.BETTER, module.LEARNED) == (0.5, 45.0)
