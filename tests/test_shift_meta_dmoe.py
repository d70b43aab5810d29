"""Meta-DMoE's episodes and streams: loss and both gradients against numpy and differences, who learns when, which expert is left out."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.checks import _shifted
from acclimate.engines.online import Online
from acclimate.engines.shift import Batch, Learner, Training, fit
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.methods.test_time.meta_dmoe import MetaDmoe
from acclimate.models.vit import Vit

WIDTH, COLUMNS, CLASSES, HEADS, SOURCES = 4, 3, 3, 2, 4


def made(**settings: object) -> tuple[Learner, MetaDmoe, Batch]:
    """A linear student, four linear experts that differ, one for each of four sources of eight rows."""
    draw = np.random.default_rng(5)
    learner = Learner(nn.Linear(COLUMNS, WIDTH, bias=False), CLASSES, width=WIDTH).double()
    learner.sources, learner.progress = SOURCES, 0.9
    method = load("test_time.meta_dmoe", num_experts=4, heads=HEADS, dropout=0.5, support=5, inner_lr=0.2, **settings)
    learner.parts.update({name: part.double() for name, part in method.build(learner).items()})
    with torch.no_grad():
        for weight in learner.parameters():
            weight.copy_(torch.from_numpy(draw.normal(0, 0.7, weight.shape)))
    x, domain = torch.from_numpy(draw.normal(size=(8 * SOURCES, COLUMNS))), torch.arange(SOURCES).repeat_interleave(8)
    batch = Batch(x, torch.from_numpy(draw.integers(CLASSES, size=len(x))), domain, torch.arange(len(x)), [8] * SOURCES)
    method.begin(learner, batch, None)
    return learner, method, batch


def layer_norm(rows: np.ndarray, given: dict, name: str) -> np.ndarray:
    """Each row by its own mean and deviation."""
    normed = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-5)
    return normed * given[f"{name}.weight"] + given[f"{name}.bias"]


def aggregated(tokens: np.ndarray, given: dict) -> np.ndarray:
    """One row's experts [expert, width] -> [width]."""
    normed = layer_norm(tokens, given, "norm1")
    query, key, value = np.split(normed @ given["self_attn.in_proj_weight"].T + given["self_attn.in_proj_bias"], 3, axis=1)
    found = []
    for head in np.split(np.arange(WIDTH), HEADS):
        raw = np.exp(query[:, head] @ key[:, head].T / math.sqrt(WIDTH / HEADS))
        found.append(raw / raw.sum(1, keepdims=True) @ value[:, head])
    tokens = tokens + np.concatenate(found, 1) @ given["self_attn.out_proj.weight"].T + given["self_attn.out_proj.bias"]
    inner = layer_norm(tokens, given, "norm2") @ given["linear1.weight"].T + given["linear1.bias"]
    inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    return (tokens + inner @ given["linear2.weight"].T + given["linear2.bias"]).mean(0)


def by_hand(w: np.ndarray, given: dict, learner: Learner, x: np.ndarray, y: np.ndarray, experts: list[int]) -> float:
    """Loss of the query after one step of the linear student on five rows of support."""
    layers = [learner.parts["experts"][number][0].weight.detach().numpy() for number in experts]
    slope = np.zeros_like(w)
    for row in x[:5]:
        target = aggregated(np.stack([layer @ row for layer in layers]), given)
        slope += np.outer(2 * (w @ row - target) / (5 * WIDTH), row)
    scores = x[5:] @ (w - 0.2 * slope).T @ learner.head.weight.detach().numpy().T + learner.head.bias.detach().numpy()
    return float((np.log(np.exp(scores).sum(1)) - scores[np.arange(len(scores)), y[5:]]).mean())


def episode(learner: Learner, method: MetaDmoe, batch: Batch, seed: int) -> tuple[torch.Tensor, int]:
    """An episode's loss, and the source it is of, which the generator tells."""
    learner.generator.manual_seed(seed)
    place = int(torch.randint(SOURCES, (), generator=learner.generator))
    learner.generator.manual_seed(seed)
    learner.train()
    (loss,) = method.step(learner, batch)
    return loss, place


