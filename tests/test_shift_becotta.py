"""BECoTTA against numpy: experts, routers, L_syn and its gradient, both filters, falling back; where experts stand in other backbones."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from acclimate.engines.online import Online
from acclimate.engines.shift import Batch, Data, Learner, Pool, Training, fit
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.models.convnet import ConvNet
from acclimate.models.mlp import Mlp
from acclimate.models.segmenter import Segmenter
from acclimate.models.series import SeriesNet
from acclimate.models.vit import Vit
from acclimate.parts.corruptions import corrupt
from acclimate.parts.domain_experts import DomainExperts, means_by_domain, synergy_loss
from acclimate.parts.places import blocks


class Tokens(nn.Module):
    """Rows [row, 3, 2] as tokens; named so that they count as such."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.features = _Attention(), 2

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x).mean(1)


class _Attention(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)


def ready(**settings: object) -> tuple:
    torch.manual_seed(4)
    learner, method = Learner(Tokens(), 3), load("test_time.becotta", experts=4, top_k=2, narrow=1, **settings)
    learner.sample, learner.sources = torch.zeros(1, 3, 2), 2
    learner.parts.update(method.build(learner))
    for weight in learner.parts["experts"].parameters():
        nn.init.normal_(weight)
    method.begin(learner, None, None)
    return learner.eval(), method


def by_hand(learner: Learner, rows: np.ndarray, domain: list[int], k: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Class scores and the routers' mean scores, row by row and expert by expert."""
    block, head, made = learner.featurizer.block, learner.head, learner.parts["experts"][0]
    w, b, h, c = (v.detach().double().numpy() for v in (block.weight, block.bias, head.weight, head.bias))
    down, up, inner, outer, routers = (v.detach().double().numpy() for v in (made.down, made.up, made.inner, made.outer, made.routers))
    scores, routed = [], []
    for row, d in zip(rows, domain, strict=True):
        tokens = row @ w.T + b
        clean = (tokens @ routers[d][:4].T).sum(0)
        chosen = np.argsort(-clean)[:k]
        share = np.exp(clean[chosen] - clean[chosen].max())
        out = tokens.copy()
        for gate, e in zip(share / share.sum(), chosen, strict=True):
            hidden = tokens @ down[e].T + inner[e]
            gelu = np.vectorize(lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))))(hidden)
            out += gate * (gelu @ up[e].T + outer[e])
        scores.append(out.mean(0) @ h.T + c)
        routed.append(clean / len(tokens))
    return np.array(scores), np.array(routed)


def test_rows_take_the_experts_of_their_predicted_domains_router() -> None:
    learner, method = ready()
    rows = np.random.default_rng(0).normal(size=(6, 3, 2))
    x = torch.from_numpy(rows).float()
    told = learner.parts["discriminator"]
    with torch.no_grad():  # the rows are told apart
        gap = told(x).diff(dim=1)
        told[-1].bias[1] -= gap.median() + 1e-3
    domain = method.domain(learner, x).tolist()
    assert domain == (gap > gap.median() + 1e-3)[:, 0].long().tolist()
    assert set(domain) == {0, 1}
    wanted, _ = by_hand(learner, rows, domain)
    assert np.allclose(method.predict(learner, x).detach().numpy(), wanted, atol=1e-4)
    for given in ([0] * 6, [1, 0, 1, 0, 1, 0]):
        scores, found = method.scores(learner, x, torch.tensor(given), learner.parts["experts"])
        wanted, routed = by_hand(learner, rows, given)
        assert np.allclose(scores.detach().numpy(), wanted, atol=1e-4)
        assert np.allclose(found.detach().numpy(), routed, atol=1e-4)


def test_a_step_is_task_discriminator_and_synergy_and_routers_learn_from_each() -> None:
    learner, method = ready()
    rows, y, domain = np.random.default_rng(1).normal(size=(4, 3, 2)), [0, 1, 2, 1], [0, 0, 1, 1]
    x = torch.from_numpy(rows).float()
    batch = Batch(x, torch.tensor(y), torch.tensor(domain), torch.arange(4), [2, 2])
    (loss,) = method.step(learner, batch)  # in evaluation mode: without noise

    def entropy(scores: np.ndarray, labels: list[int]) -> float:
        return float(np.mean([np.log(np.exp(s).sum()) - s[label] for s, label in zip(scores, labels, strict=True)]))

    scores, routed = by_hand(learner, rows, domain)
    told = learner.parts["discriminator"](x).detach().double().numpy()
    m = np.stack([routed[:2].mean(0), routed[2:].mean(0)])
    m = (m - m.min()) / (m.max() - m.min())
    p_d, p_e = (np.exp(m.sum(axis)) / np.exp(m.sum(axis)).sum() for axis in (1, 0))
    synergy = -(m * np.log(m / np.outer(p_d, p_e) + 1e-4)).sum()
    assert loss.item() == pytest.approx(entropy(scores, y) + 0.1 * entropy(told, domain) + 5e-4 * synergy, abs=1e-4)

    _, found = method.scores(learner, x, batch.domain, learner.parts["experts"])
    synergy_loss(means_by_domain(found, batch.domain, 2)).backward()
    assert learner.parts["experts"][0].routers.grad[:, :4].abs().sum() > 0


def test_noise_only_while_training_and_from_the_learners_draws() -> None:
    made, x, domain = DomainExperts(2, 1, 3, 1), torch.ones(1, 5, 2), torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        made.routers.zero_()
    assert torch.equal(made.scores(x, domain), torch.zeros(1, 3))
    drawn = made.scores(x, domain, torch.Generator().manual_seed(3))
    noise = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(drawn, (noise * (math.log(2) + 0.01)).sum(1))
    learner, method = ready()
    rows = torch.rand(4, 3, 2)
    assert torch.equal(method.predict(learner, rows), method.predict(learner, rows))
    learner.train()
    assert not torch.equal(method.predict(learner, rows), method.predict(learner, rows))


