"""OnDA: the switch against a plain reading of its rules, prototypes on their way, pixels as rows, what is replayed and renewed."""

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.engines.online import Online, streamed_accuracy
from acclimate.engines.shift import Batch, Data, Learner, Pool, Training, accuracy, fit
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.models.segmenter import Segmenter


def batch(x: torch.Tensor, y: torch.Tensor) -> Batch:
    return Batch(x, y, torch.zeros(len(x)), torch.arange(len(x)), [len(x)])


def waiting(**settings) -> Online:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(12) % 3
    source = batch(torch.randn(12, 4, generator=draw) + 2 * torch.eye(3, 4)[y], y)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learner = Learner(nn.Linear(4, 4), 3, width=4)
    return Online(load("test_time.onda", **settings), learner, Training(optimizer="sgd", lr=0.1), source=source)


def by_hand(sureness: list[float], low: float, high: float, change: float, window: int, wait: int) -> tuple[list[str], list[int]]:
    """Which prior each batch has, and before which batches the dynamic model is renewed."""
    weights, direction, since, prior, renewed = np.hamming(window - 1), "static", 0, [], []
    for last in range(len(sureness)):
        seen, since = sureness[max(0, last + 1 - window) : last + 1], since + 1
        slope = np.average(seen[1:], weights=weights) - np.average(seen[:-1], weights=weights) if len(seen) == window else 0.0
        if abs(slope) > change:
            direction = "static" if slope > 0 else "dynamic"
            if since > wait:
                renewed.append(last)
                since = 0
        level = np.mean(seen)
        prior.append("dynamic" if level < low else "static" if level > high else direction)
    return prior, renewed


def test_switch_has_three_zones_and_a_direction():
    sureness = [0.95] * 8 + list(np.linspace(0.95, 0.7, 15)) + [0.7] * 4 + list(np.linspace(0.7, 0.95, 15)) + [0.95] * 6
    rules = {"low": 0.8, "high": 0.9, "change": 0.004, "window": 5, "wait": 6}
    online, renewed, found = waiting(**rules), [], []
    for place, value in enumerate(sureness):
        found.append(online.method.switch(online.learner, value))
        if online.learner.memory["waited"] == 0:
            renewed.append(place)
    assert (found, renewed) == by_hand(sureness, **rules)
    between = [prior for prior, value in zip(found, sureness, strict=True) if 0.82 < value < 0.88]
    assert set(between) == {"static", "dynamic"}  # the same sureness, on its way down and on its way up
    assert len(renewed) > 1


def test_prototypes_follow_the_teachers_classes():
    online, x = waiting(keep_prototypes=0.9), torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    learner = online.learner
    before = {name: value.clone() for name, value in learner.memory["prototypes"].items()}
    with torch.no_grad():
        z = learner.parts["teacher"][0](x)
        of = learner.parts["teacher"][1](z).argmax(1)
    online.predict(x)
    for label in range(3):
        rows = z[of == label]
        for name, power in (("mean", 1), ("square", 2)):
            wanted = 0.9 * before[name][label] + 0.1 * (rows**power).mean(0) if len(rows) else before[name][label]
            assert learner.memory["prototypes"][name][label].numpy() == pytest.approx(wanted.numpy(), abs=1e-6)


def test_the_teacher_follows_slowly_and_the_source_model_stays():
    online = waiting(keep=0.75)
    start = {name: [w.clone() for w in online.learner.parts[name].parameters()] for name in ("teacher", "static")}
    online.predict(torch.randn(6, 4, generator=torch.Generator().manual_seed(2)))
    student = [*online.learner.featurizer.parameters(), *online.learner.head.parameters()]
    for old, own, now in zip(start["teacher"], online.learner.parts["teacher"].parameters(), student, strict=True):
        assert torch.allclose(own, 0.75 * old + 0.25 * now)
        assert not torch.equal(old, now)
    assert all(map(torch.equal, start["static"], online.learner.parts["static"].parameters()))
    online.method.renew(online.learner)
    assert all(map(torch.equal, online.learner.parts["dynamic"].parameters(), student))


def test_pixels_are_rows_of_their_own():
    """Labels and losses on images of single pixels, spread over rows or put into one image, are the same."""
    draw = torch.Generator().manual_seed(3)
    x, source, y = torch.randn(6, 2, generator=draw), torch.randn(6, 2, generator=draw), torch.arange(6) % 3
    weight = torch.randn(3, 2, generator=draw)

    def losses(rows: torch.Tensor, known: torch.Tensor, truth: torch.Tensor, head: nn.Module) -> tuple:
        head.weight.data = weight.view(head.weight.shape)
        learner, method = Learner(nn.Identity(), 3, width=2, head=head), load("test_time.onda", threshold=0.4)
        learner.parts.update(method.build(learner))
        method.begin(learner, batch(known, truth), None)
        labels = method.labels(learner, rows)
        return labels.tolist(), next(method.adapt(learner, rows)).item()

    flat = losses(x, source, y, nn.Linear(2, 3, bias=False))
    image = losses(x.T.reshape(1, 2, 2, 3), source.T.reshape(1, 2, 2, 3), y.view(1, 2, 3), nn.Conv2d(2, 3, 1, bias=False))
    assert flat[0] == image[0]
    assert flat[1] == pytest.approx(image[1], abs=1e-5)


def test_a_segmenter_learns_and_adapts():
    draw = torch.Generator().manual_seed(4)
    x = torch.rand(24, 1, 8, 8, generator=draw)
    y = (x[:, 0] > 0.5).long()
    y[:, 0] = -100
    pool = Pool("bright", x, y)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learner = Learner(Segmenter(4, 1), ["dark", "bright"], head="pixels")
    data = Data([pool], validation=[pool], classes=["dark", "bright"])
    fit(load("domain_generalization.erm"), learner, data, Training(steps=80, batch=8, lr=0.02))
    assert accuracy(load("domain_generalization.erm"), learner, pool) > 0.8
    online = Online(load("test_time.onda"), learner, source=batch(x, y))
    assert streamed_accuracy(online, [(x[:4], y[:4]), (x[4:8], y[4:8])]) > 0.8
    assert online.predict(x[:3]).shape == (3, 2, 8, 8)
    assert online.learner.memory["trace"] == ["static"] * 3 or online.learner.memory["trace"] == ["dynamic"] * 3


def test_without_source_rows_it_says_what_is_missing():
    with pytest.raises(AcclimateError, match="pass source="):
        Online(load("test_time.onda"), Learner(nn.Linear(4, 4), 3, width=4))
