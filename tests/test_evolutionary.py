"""Evolutionary merging: layer groups, genomes, routes, the routed decoder, and the strategy on tiny models."""

import copy
import json

import numpy as np
import pytest
import torch

from acclimate.checks import tiny as small
from acclimate.engines.candidates import Blend, signature, variation, weights_of
from acclimate.engines.score import bits_per_byte
from acclimate.errors import AcclimateError
from acclimate.experiments import load as experiment
from acclimate.measure import limited
from acclimate.method import load
from acclimate.model import Model
from acclimate.models import routed
from acclimate.parts import layer_groups, routes
from acclimate.parts.routes import Route
from strategy_tools import Bench
from worlds import model_of, network


def changed(model, name, seed, size=0.05):
    """A tune of a model: every weight moved a little, at random."""
    generator = torch.Generator().manual_seed(seed)
    made = model.copy(name)
    for weight in made.net.parameters():
        weight.data.add_(size * weight.data.std().nan_to_num(1.0) * torch.randn(weight.shape, generator=generator))
    made.net.eval()
    return made


@pytest.fixture
def trio(tiny):
    return tiny, changed(tiny, "a", 1), changed(tiny, "b", 2)


# layer groups and genomes


def test_every_weight_of_every_family_has_a_group():
    for family, layers in (("decoder", 2), ("fused_decoder", 2), ("encoder", 2)):
        names = list(dict(small.FAMILIES[family]().named_parameters()))
        found = layer_groups.groups(names)
        assert found[: layers + 1] == ["embedding", *(f"layer {i}" for i in range(layers))]
        assert found[layers + 1 :] == ["head"]
        modules = layer_groups.groups(names, "module")
        assert modules[1:3] == ["layer 0 attn", "layer 0 mlp"]
        assert layer_groups.groups(names, "model") == ["model"]
        assert layer_groups.groups(names, size=2) == ["embedding", "layer 0-1", "head"]
    with pytest.raises(AcclimateError, match="granularity"):
        layer_groups.group_of("x", "tensor")


def test_a_genome_is_one_weight_and_one_share_per_group_and_model(trio):
    base, *tuned = trio
    blend = Blend(load("merging.dare"), base, tuned)
    assert len(blend.names) == 4 * 2 * 2  # embedding, two layers, head; weight and share; two models
    assert blend.names[0] == "embedding: weights of a"
    assert blend.names[-1] == "head: keep of b"
    genome = np.arange(16) / 10 - 0.4
    settings = blend.settings(genome)
    assert settings("model.embed_tokens.weight") == {"weights": pytest.approx([0.4, 0.3]), "keep": pytest.approx([0.2, 0.1])}
    assert settings("model.norm.weight") == {"weights": pytest.approx([0.8, 0.9]), "keep": pytest.approx([1.0, 1.0])}
    assert Blend(load("merging.dare"), base, tuned, signed=True).settings(genome)("lm_head.weight")["weights"] == pytest.approx([0.8, 0.9])
    assert Blend(load("merging.dare"), base, tuned, signed=True).recipe(genome)["embedding"]["weights"] == pytest.approx([-0.4, -0.3])
    assert Blend(load("merging.linear"), None, tuned).kinds == ["weights"]


def test_a_blend_is_the_merge_of_each_group_by_hand(trio):
    base, a, b = trio
    blend = Blend(load("merging.task_arithmetic", scale=1.0), base, [a, b])
    weights = np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.3, 0.2]])
    model = blend.model(weights.reshape(-1))
    start, left, right = (weights_of(each) for each in (base, a, b))
    for name, merged in weights_of(model).items():
        u, v = weights[blend.groups.index(layer_groups.group_of(name))]
        by_hand = start[name] + u * (left[name] - start[name]) + v * (right[name] - start[name])
        torch.testing.assert_close(merged, by_hand, atol=1e-6, rtol=1e-5)
    before = model.fingerprint
    assert blend.model(np.zeros(8)).fingerprint == base.fingerprint != before
    assert blend.model(weights.reshape(-1)).fingerprint == before  # the same genome, the same model


def test_blends_of_unlike_models_are_refused(trio, tokenizer):
    wide = model_of(network("llama", tokenizer, hidden_size=48), tokenizer, name="wide")
    assert signature(wide) != signature(trio[0]) == signature(trio[1])
    with pytest.raises(AcclimateError, match="a, wide differ in shape"):
        Blend(load("merging.linear"), None, [trio[1], wide])


