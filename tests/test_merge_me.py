"""MergeME: what is merged and what becomes an expert, both paths on tiny models, refusals, and the experiment."""

import copy

import pytest
import torch

from acclimate.domain import Domain
from acclimate.engines.train import Training, train
from acclimate.errors import AcclimateError
from acclimate.experiments import load as experiment
from acclimate.experiments.fixture import documents
from acclimate.method import load
from acclimate.models.moe import layers_of
from strategy_tools import Bench
from worlds import model_of, network, sentences


@pytest.fixture
def tools(tmp_path, cache):
    return Bench(tmp_path / "work", seed=3, steps=2, row_tokens=64)


@pytest.fixture(scope="module")
def models(tokenizer):
    """A base and two tunes of it that differ from it in every weight."""
    base = network("llama", tokenizer, tie_word_embeddings=True)
    found = [base]
    for seed in (1, 2):
        tune, generator = copy.deepcopy(base), torch.Generator().manual_seed(seed)
        for weight in tune.parameters():
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
        found.append(tune)
    return [model_of(net, tokenizer, name=name) for net, name in zip(found, ("base", "pipes", "kitchen"), strict=True)]


@pytest.fixture(scope="module")
def domains():
    return {topic: Domain.from_texts(topic, sentences(topic, 30)) for topic in ("pipes", "kitchen")}


def run(tools, models, domains=None, **settings):
    return load("merging.merge_me", **settings).run(tools, start=models[0], tuned=models[1:], **(domains or {}))


@pytest.mark.parametrize("merge", ["ties", "dare", "mean"])
def test_feed_forward_layers_are_kept_and_everything_else_is_merged(tools, models, merge):
    net = run(tools, models, merge=merge)["moe"].net
    for number, model in enumerate(models):
        for layer, dense in zip(layers_of(net.body), layers_of(model.net), strict=True):
            mine, theirs = layer.mlp.experts[number].state_dict(), dense.mlp.state_dict()
            assert all(torch.equal(mine[name], weight) for name, weight in theirs.items())
    name = "model.layers.0.self_attn.q_proj.weight"
    base, first, second = (model.net.get_parameter(name) for model in models)
    merged = net.body.get_parameter(name)
    if merge == "mean":
        assert torch.allclose(merged, (base + first + second) / 3, atol=1e-6)
    elif merge == "ties":  # a change is kept if large enough; then changes of the elected sign are added, times one half
        changes = torch.stack([first - base, second - base])
        largest = round(0.8 * base.numel())
        kept = torch.stack([change * (change.abs() >= change.abs().flatten().topk(largest).values[-1]) for change in changes])
        sign = torch.where(kept.sum(0) < 0, -1.0, 1.0)
        assert torch.allclose(merged, base + (kept * (kept * sign > 0)).sum(0) / 2, atol=1e-5)
    else:
        changes = torch.stack([first - base, second - base]) / 0.8
        options = [base + (a * changes[0] + b * changes[1]) / 2 for a in (0, 1) for b in (0, 1)]
        assert torch.stack([(merged - option).abs() for option in options]).min(0).values.max() < 1e-5
        assert not torch.equal(merged, options[-1])
    assert torch.equal(net.judges[2].get_parameter(name), second)  # a judge is the dense expert


def test_an_expert_serves_its_own_text(tools, models, domains, tokenizer):
    plan = Training(steps=40, batch_tokens=512, row_tokens=64, lr=1e-2, watch_every=1000)
    tunes = [train(models[0], load("objectives.causal_lm"), domain, plan, tools.folder / name).model for name, domain in domains.items()]
    tunes = [tune.copy(name) for tune, name in zip(tunes, domains, strict=True)]
    made = run(tools, [models[0], *tunes], domains, top_k=1, prompt_tokens=16)["moe"]
    shares = tools.notes["router"]
    assert shares["pipes"][1] > 0.8
    assert shares["kitchen"][2] > 0.8
    random = run(tools, [models[0], *tunes], domains, merge="mean", routing="linear")["moe"]
    for domain in domains.values():
        assert tools.bits(made, domain) < min(tools.bits(models[0], domain), tools.bits(random, domain))


def test_without_the_base_as_an_expert(tools, models):
    net = run(tools, models, base_expert=False, merge="mean")["moe"].net
    assert net.config.experts == 2
    name = "model.norm.weight"
    assert torch.allclose(net.body.get_parameter(name), (models[1].net.get_parameter(name) + models[2].net.get_parameter(name)) / 2)


def test_separate_attention_is_a_choice_or_measured(tools, models, domains):
    net = run(tools, models, attention="separate")["moe"].net
    own = layers_of(net.body)[1].self_attn.experts[2].q_proj.weight
    assert torch.equal(own, layers_of(models[2].net)[1].self_attn.q_proj.weight)
    net = run(tools, models, domains, attention="auto")["moe"].net
    bits = tools.notes["attention"]
    assert net.config.separate_attention == (bits["separate"] < bits["merged"])