@pytest.mark.parametrize("mask", [True, False])
def test_an_episode_leaves_out_the_owner_and_learns_through_the_step(mask: bool) -> None:
    learner, method, batch = made(mask=mask)
    loss, place = episode(learner, method, batch, 1)
    owner = learner.memory["groups"][place]
    experts = [number for number in range(4) if not mask or number != owner]
    x, y = (batch.split(values)[place].numpy() for values in (batch.x, batch.y))
    given = {name: value.detach().numpy().copy() for name, value in learner.parts["aggregator"].blocks[0].named_parameters()}
    w = learner.featurizer.weight.detach().numpy().copy()
    assert loss.item() == pytest.approx(by_hand(w, given, learner, x, y, experts), abs=1e-9)
    loss.backward()
    assert all(weight.grad is None for weight in learner.parts["experts"].parameters())
    blocks = dict(learner.parts["aggregator"].blocks[0].named_parameters())
    checked = [(w, learner.featurizer.weight.grad), (given["linear1.weight"], blocks["linear1.weight"].grad)]
    for values, grad in checked:
        for place in np.ndindex(values.shape):
            kept = values[place]
            ends = []
            for move in (1e-5, -1e-5):
                values[place] = kept + move
                ends.append(by_hand(w, given, learner, x, y, experts))
            values[place] = kept
            assert grad[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-7)


def test_experts_learn_their_group_the_student_all_and_the_aggregator_afterwards() -> None:
    learner, method, batch = made()
    learner.progress = 0.0
    assert sorted(learner.memory["groups"]) == [0, 1, 2, 3]
    (loss,) = method.step(learner, batch)
    parts = [learner.loss(learner(batch.x), batch.y)]
    for source, group in enumerate(learner.memory["groups"]):
        rows = batch.domain == source
        parts.append(learner.loss(learner.parts["experts"][group](batch.x[rows]), batch.y[rows]))
    assert loss.item() == pytest.approx(sum(parts).item())
    learner.progress = 0.4
    (loss,) = method.step(learner, batch)
    loss.backward()
    moved = {name.split(".")[1] if name.startswith("parts") else name for name, w in learner.named_parameters() if w.grad is not None}
    assert moved == {"aggregator"}


def test_more_sources_than_experts_fall_into_groups_of_equal_size() -> None:
    learner, method = Learner(nn.Linear(3, 4), 2, width=4), MetaDmoe(num_experts=3)
    learner.sources = 12
    learner.parts.update(method.build(learner))
    method.begin(learner, object(), None)
    assert [learner.memory["groups"].count(group) for group in range(3)] == [4, 4, 4]
    held = list(learner.memory["groups"])
    learner.generator.manual_seed(9)
    method.begin(learner, object(), None)
    assert learner.memory["groups"] == held


def test_a_stream_is_predicted_after_one_step_on_its_first_rows_with_all_experts_until_reset() -> None:
    learner, method, batch = made()
    online = Online(method, learner)
    plain = learner(batch.x).detach()
    found = online.run([batch.x[:8], batch.x[8:16]])
    w, given = learner.featurizer.weight, learner.parts["aggregator"].blocks[0]
    given = {name: value.detach().numpy() for name, value in given.named_parameters()}
    slope = np.zeros(w.shape)
    for row in batch.x[:5].numpy():
        layers = [expert[0].weight.detach().numpy() for expert in learner.parts["experts"]]
        slope += np.outer(2 * (w.detach().numpy() @ row - aggregated(np.stack([e @ row for e in layers]), given)) / (5 * WIDTH), row)
    z = batch.x[:16].numpy() @ (w.detach().numpy() - 0.2 * slope).T
    expected = z @ learner.head.weight.detach().numpy().T + learner.head.bias.detach().numpy()
    assert np.allclose(torch.cat(found).numpy(), expected, atol=1e-9)
    assert torch.equal(learner(batch.x), plain)  # the student itself stays
    online.reset()
    assert not torch.allclose(online.predict(batch.x[8:16]), found[1])  # a step of its own


def test_a_killed_run_goes_on_through_all_its_parts() -> None:
    _shifted.check_resumes(MetaDmoe)


def test_episodes_run_on_attention_and_keep_running_statistics() -> None:
    data = _shifted.images()
    for net in (Vit(8, 1, 2, 4, 8, 1), _shifted.learner("images").featurizer):
        learner = Learner(net, 2)
        method = MetaDmoe(num_experts=2, expert_share=0.0, aggregator_share=0.0)
        before = copy.deepcopy(dict(learner.featurizer.named_buffers()))
        weights = copy.deepcopy(dict(learner.featurizer.named_parameters()))
        fit(method, learner, data, Training(steps=2, batch=8, lr=0.01, choose="last"))
        assert all(torch.equal(value, before[name]) for name, value in learner.featurizer.named_buffers())
        assert any(not torch.equal(value, weights[name]) for name, value in learner.featurizer.named_parameters())


def test_it_says_what_it_needs() -> None:
    with pytest.raises(AcclimateError, match="train the model with it"):
        Online(load("test_time.meta_dmoe"), Learner(nn.Linear(4, 4), 2, width=4))
    learner, method, batch = made()
    one = Batch(batch.x[::8], batch.y[::8], batch.domain[::8], torch.arange(4), [1] * 4)
    with pytest.raises(AcclimateError, match="batch above 1"):
        list(method.step(learner, one))