def test_variation_by_hand(trio):
    base, a, b = trio
    found = variation(base, [a, b])
    name = "model.layers.0.mlp.up_proj.weight"
    squares = [(weights_of(m)[name] - weights_of(base)[name]).double().square().mean().item() for m in (a, b)]
    assert found[name] == pytest.approx([squares[0] / sum(squares), squares[1] / sum(squares)])
    assert variation(base, [base, base])[name] == [0.5, 0.5]


# routes


def test_the_first_route_is_model_a_for_any_size():
    for length, pool, repeats in ((1, 2, 2), (2, 4, 1), (6, 12, 3)):
        for scales in ("matrix", "network"):
            genome = routes.start(length, pool, repeats, scales)
            assert len(genome) == len(routes.genes(pool, repeats, scales))
            assert routes.decode(genome, length, pool, repeats, scales) == Route(tuple(range(length)), (1.0,) * length)


def test_the_ends_stay_and_scales_follow_the_pairs():
    pool, repeats = 4, 2
    genome = routes.start(2, pool, repeats)
    genome[: pool * repeats] = 1.0  # everything on
    genome[pool * repeats :] = np.arange(16)
    route = routes.decode(genome, 2, pool, repeats)
    assert route.layers == (0, 0, 1, 2, 3, 0, 1, 2, 3, 1)
    assert route.scales == (1.0, *(float(4 * i + j) for i, j in zip(route.layers, route.layers[1:], strict=False)))
    assert not route.plain
    genome[: pool * repeats] = -1.0
    assert routes.decode(genome, 2, pool, repeats).layers == (0, 1)
    network_genome = routes.start(2, pool, repeats, "network")
    network_genome[-1] = 0.5
    network_genome[: pool * repeats] = 1.0
    assert len(set(routes.decode(network_genome, 2, pool, repeats, "network").scales)) > 3
    with pytest.raises(AcclimateError, match="finite"):
        Route((0,), (float("inf"),))


# the routed decoder

ROUTES = {
    "model A": Route((0, 1), (1.0, 1.0)),
    "stacked": Route((0, 2, 3, 2, 1), (1.0,) * 5),
    "scaled": Route((0, 2, 3, 0, 1), (1.0, 0.5, 1.3, -0.8, 1.1)),
}


@pytest.fixture
def pair(tiny):
    a, b = tiny.copy("a"), changed(tiny, "b", 3, size=0.5)
    a.net.eval()
    for model in (a, b):
        model.net.config.rms_norm_eps = 0.0
        for part in model.net.modules():
            if hasattr(part, "variance_epsilon"):
                part.variance_epsilon = 1e-12  # scales fold exactly but for this
    return a, b


def by_hand(model, pool, route, ids):
    """The layers one by one, without the wrapper: full attention over the whole text."""
    body = model.net.model
    hidden = body.embed_tokens(ids)
    places = torch.arange(ids.shape[1])[None]
    rotary = body.rotary_emb(hidden, position_ids=places)
    mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None, None]
    for layer, scale in zip(route.layers, route.scales, strict=True):
        hidden = pool[layer](hidden * scale, attention_mask=mask, position_embeddings=rotary, position_ids=places)
    return model.net.lm_head(body.norm(hidden))


@pytest.mark.parametrize("name", ROUTES)
@torch.no_grad()
def test_a_route_is_its_layers_one_by_one(pair, name):
    a, b = pair
    pool, ids = routed.pool_of(a, b), torch.tensor([[5, 9, 3, 17, 8, 30, 11]])
    model = routed.routed(a, pool, ROUTES[name])
    full = model.net(ids).logits
    torch.testing.assert_close(full, by_hand(a, pool, ROUTES[name], ids), atol=1e-5, rtol=1e-4)
    # token by token: every slot has its own cache, also where a layer runs twice
    out = model.net(ids[:, :3], use_cache=True)
    parts, cache = [out.logits], out.past_key_values
    for t in range(3, ids.shape[1]):
        out = model.net(ids[:, t : t + 1], past_key_values=cache, use_cache=True)
        parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), full, atol=1e-5, rtol=1e-4)
    assert len(cache.layers) == len(ROUTES[name].layers)
    # as an ordinary model
    plain = routed.plain(model)
    torch.testing.assert_close(plain.net(ids).logits, full, atol=1e-4, rtol=1e-3)
    assert torch.equal(
        model.net.generate(ids, max_new_tokens=6, do_sample=False), plain.net.generate(ids, max_new_tokens=6, do_sample=False)
    )
    # the owners of the layers are as they were
    assert len(a.net.model.layers) == a.net.config.num_hidden_layers == 2
    assert a.net.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 10)
    assert [layer.self_attn.layer_idx for layer in pool] == [0, 1, 0, 1]


