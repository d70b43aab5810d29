"""Unconstrained merging: alignment of two tokenizers, the fused teacher, and the strategy over like and unlike models."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from acclimate.engines import train as engine
from acclimate.engines.candidates import alike, signature, variation, weights_of
from acclimate.engines.fused import fused_teacher
from acclimate.engines.rows import TokenRows
from acclimate.engines.score import bits_per_byte
from acclimate.engines.settings import Training
from acclimate.engines.words import Taught
from acclimate.errors import AcclimateError
from acclimate.experiments import load as experiment
from acclimate.method import load
from acclimate.models.seedling import build_tokenizer
from acclimate.parts.alignment import Vocabulary, align, carry, edit_distance, fuse, partners, relations, source_share, spellings, warp
from strategy_tools import Bench
from worlds import model_of, network, sentences


@pytest.fixture(scope="module")
def other_tokenizer():
    """Another vocabulary, smaller, from other text."""
    return build_tokenizer(sentences("kitchen", 60, 7), 300)


@pytest.fixture(scope="module")
def source(other_tokenizer):
    """A wider model with that tokenizer."""
    return model_of(network("llama", other_tokenizer, seed=5, hidden_size=48), other_tokenizer, name="source")


def words_of(tokenizer, text):
    return spellings(tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids))


# alignment


def test_edit_distance_and_the_cheapest_path_against_trying_all_paths():
    assert [edit_distance(a, b) for a, b in (("", "abc"), ("flaw", "lawn"), ("same", "same"))] == [3, 2, 0]

    def cheapest(source, target, i=0, j=0):
        here = edit_distance(source[i], target[j])
        if (i, j) == (len(source) - 1, len(target) - 1):
            return here
        steps = [(i + 1, j + 1), (i + 1, j), (i, j + 1)]
        return here + min(cheapest(source, target, a, b) for a, b in steps if a < len(source) and b < len(target))

    draw = np.random.default_rng(0)
    for _ in range(20):
        source, target = (
            ["abcd"[: draw.integers(1, 5)] + "xy"[: draw.integers(0, 3)] for _ in range(draw.integers(1, 6))] for _ in range(2)
        )
        path = warp(source, target)
        assert sum(edit_distance(source[i], target[j]) for i, j in path) == cheapest(source, target)
        assert path[0] == (0, 0)
        assert path[-1] == (len(source) - 1, len(target) - 1)
        assert {(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(path)} <= {(1, 1), (1, 0), (0, 1)}


@pytest.mark.parametrize(
    ("source", "target", "path", "kinds"),
    [
        (["a", " cat"], ["a", " cat"], [(0, 0), (1, 1)], {"exact": 2}),
        ([" ca", "ts"], [" cats"], [(0, 0), (1, 0)], {"n-1": 1}),
        ([" cats", "!"], [" ca", "ts", "!"], [(0, 0), (0, 1), (1, 2)], {"1-n": 2, "exact": 1}),
        (["ab", "cd", "e"], ["a", "bcd", "e"], [(0, 0), (1, 1), (2, 2)], {"1-1": 2, "exact": 1}),
        (["Café"], [" Cafe"], [(0, 0)], {"1-1": 1}),  # one tokenizer drops the accent and adds a space
    ],
)
def test_alignments_by_hand(source, target, path, kinds):
    assert align(source, target) == path
    assert {name: count for name, count in relations(path, source, target).items() if count} == kinds


def test_two_real_tokenizers_meet_at_every_common_border(tokenizer, other_tokenizer):
    for text in sentences("pipes", 10, 3):
        first, second = words_of(other_tokenizer, text), words_of(tokenizer, text)
        assert "".join(first) == "".join(second) == text
        path = align(first, second)
        assert {i for i, _ in path} == set(range(len(first)))
        assert {j for _, j in path} == set(range(len(second)))
        assert path == sorted(path)
        starts, others = (np.cumsum([0, *map(len, side)])[:-1] for side in (first, second))
        for i, j in path:  # tokens that meet lie on common ground: their spans overlap, or stand between the same common borders
            common = np.intersect1d(starts, others)
            assert np.searchsorted(common, starts[i], "right") == np.searchsorted(common, others[j], "right")
        facts = relations(path, first, second)
        assert sum(facts.values()) == len(second)
        assert facts["exact"] == sum(a == b for a, b in path_pairs(path, first, second))
        assert facts["exact"] > 0


def test_tokens_that_end_inside_a_character_align_by_their_bytes(tokenizer, other_tokenizer):
    text = "The boiler heats the naïve café at 5 €."
    first, second = words_of(other_tokenizer, text), words_of(tokenizer, text)
    assert "".join(first) == "".join(second) == text.encode().decode("latin-1")
    assert all(partners(align(first, second), len(second)))


def path_pairs(path, first, second):
    """The texts of tokens that meet one by one."""
    here, there = ([place for place in side] for side in zip(*path, strict=True))
    return [(first[i], second[j]) for i, j in path if here.count(i) == 1 and there.count(j) == 1]


def test_the_vocabulary_map_is_exact_then_near_then_nothing():
    target = ["cat", " house", "houses", "q", ""]
    found = Vocabulary(["cat", " houses", "zebra", "q"], target, 0.8, {3: 0})
    assert found.of(np.array([[0, 1], [2, 3]])).tolist() == [[0, 1], [-1, 0]]  # " houses" is as near to both; the first wins
    draw = np.random.default_rng(1)
    words = ["".join(draw.choice(list("abc"), draw.integers(1, 6))) for _ in range(40)]
    mapped = Vocabulary(words[:20], words[20:], 0.6).of(np.arange(20))
    for word, j in zip(words[:20], mapped.tolist(), strict=True):
        near = [1 - edit_distance(word, each) / max(len(word), len(each)) for each in words[20:]]
        assert (j == -1) == (max(near) < 0.6)
        assert j == -1 or near[j] == max(near)


def test_distributions_are_carried_by_hand():
    vocabulary = Vocabulary(["a", "b", "zz", "b"], ["b", "a", "c"], 0.9)  # source ids 1 and 3 mean the same
    ids, logprobs = np.array([[0, 1, 3], [2, 0, 1], [2, 2, 2]]), np.log(np.array([[0.5, 0.2, 0.1], [0.6, 0.3, 0.1], [0.9, 0.05, 0.05]]))
    (new, found), mass = carry(ids, logprobs, [[0], [0, 1], [], [2]], vocabulary)
    assert mass == pytest.approx([1.0, 0.6 / 0.9, 0.0, 0.0])
    assert new[0].tolist() == [1, 0, 2]
    assert np.exp(found[0]) == pytest.approx([0.5 / 0.8, 0.3 / 0.8, 0.0])
    assert np.exp(found[1]) == pytest.approx([0.4 / 0.6, 0.2 / 0.6, 0.0])  # the mean of two places: a (0.5 + 0.3) / 2, b (0.3 + 0.1) / 2
    assert all(len(set(row)) == 3 for row in new.tolist())


def test_fusion_takes_the_better_or_mixes():
    pivot, source = (np.array([[0, 1]]), np.log([[0.9, 0.1]])), (np.array([[2, 1]]), np.log([[0.6, 0.4]]))
    assert np.array_equal(fuse(pivot, source, np.array([0.0]))[0], pivot[0])
    assert np.array_equal(fuse(pivot, source, np.array([1.0]))[0], source[0])
    ids, logprobs = fuse(pivot, source, np.array([0.5]))
    assert ids.tolist() == [[0, 2]]  # 0.45 and 0.3; token 1 has 0.25 and falls out
    assert np.exp(logprobs) == pytest.approx(np.array([[0.6, 0.4]]))
    assert source_share(np.array([1.0]), np.array([3.0]), "avg_ce") == pytest.approx(np.exp(-3) / (np.exp(-1) + np.exp(-3)))
    assert partners([(0, 0), (1, 0)], 2) == [[0, 1], []]


# the fused teacher


def rows_of(domain, model, packed):
    return TokenRows(domain, model, load("objectives.distill"), width=64, seed=0, packed=packed)


@pytest.mark.parametrize("packed", [True, False])
def test_the_teacher_of_two_equal_models_is_that_model(tiny, pipes, cache, packed):
    rows = rows_of(pipes, tiny, packed)
    fused, alone = (Taught(teacher, rows, 8, "fp32") for teacher in (fused_teacher(tiny.copy("twin"), tiny, k=8), tiny))
    for index in range(3):
        k = next(k for k in range(rows.size) if rows.locate(k)[1] == index)
        labels = rows.collate([rows[k]])["labels"][0]
        (ids, logprobs), (own, theirs) = (view.at([index], len(labels), torch.device("cpu")) for view in (fused, alone))
        at = labels != -100
        theirs = theirs - theirs.logsumexp(2, keepdim=True)
        assert torch.equal(ids[0][at], own[0][at])
        torch.testing.assert_close(logprobs[0][at], theirs[0][at], atol=2e-2, rtol=0)


def test_a_source_that_knows_the_text_teaches_and_one_that_does_not_is_not_heard(tiny, source, pipes, cache):
    texts = pipes.texts("train")[:6]
    facts = fused_teacher(source, tiny, k=10, mass=0.0).net.report(texts)
    assert facts["exact"] + facts["1-1"] + facts["1-n"] + facts["n-1"] + facts["n-n"] < 1  # the end token has no text
    assert facts["covered"] > 0.9
    assert 0 < facts["carried mass"] <= facts["covered"]
    knows = engine.train(
        source, load("objectives.causal_lm"), pipes, Training(steps=60, batch_tokens=512, row_tokens=64, lr=5e-3), cache / "w"
    ).model
    heard = {
        name: fused_teacher(model, tiny, k=10).net.report(texts)["from the source"] for name, model in (("no", source), ("yes", knows))
    }
    assert heard["yes"] > 0.5 > heard["no"]
    mixed = fused_teacher(knows, tiny, k=10, fusion="avg_ce").net.report(texts)["from the source"]
    assert 0 < mixed < heard["yes"]
    ids = torch.tensor([[tiny.tokenizer.bos_token_id, *tiny.tokenizer(texts[0]).input_ids]])

    def gold(model):
        return model.net(ids).logits[0, :-1].softmax(1).gather(1, ids[0, 1:, None]).mean().item()

    for level in ("response", "token"):  # what is taught is worth more than what the pivot knew
        teacher = fused_teacher(knows, tiny, k=10, level=level)
        assert gold(teacher) > 2 * gold(tiny)


def test_settings_and_models_are_part_of_the_fingerprint(tiny, source):
    prints = [fused_teacher(source, tiny, **given).fingerprint for given in ({}, {"k": 5}, {"fusion": "avg_ce"}, {"threshold": 0.5}, {})]
    assert len(set(prints)) == 4
    assert prints[0] == prints[-1]
    encoder = model_of(source.net, source.tokenizer, kind="encoder")
    with pytest.raises(AcclimateError, match="between decoders"):
        fused_teacher(encoder, tiny)


# the strategy


FEW = {"steps": 12, "batch_tokens": 256, "row_tokens": 64, "lr": 3e-3}


def moved(model, name, seed):
    generator = torch.Generator().manual_seed(seed)
    made = model.copy(name)
    for weight in made.net.parameters():
        weight.data.add_(0.02 * torch.randn(weight.shape, generator=generator))
    made.net.eval()
    return made


@pytest.mark.parametrize("operator", ["linear", "task_arithmetic", "ties", "dare", "dare_ties"])
def test_like_models_are_merged_by_search(tiny, pipes, tmp_path, operator):
    tools = Bench(tmp_path, **FEW)
    method = load("merging.unconstrained", operator=operator, trials=9, population=4, search_bytes=800, granularity="module")
    made = method.run(tools, start=tiny, tuned=[moved(tiny, "a", 1), moved(tiny, "b", 2)], text=pipes)
    assert list(made) == ["group0", "merged"]
    assert made["merged"] is made["group0"]
    assert tools.notes["group0"]["score"] == pytest.approx(tools.bits(made["merged"], pipes, most=800), abs=1e-6)
    assert list(tools.notes["group0"]["groups"]) == ["embedding", "layer 0 attn", "layer 0 mlp", "layer 1 attn", "layer 1 mlp", "head"]
    assert ("keep" in tools.notes["group0"]["groups"]["head"]) == (operator not in ("linear", "task_arithmetic"))


def test_unlike_models_teach_the_pivot_and_the_taught_ones_are_merged(tiny, source, tokenizer, pipes, cache, tmp_path):
    third = model_of(network("llama", tokenizer, seed=8, intermediate_size=96), tokenizer, name="third")  # same tokenizer, another shape
    tools = Bench(tmp_path, **FEW)
    method = load("merging.unconstrained", trials=4, population=3, search_bytes=500, granularity="model", top_k=6)
    tuned = [moved(tiny, "a", 1), source, moved(tiny, "b", 2), third]
    made = method.run(tools, start=tiny, tuned=tuned, fuse=pipes, text=pipes)
    assert list(made) == ["group0", "group1", "group2", "group1-taught", "group2-taught", "merged"]
    assert [row["models"] for row in tools.notes["dispatch"]] == [["a", "b"], ["source"], ["third"]]
    assert [row["like the pivot"] for row in tools.notes["dispatch"]] == [True, False, False]
    for i, name in ((1, "source"), (2, "third")):
        asked = tools.trained[f"group{i}-taught"]
        assert asked["teacher"].name == f"group0 with {name}"
        assert (asked["lr"], asked["epochs"], asked["teacher_k"]) == (2e-5, 3.0, 6)
    assert tools.notes["group2-taught-alignment"]["exact"] > tools.notes["group1-taught-alignment"]["exact"] > 0
    taught = [made["group1-taught"], made["group2-taught"]]
    weights = variation(made["group0"], taught)
    for name, merged in weights_of(made["merged"]).items():
        by_hand = sum(share * weights_of(model)[name] for share, model in zip(weights[name], taught, strict=True))
        torch.testing.assert_close(merged, by_hand, atol=1e-5, rtol=1e-4)
    assert bits_per_byte(made["merged"], pipes.texts("test")).value < bits_per_byte(made["group0"], pipes.texts("test")).value


def test_groups_and_what_is_missing(tiny, source, pipes, tmp_path):
    a = moved(tiny, "a", 1)
    assert [[model.name for model in group] for group in alike([a, source, tiny])] == [["a", "tiny"], ["source"]]
    assert signature(a) == signature(tiny)
    method = load("merging.unconstrained")
    assert method.run(Bench(tmp_path, **FEW), start=tiny, tuned=[a])["merged"] is a
    with pytest.raises(AcclimateError, match="needs a start model"):
        method.run(None, start=tiny, tuned=[])
    with pytest.raises(AcclimateError, match="source is unlike tiny"):
        method.run(Bench(tmp_path, **FEW), start=tiny, tuned=[source])
    with pytest.raises(AcclimateError, match="searches weights on text"):
        method.run(Bench(tmp_path, **FEW), start=tiny, tuned=[a, tiny], fuse=pipes)


def test_through_the_engines_with_tied_weights(source, pipes, cache, tmp_path):
    from acclimate.execute import Tools as Engines
    from acclimate.experiments.fixture import tiny_model
    from acclimate.recipe import Recipe, Step
    from acclimate.runs import Run

    base = tiny_model("causal")
    models = [base, moved(base, "a", 1), moved(base, "b", 2), source, moved(source, "other", 3)]
    models[-1].net.config.model_type = "mistral"  # as if it were of another family, so that there are two to learn from
    tools = Engines(Recipe.check({"title": "test", "contamination": "off"}), Run(tmp_path / "run"))
    tools.domains["pipes"] = pipes
    for model in models:
        if model.name in ("a", "b"):
            model.save(tmp_path / model.name)
            model.source = str(tmp_path / model.name)
        tools.models[model.name] = model
    method = load("merging.unconstrained", trials=3, population=3, search_bytes=400, granularity="model", top_k=5)
    step = Step("step", "merging.unconstrained", base.name, {"fuse": "pipes", "text": "pipes"}, method, tuned=["a", "b", "source", "other"])
    step.train = {"steps": 2, "batch_tokens": 64, "row_tokens": 32}
    base.save(tmp_path / "base")
    base.source = str(tmp_path / "base")
    tools.make(step)
    made = [name for name in tools.models if name.startswith("step.")]
    assert made == [f"step.{name}" for name in ("group0", "group1", "group2", "group1-taught", "group2-taught", "merged")]
    assert tools.models["step"] is tools.models["step.merged"]
    assert tools.costs["step.group1-taught"]["steps"] == 2
    weights = variation(tools.models["step.group0"], [tools.models["step.group1-taught"], tools.models["step.group2-taught"]])
    assert "lm_head.weight" in weights  # a tied weight has two names, and either may be asked for
    assert all(sum(shares) == pytest.approx(1) for shares in weights.values())


# the experiment


def test_the_verdict_needs_both_clauses():
    module = experiment("unconstrained_merging")
    arms = {
        "average": 3.0,
        "model-wise": 2.97,
        "layer-wise": 2.96,
        "cross-entropy": 2.8,
        "cross-entropy, two averaged": 2.79,
        "fused": 2.77,
    }

    def figures(**more):
        return {arm: [value + more.get(arm, 0)] * 3 for arm, value in arms.items()}

    assert module.verdict(figures()) == "holds"
    for clause, more in enumerate(({"layer-wise": 0.035}, {"layer-wise": 0.0125, "fused": 0.0}, {"fused": 0.021}), 1):
        assert module.verdict(figures(**more)) == "does_not_hold", clause
    one = figures()
    one["fused"] = [2.7, 2.7, 2.795]
    assert module.verdict(one) == "does_not_hold"
    assert "at least -0.0050 below the better control: not met" in module.why(one)
    for part in ("by 0.01 or more", "at most 0.002 above"):
        assert part in " ".join(module.CRITERION.split())


def test_a_new_vocabulary_keeps_what_old_tokens_meant(tokenizer, tiny):
    module = experiment("unconstrained_merging")
    made = module.revocabulated(tiny, sentences("kitchen", 60), 320)
    assert len(made.tokenizer) == made.net.config.vocab_size == made.net.get_input_embeddings().weight.shape[0] < len(tokenizer)
    old, new = tiny.tokenizer.get_vocab(), made.tokenizer.get_vocab()
    for token in ("<|begin|>", "e", "Ġthe"):
        assert torch.equal(made.net.get_input_embeddings().weight[new[token]], tiny.net.get_input_embeddings().weight[old[token]])
    word = next(token for token in new if token not in old and token.isascii() and len(token) > 3)
    ids = tiny.tokenizer(word, add_special_tokens=False).input_ids
    mean = tiny.net.get_input_embeddings().weight[ids].mean(0)
    torch.testing.assert_close(made.net.get_input_embeddings().weight[new[word]], mean)