def test_only_rows_that_pass_both_filters_teach_and_only_experts_learn() -> None:
    learner, method = ready(fall_back=0.0, confidence=0.5)
    x = 2 * torch.randn(32, 3, 2, generator=torch.Generator().manual_seed(1))
    online = Online(method, learner, Training(optimizer="sgd", momentum=0.0, lr=0.1))
    with torch.no_grad():  # as if it had learned before
        online.learner.parts["experts"][0].routers.mul_(-0.7)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    scores = method.predict(learner, x)
    sure, label = scores.softmax(1).max(1)
    domain = method.domain(learner, x)
    source = method.scores(learner, x, domain, learner.parts["anchor"])[0].softmax(1).amax(1)
    kept = (sure > 0.5) & (sure >= source)
    assert 0 < int(kept.sum()) < int((sure > 0.5).sum()) < len(x)
    wanted = -scores.log_softmax(1).gather(1, label[:, None])[kept].mean()
    (grad,) = torch.autograd.grad(wanted, learner.parts["experts"][0].routers)
    assert torch.equal(online.predict(x), scores.detach())  # predicted before the update
    now = learner.state_dict()
    assert torch.allclose(now["parts.experts.0.routers"], before["parts.experts.0.routers"] - 0.1 * grad, atol=1e-6)
    assert {name for name in now if not torch.equal(now[name], before[name])} == {
        f"parts.experts.0.{name}" for name in ("down", "up", "inner", "outer", "routers")
    }
    use = learner.memory["use"]
    assert use.sum(1).tolist() == pytest.approx([float((domain == d).sum()) for d in range(2)], abs=1e-4)


def test_without_a_sure_row_nothing_is_learned_and_weights_fall_back() -> None:
    learner, method = ready(fall_back=1.0, confidence=1.0)
    online = Online(method, learner)
    with torch.no_grad():
        learner.parts["experts"][0].up.add_(1.0)
    online.predict(torch.rand(4, 3, 2))
    assert online.updates == 0
    assert torch.equal(learner.parts["experts"][0].up, learner.parts["anchor"][0].up)


def test_domains_are_made_of_images() -> None:
    x, y = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    learner, method = Learner(ConvNet(4, 1), 2), load("test_time.becotta", made=("darkness", "contrast"), severity=2)
    learner.sample, learner.sources = x[:1], 2
    given = Batch(x, y, torch.tensor([0, 1]), torch.arange(2), [1, 1])
    rows, labels, domain = method.all_domains(learner, given)
    assert labels.tolist() == [0, 1] * 3
    assert domain.tolist() == [0, 3, 1, 4, 2, 5]
    assert method.domains(learner) == 6
    draw = np.random.default_rng(0)
    for number, name in enumerate(("darkness", "contrast"), 1):
        assert np.allclose(rows[2 * number : 2 * number + 2], corrupt(x.numpy(), name, 2, draw))
    with pytest.raises(AcclimateError, match="from 0 to 1"):
        method.all_domains(learner, Batch(3 * x, y, given.domain, given.rows, [1, 1]))


def test_the_discriminator_learns_the_made_domains_and_the_one_router_needs_none() -> None:
    draw = torch.Generator().manual_seed(0)
    pool = Pool("digits", 0.3 + 0.5 * torch.rand(48, 1, 8, 8, generator=draw), torch.arange(48) % 2)
    for routers, count in (("domain", 2), ("one", 1)):
        torch.manual_seed(0)
        learner, method = Learner(Vit(8, 1, 2, 4, 8, 1), 2), load("test_time.becotta", made=("darkness",), severity=5, routers=routers)
        fit(method, learner, Data([pool], classes=["a", "b"]), Training(steps=60, batch=16, lr=3e-3, choose="last"))
        assert learner.parts["experts"][0].routers.shape[0] == count
        assert method.domain(learner, pool.x).tolist() == [0] * 48
        assert method.domain(learner, 0.2 * pool.x).tolist() == [1] * 48


@pytest.mark.parametrize(
    ("backbone", "widths", "shape", "count"),
    [
        (Vit, (8, 2, 2, 4, 16), (3, 16, 16), 2),
        (ConvNet, (4,), (3, 16, 16), 3),
        (Segmenter, (4,), (3, 16, 16), 2),
        (SeriesNet, (2, 4), (2, 32), 3),
        (Mlp, (6, 8, 2), (6,), 2),
    ],
)
def test_experts_stand_after_blocks_of_every_backbone(backbone: type, widths: tuple, shape: tuple, count: int) -> None:
    net = backbone(*widths)
    assert len(blocks(net)) == count
    learner = Learner(net, 3, head="pixels" if isinstance(net, Segmenter) else "linear").eval()
    rows = torch.rand(4, *shape)
    learner.sample = rows[:1]
    plain = learner(rows)
    method = load("test_time.becotta", confidence=0.0, narrow=2)
    online = Online(method, learner, Training(lr=1e-3))
    assert torch.allclose(online.predict(rows), plain, atol=0.05)  # hardly anything at the start
    assert online.updates == 1
    with torch.no_grad():
        for made in learner.parts["experts"]:
            made.outer += torch.arange(made.outer.shape[1])  # not a constant, to which layer-norm is blind
    assert not torch.allclose(online.predict(rows), plain, atol=0.05)


def test_rows_are_needed_to_size_the_experts() -> None:
    with pytest.raises(AcclimateError, match="source="):
        Online(load("test_time.becotta"), Learner(Mlp(6, 8, 2), 3))