def test_the_first_route_scores_as_model_a(pair, pipes):
    a, b = pair
    texts = pipes.texts("test")
    same = routed.routed(a, routed.pool_of(a, b), ROUTES["model A"])
    assert bits_per_byte(same, texts).value == bits_per_byte(a, texts).value
    other = routed.routed(a, routed.pool_of(a, b), ROUTES["scaled"])
    assert same.fingerprint != other.fingerprint != a.fingerprint  # the route is part of what a model is
    assert copy.deepcopy(other.net).model.layers.route == ROUTES["scaled"]


@torch.no_grad()
def test_saved_and_loaded_by_parts_or_as_an_ordinary_model(pair, tmp_path):
    a, b = pair
    ids = torch.tensor([[5, 9, 3, 17, 8, 30, 11]])
    model = routed.routed(a, routed.pool_of(a, b), ROUTES["scaled"], "winding")
    again = routed.load(routed.save(model, tmp_path / "routed"))
    assert again.name == "winding"
    assert len(again.net.model.layers.pool) == 4  # each layer once: 0, 1, 2, 3
    with_eps = routed.routed(again, again.net.model.layers.pool, again.net.model.layers.route)
    torch.testing.assert_close(again.net(ids).logits, with_eps.net(ids).logits)
    torch.testing.assert_close(again.net(ids).logits, model.net(ids).logits, atol=1e-4, rtol=1e-3)
    plain = routed.plain(model)
    plain.save(tmp_path / "plain")
    torch.testing.assert_close(Model.load(str(tmp_path / "plain")).net(ids).logits, plain.net(ids).logits)
    assert Model.load(str(tmp_path / "plain")).net.config.num_hidden_layers == 5


def test_what_cannot_be_routed_is_one_line(pair, tokenizer):
    a, _ = pair
    with pytest.raises(AcclimateError, match="layer 9, but the pool has layers 0 to 1"):
        routed.routed(a, routed.pool_of(a), Route((9,), (1.0,)))
    with pytest.raises(AcclimateError, match="cannot be folded"):
        routed.plain(routed.routed(a, routed.pool_of(a), Route((0, 1), (1.0, 0.0))))
    with pytest.raises(AcclimateError, match="one family and one width"):
        routed.pool_of(a, model_of(network("llama", tokenizer, hidden_size=48), tokenizer, name="wide"))
    with pytest.raises(AcclimateError, match=r"model\.layers"):
        routed.pool_of(model_of(network("gpt2", tokenizer), tokenizer))
    with pytest.raises(AcclimateError, match="ordinary"):
        routed.plain(a)


# the strategy


def test_weights_are_searched_and_the_winner_is_merged(trio, pipes, kitchen, tmp_path):
    base, a, b = trio
    tools = Bench(tmp_path)
    method = load("merging.evolutionary", trials=30, search_bytes=1500)
    made = method.run(tools, start=base, tuned=[a, b], one=pipes, two=kitchen)
    assert list(made) == ["ps"]
    note = tools.notes["ps"]
    assert note["score"] < note["start_score"]
    domains = {"one": pipes, "two": kitchen}
    assert np.mean(method.scores(tools, made["ps"], domains)) == pytest.approx(note["score"], abs=1e-6)  # what was scored is what is merged
    assert note["held out"]["one"]["best"] == pytest.approx(tools.bits(made["ps"], pipes, split="test"))
    assert set(note["groups"]) == {"embedding", "layer 0", "layer 1", "head"}
    assert signature(made["ps"]) == signature(base)


def test_routes_are_searched_from_model_a(trio, pipes, tmp_path):
    base, a, b = trio
    tools = Bench(tmp_path)
    method = load("merging.evolutionary", space="dfs", route_trials=24, route_population=8, repeats=2, search_bytes=1500)
    made = method.run(tools, start=base, tuned=[a, b], text=pipes)
    note = tools.notes["dfs"]
    assert note["start_score"] == pytest.approx(tools.bits(a, pipes, most=1500))
    assert note["score"] <= note["start_score"]
    assert tools.bits(made["dfs"], pipes, most=1500) == pytest.approx(note["score"], abs=2e-3)  # but for the norms' epsilon
    assert made["dfs"].net.config.num_hidden_layers == len(note["layers"]) == len(note["scales"])
    assert (note["layers"][0], note["layers"][-1]) == (0, 1)


