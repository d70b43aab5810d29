"""DomainAdaptor on images: statistics, shares and folding against plain numpy loops, and every batch from the source model."""

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.engines.online import Online
from acclimate.engines.shift import Learner, Training
from acclimate.method import load


def normed(channels: int, draw: np.random.Generator) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels).eval()
    with torch.no_grad():
        for given in (layer.weight, layer.running_var):
            given.copy_(torch.from_numpy(draw.uniform(0.5, 2.0, channels)))
        for given in (layer.bias, layer.running_mean):
            given.copy_(torch.from_numpy(draw.normal(size=channels)))
    return layer


def by_hand(layer: nn.BatchNorm2d, x: np.ndarray) -> tuple[np.ndarray, float]:
    """The layer with statistics that are mixed directly, nothing being folded, and the source's share."""
    rows, channels = x.shape[:2]
    weight, bias, source, variance = (
        v.detach().double().numpy() for v in (layer.weight, layer.bias, layer.running_mean, layer.running_var)
    )
    mean, spread = x.mean((0, 2, 3)), x.var((0, 2, 3))
    shares = []
    for row in range(rows):
        st = it = by = 0.0
        for c in range(channels):
            own_mean, own_std = x[row, c].mean(), x[row, c].std()
            st += (mean[c] - source[c]) ** 2 + (np.sqrt(spread[c]) - np.sqrt(variance[c])) ** 2
            it += (own_mean - mean[c]) ** 2 + (own_std - np.sqrt(spread[c])) ** 2
            by += (own_mean - source[c]) ** 2 + (own_std - np.sqrt(variance[c])) ** 2
        shares.append(1 - st / (st + it + by))
    share = float(np.mean(shares))
    centre, width = share * source + (1 - share) * mean, share * variance + (1 - share) * spread
    shape = (1, channels, 1, 1)
    found = (x - centre.reshape(shape)) / np.sqrt(width.reshape(shape) + layer.eps) * weight.reshape(shape) + bias.reshape(shape)
    return found, share


def test_folded_statistics_are_the_mixed_ones_layer_after_layer():
    draw = np.random.default_rng(0)
    first, second, kernel = normed(2, draw), normed(3, draw), nn.Conv2d(2, 3, 1)
    learner = Learner(nn.Sequential(first, kernel, second, nn.Flatten()), 27, width=27, head=nn.Identity()).double().eval()
    x = draw.normal(1.0, 2.0, (4, 2, 3, 3))
    middle, one = by_hand(first, x)
    with torch.no_grad():
        passed = kernel(torch.from_numpy(middle)).numpy()
    wanted, two = by_hand(second, passed)
    found = Online(load("test_time.domain_adaptor", steps=0), learner).predict(torch.from_numpy(x))
    assert found.numpy().reshape(wanted.shape) == pytest.approx(wanted, abs=1e-9)
    assert learner.memory["shares"].tolist() == pytest.approx([one, two], abs=1e-9)
    assert 0 < one < 1


@pytest.mark.parametrize("loss", ["gem-t", "gem-skd", "gem-aug"])
def test_a_batch_adapts_and_leaves_the_source_model_behind(loss):
    draw = np.random.default_rng(1)
    learner = Learner(nn.Sequential(normed(2, draw), nn.Flatten()), 3, width=18)
    batches = torch.rand(3, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0)).unbind()
    method, before = load("test_time.domain_adaptor", loss=loss), {k: v.clone() for k, v in learner.state_dict().items()}
    online = Online(method, learner, Training(**{**method.online, "lr": 0.1}))
    alone = Online(load("test_time.domain_adaptor", steps=0), learner)
    scores = online.predict(batches[0])
    assert not torch.allclose(scores, alone.predict(batches[0]), atol=1e-4)  # it learned before it predicted
    online.predict(batches[1])
    assert all(torch.equal(before[key], value) for key, value in learner.state_dict().items())
    if loss != "gem-aug":  # whose views are drawn anew
        assert torch.equal(online.predict(batches[0]), scores)


def test_mean_and_temperature_carry_no_gradient():
    method, scores = load("test_time.domain_adaptor"), torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(method.entropy(scores, scores), scores)
    z = scores.detach().numpy()[0]
    centre, width = z.mean(), 2 * z.std(ddof=1)

    def entropy(values: np.ndarray) -> float:
        share = np.exp((values - centre) / width)
        share /= share.sum()
        return -(width**2) * float((share * np.log(share)).sum())

    steps = 1e-6 * np.eye(3)
    assert slope[0].tolist() == pytest.approx([(entropy(z + step) - entropy(z - step)) / 2e-6 for step in steps], abs=1e-6)