@pytest.mark.parametrize("finetune", ["router", "all"])
def test_fine_tuning(tools, models, domains, finetune):
    made = run(tools, models, domains, routing="linear", finetune=finetune, steps=5)
    assert list(made) == ["moe", "tuned"]
    before, after = (model.net.state_dict() for model in made.values())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all((".gate." in name) for name in changed) == (finetune == "router")
    asked = tools.trained["tuned"]
    assert (asked["steps"], asked["lr"]) == (5, 1e-3 if finetune == "router" else 1e-4)
    assert set(made["tuned"].notes["made"]["data"]) == set(domains)


def test_experts_of_another_width_get_projectors_and_two_phases(tools, models, domains, tokenizer):
    thin = model_of(network("llama", tokenizer, 7, hidden_size=16, num_hidden_layers=1), tokenizer, name="thin")
    made = run(tools, [*models[:2], thin], domains)
    assert list(made) == ["moe", "bridges", "tuned"]
    start, bridges, tuned = (model.net.state_dict() for model in made.values())
    first = {name.partition(".")[0] for name in start if name != "told" and not torch.equal(start[name], bridges[name])}
    assert first == {"into", "out", "router"}
    second = {name.partition(".")[0] for name in start if not torch.equal(bridges[name], tuned[name])}
    assert second == {"into", "out", "router", "embed", "head", "bodies", "told"}
    assert len(tools.notes["router"]["pipes"]) == 3
    assert made["tuned"].probe().shape[1] == len(tokenizer)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"finetune": "all"}, "fine-tuning needs text"),
        ({"attention": "auto"}, "attention = auto compares needs text"),
        ({"experts": "whole"}, "projectors needs text"),
        ({"finetune": "router"}, "routing = ppl has nothing to learn"),
    ],
)
def test_what_lacks_is_one_clear_line(tools, models, domains, settings, said):
    given = domains if settings == {"finetune": "router"} else None
    with pytest.raises(AcclimateError, match=said):
        run(tools, models, given, **settings)


def test_tunes_are_needed(tools, models):
    with pytest.raises(AcclimateError, match="from:"):
        run(tools, models[:1])


# the experiment


def test_only_what_follows_the_prompt_is_scored(models):
    module = experiment("merge_me")
    tokenizer, net = models[0].tokenizer, models[0].net
    texts = [text for text in documents("legal", 6) if len(tokenizer(text).input_ids) >= 24]
    found = module.continuation_loss(models[0], texts, prompt=8, width=24)
    rows = torch.tensor([[0, *tokenizer(text, add_special_tokens=False).input_ids][:24] for text in texts])
    with torch.no_grad():
        wanted = torch.nn.functional.cross_entropy(net(input_ids=rows).logits[:, 7:-1].flatten(0, 1), rows[:, 8:].flatten())
    assert found == pytest.approx(wanted.item(), rel=1e-5)


def test_the_tiny_experiment_gives_every_arm(tmp_path, cache):
    module = experiment("merge_me")
    found = module.run(0, True, tmp_path)
    assert set(found["arms"]) == set(module.ARMS)
    assert module.run(0, True, tmp_path) == found  # from what is kept


LOSS = {
    "BTX + random router": 3.9, "BTX + PPL": 3.6, "TIES + PPL": 3.5, "DARE + PPL": 3.5, "BTX tuned": 3.3, "TIES tuned": 3.2,
    "DARE tuned": 3.2, "three whole": 4.2, "four whole": 4.1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("number", "changed"),
    [
        (1, {"BTX + random router": 3.51, "BTX + PPL": 3.505}),  # careful merging gains, but too little
        (2, {"BTX + PPL": 3.95}),
        (3, {"BTX + PPL": 3.45}),
        (4, {"DARE tuned": 3.5}),
        (5, {"four whole": 4.3}),
    ],
)
def test_the_verdict_needs_every_clause(number, changed):
    module = experiment("merge_me")
    figures = {arm: [value] * 3 for arm, value in LOSS.items()}
    assert set(LOSS) <= set(module.ARMS)
    assert module.verdict(figures) == "holds"
    figures |= {arm: [value] * 3 for arm, value in changed.items()}
    assert [n for n, (_, met) in enumerate(module.clauses(figures), 1) if not met] == [number]
    assert module.verdict(figures) == "does_not_hold"
    assert f"({number}) " in module.why(figures).partition(": not met")[0].rpartition("; ")[2]


def test_one_seed_that_fails_is_enough_to_fail():
    module = experiment("merge_me")
    figures = {arm: [value] * 3 for arm, value in LOSS.items()}
    figures["BTX + random router"] = [3.9, 3.9, 3.59]
    assert [met for _, met in module.clauses(figures)] == [True, False, True, True, True]


def test_the_criterion_states_the_numbers_that_are_applied():
    module = experiment("merge_me")
    assert "at least 0.02 below" in " ".join(module.CRITERION.split())
    assert module.MARGIN == 0.02