def test_both_spaces_and_a_front(trio, pipes, kitchen, tmp_path):
    base, a, b = trio
    tools = Bench(tmp_path)
    few = {"trials": 5, "population": 4, "route_trials": 4, "route_population": 3, "search_bytes": 800}
    made = load("merging.evolutionary", space="ps_dfs", **few).run(tools, start=base, tuned=[a, b], text=pipes)
    assert list(made) == ["ps", "dfs"]
    assert tools.notes["dfs"]["start_score"] == pytest.approx(tools.bits(made["ps"], pipes, most=800))
    tools = Bench(tmp_path / "front")
    found = load("merging.evolutionary", algorithm="nsga2", **few).run(tools, start=base, tuned=[a, b], one=pipes, two=kitchen)
    assert np.array(tools.notes["ps"]["front"]).shape[1] == 2
    assert list(found) == ["ps"]


def test_what_is_missing_is_said(trio, pipes):
    base, a, b = trio
    for given in ({"start": base, "tuned": [a], "text": pipes}, {"start": base, "tuned": [a, b]}, {"tuned": [a, b], "text": pipes}):
        with pytest.raises(AcclimateError, match="needs two tunes of one base and text"):
            load("merging.evolutionary").run(None, **given)
    with pytest.raises(AcclimateError, match="partner = 3, but there are 2"):
        load("merging.evolutionary", partner=3).run(None, start=base, tuned=[a, b], text=pipes)


def test_through_the_engines_from_disk_and_again_from_the_run_directory(trio, pipes, kitchen, tmp_path, cache):
    from acclimate.execute import Tools as Engines
    from acclimate.recipe import Recipe, Step
    from acclimate.runs import Run

    def make():
        tools = Engines(Recipe.check({"title": "test", "seed": 3, "contamination": "off"}), Run(tmp_path / "run", 3))
        tools.domains |= {"pipes": pipes, "kitchen": kitchen}
        for model in trio:
            if not (tmp_path / model.name).exists():
                model.save(tmp_path / model.name)
            tools.models[model.name] = Model.load(str(tmp_path / model.name))
        few = {"trials": 8, "population": 4, "route_trials": 4, "route_population": 3, "search_bytes": 800}
        method = load("merging.evolutionary", space="ps_dfs", **few)
        tools.make(Step("step", "merging.evolutionary", "tiny", {"one": "pipes", "two": "kitchen"}, method, tuned=["a", "b"]))
        return tools

    tools = make()
    note = json.loads((tmp_path / "run" / "notes" / "step.ps.json").read_text())
    texts = {name: limited(tools.domain(name), "validation", 800) for name in ("pipes", "kitchen")}
    score = np.mean([bits_per_byte(tools.models["step.ps"], text).value for text in texts.values()])
    assert score == pytest.approx(note["score"], abs=1e-6)  # the merge from disk is the one that won the search in memory
    assert tools.models["step"] is tools.models["step.dfs"]
    logs = sorted((tmp_path / "run").rglob("*.jsonl"))
    lines = [len(path.read_text().splitlines()) for path in logs]
    assert make().models["step"].fingerprint == tools.models["step"].fingerprint
    assert [len(path.read_text().splitlines()) for path in logs] == lines  # nothing was tried again


# the experiment


def test_the_verdict_needs_every_clause():
    module = experiment("evolutionary_merging")
    arms = {"maths": 3.0, "best by hand": 2.9, "PS": 2.88, "PS+DFS": 2.882, "DFS": 3.001}

    def figures(**more):
        return {arm: [value + more.get(arm, 0)] * 3 for arm, value in arms.items()}

    assert module.verdict(figures()) == "holds"
    for more in ({"PS": 0.011}, {"PS+DFS": 0.004}, {"DFS": 0.005}):
        assert module.verdict(figures(**more)) == "does_not_hold"
    one = figures()
    one["PS"] = [2.8, 2.8, 2.901]
    assert module.clauses(one)[0][1] is False
    for part in ("by 0.01 or more", "at most 0.005 above", "more than 0.005 in any seed"):
        assert part in " ".join(module.CRITERION.split())
