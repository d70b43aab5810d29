"""The diffusion maths against rows whose noise can be told exactly, and the networks' shapes."""

import pytest
import torch

from acclimate.engines.shift import Data, Learner, Pool, Training, fit
from acclimate.errors import AcclimateError
from acclimate.models.unet import UNet, noise_net
from acclimate.parts.diffusion import Chain, ddpm, drawn, noise_loss, noised, projected

MEAN, DEVIATION = 0.2, 0.2
CHAIN = Chain.of(1000, 500)


def exact(x, t, y=None):
    """The noise expected in a row of N(MEAN, DEVIATION^2): sqrt(1 - left) (x - sqrt(left) MEAN) / (left DEVIATION^2 + 1 - left)."""
    left = Chain.of(1000).left[t].view(-1, 1)
    return (1 - left).sqrt() * (x - left.sqrt() * MEAN) / (left * DEVIATION**2 + 1 - left)


@pytest.mark.parametrize("random", [True, False])
def test_rows_of_a_known_normal_are_drawn_as_such(random):
    draw = torch.Generator().manual_seed(0)
    rows = drawn(exact, torch.randn(20_000, 1, generator=draw), None, CHAIN, draw if random else None)
    assert abs(rows.mean() - MEAN) < 0.01
    assert abs(rows.std() - DEVIATION) < 0.01


def test_guidance_moves_the_mean_to_where_the_classifier_is_surer():
    """p(class | x) as exp(2 x): the posterior of N(m, s^2) has the mean m + 2 s^2; the slope at x_t is 2 sqrt(left) s^2 / (...)."""
    draw = torch.Generator().manual_seed(0)

    def slope(x, t):
        left = Chain.of(1000).left[t].view(-1, 1)
        return 2 * left.sqrt() * DEVIATION**2 / (left * DEVIATION**2 + 1 - left)

    rows = drawn(exact, torch.randn(20_000, 1, generator=draw), None, CHAIN, draw, slope=slope)
    assert abs(rows.mean() - (MEAN + 2 * DEVIATION**2)) < 0.01


def test_one_step_back_is_the_posterior():
    """Bayes on a grid: N(x; sqrt(1 - rate) z, rate) N(z; sqrt(before) x_0, 1 - before)."""
    left, before, x, first = (torch.tensor(v, dtype=torch.float64) for v in (0.3, 0.45, 0.7, -0.4))
    z = torch.linspace(-8, 8, 200_001, dtype=torch.float64)
    share = left / before
    weight = (-(x - share.sqrt() * z).square() / (2 * (1 - share)) - (z - before.sqrt() * first).square() / (2 * (1 - before))).softmax(0)
    mean = (weight * z).sum()
    deviation = (weight * (z - mean).square()).sum().sqrt()
    found = [ddpm(x, first, left, before, torch.tensor(v, dtype=torch.float64)) for v in (0.0, 1.0)]
    assert torch.allclose(found[0], mean, atol=1e-6)
    assert torch.allclose(found[1] - found[0], deviation, atol=1e-6)


def test_only_the_tail_carries_gradients():
    weight = torch.tensor(1.0, requires_grad=True)
    net = lambda x, t, y: weight * exact(x, t)  # noqa: E731
    noise = torch.randn(5, 1, generator=torch.Generator().manual_seed(0))
    assert not drawn(net, noise, None, Chain.of(1000, 10)).requires_grad
    slopes = []
    for tail in (1, 3):
        (slope,) = torch.autograd.grad(drawn(net, noise, None, Chain.of(1000, 10), tail=tail).sum(), weight)
        slopes.append(slope.item())
    assert slopes[0] != slopes[1]
    assert 0 not in slopes


def test_projection_does_not_depend_on_the_batch():
    draw = torch.Generator().manual_seed(0)
    x, noise = torch.randn(6, 3, generator=draw), torch.randn(11, 6, 3, generator=draw)
    whole = projected(exact, x, noise, CHAIN, 4, 0.2)
    alone = torch.cat([projected(exact, x[row : row + 1], noise[:, row : row + 1], CHAIN, 4, 0.2) for row in range(6)])
    assert torch.allclose(whole, alone, atol=1e-6)
    free = projected(exact, x, noise, CHAIN, 4, 0.0)
    assert (whole - x).norm() < (free - x).norm()  # guidance keeps rows nearer to what they were


def test_networks_learn_to_tell_noise_through_the_engine():
    class Denoise:
        """The loss of a diffusion model as a method's step."""

        name, training, source_free = "denoise", {}, staticmethod(lambda: True)

        def build(self, learner):
            return {"generator": noise_net(learner.sample, 2, 16)}

        def begin(self, learner, source, target):
            learner.parts["generator"].fit_range(target.x)

        def refresh(self, learner, source, target): ...
        def end(self, learner, source, target): ...

        def step(self, learner, target):
            net = learner.parts["generator"]
            yield noise_loss(net, net.scaled(target.x), None, Chain.of(), learner.generator), "generator"

    for shape in ((1, 8, 8), (4,)):
        rows = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)).repeat(32, *[1] * len(shape))
        rows += 0.01 * torch.rand(rows.shape)
        learner = Learner(torch.nn.Flatten(), 2, width=rows[0].numel())
        fitted = fit(Denoise(), learner, Data(target=Pool("rows", rows)), Training(steps=200, lr=3e-3, choose="last"))
        assert fitted.curve[-1][1] < 0.5 * fitted.curve[0][1], shape


def test_the_unet_has_a_middle_and_says_what_it_takes():
    net = UNet(3, 2, 16)
    assert net.inside(torch.zeros(2, 3, 16, 16), torch.tensor([1, 50])).shape == (2, 32, 4, 4)
    with pytest.raises(AcclimateError, match="multiples of 4"):
        net(torch.zeros(1, 3, 10, 10), torch.tensor([1]))
    with pytest.raises(AcclimateError, match="never trained"):
        net.scaled(torch.zeros(1))
    x = noised(torch.ones(2, 1), torch.zeros(2, 1), torch.tensor([1.0, 0.25]))
    assert x.flatten().tolist() == [1.0, 0.5]
