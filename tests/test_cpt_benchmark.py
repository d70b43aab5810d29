"""Continual pretraining in turn: orders, what each domain is learned from, the table by hand, what is told, recipes, the experiment."""

from pathlib import Path

import numpy as np
import pytest
import torch

from acclimate import datasets, shifts
from acclimate.domain import Domain
from acclimate.engines.score import bits_per_byte
from acclimate.errors import AcclimateError
from acclimate.experiments import load as experiment
from acclimate.experiments.fixture import documents, tiny_model
from acclimate.method import load
from acclimate.parts.pretraining import nearest_chain, transfers
from acclimate.recipe import Recipe
from strategy_tools import Bench

TOPICS = ("legal", "finance", "software")
SMALL = {"domain_bytes": 600, "test_bytes": 300, "batch_tokens": 64, "row_tokens": 32, "lr": 1e-2, "recent": 1}


@pytest.fixture(scope="module")
def world():
    """A start model, three domains and general text."""
    domains = {topic: Domain.from_texts(topic, documents(topic, 60)) for topic in TOPICS}
    return tiny_model("causal"), domains, Domain.from_texts("wiki", documents("wikipedia", 60))


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    start, domains, general = world
    bench = Bench(tmp_path_factory.mktemp("cpt"))
    before = start.fingerprint
    made = load("continual.cpt_benchmark", **SMALL).run(bench, start=start, domains=domains, general=general)
    assert start.fingerprint == before
    return bench, made


def test_each_domain_goes_on_from_the_one_before_and_alone_from_the_start(world, done):
    bench, made = done
    order = bench.notes["matrix"]["order"]
    assert order == [TOPICS[place] for place in np.random.default_rng(0).permutation(3)]
    assert list(made) == ["after3"]
    assert list(bench.trained) == ["after1", "after2", "after3", "alone-1", "alone-2", "alone-3"]
    starts = [bench.trained[name]["start"] for name in bench.trained]
    assert starts[1:3] == [bench.models["after1"], bench.models["after2"]]
    assert [starts[0], *starts[3:]] == [world[0]] * 4
    assert [bench.trained[f"after{i}"]["domains"].name for i in (1, 2, 3)] == order
    assert [bench.trained[f"alone-{i}"]["domains"].name for i in (1, 2, 3)] == list(TOPICS)
    for asked in bench.trained.values():
        assert (asked["epochs"], asked["schedule"], asked["warmup"], asked["weight_decay"]) == (1.0, "linear", 0.0, 0.0)
        sizes = [len(text.encode()) for text in asked["domains"].texts("train")]
        assert sum(sizes[:-1]) < 600 <= sum(sizes)


def test_the_table_is_whole_and_right(world, done):
    bench, _ = done
    told, (start, domains, general) = bench.notes["matrix"], world
    assert told["measured"] == [*told["order"], "general text"]
    assert np.shape(told["perplexity"]) == np.shape(told["rank"]) == (4, 4)
    models = [start, *(bench.models[f"after{i}"] for i in (1, 2, 3))]
    for k, j in ((0, 0), (2, 0), (3, 2), (1, 3)):
        domain = domains[told["order"][j]] if j < 3 else general
        texts, most = [], 300
        for text in domain.texts("test"):
            if most > 0:
                texts.append(text)
                most -= len(text.encode())
        perplexity, rank = by_hand(models[k], texts)
        assert told["perplexity"][k][j] == pytest.approx(perplexity, rel=1e-4)
        assert told["rank"][k][j] == pytest.approx(rank, rel=1e-4)
    one = domains[told["order"][1]]
    alone = bench.models[f"alone-{1 + TOPICS.index(one.name)}"]
    assert told["alone"][1] == pytest.approx(bench.surprise(alone, one, most=300, width=32).perplexity)
    diagonal = [told["perplexity"][j + 1][j] for j in range(3)]
    assert max(np.array(diagonal) / told["perplexity"][0][:3]) < 1  # something was learned


def by_hand(model, texts, width=32):
    """Perplexity and mean of 1 / rank, window by window; a window starts with the last token of the one before it."""
    nats, inverse, count = 0.0, 0.0, 0
    begin, end = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
    for text in texts:
        ids = [begin, *model.tokenizer(text, add_special_tokens=False).input_ids, end]
        at = 0
        while at < len(ids) - (at > 0):
            part = torch.tensor(ids[at : at + width])
            first = 1 if at == 0 else at
            with torch.no_grad():
                p = model.net(part[None]).logits[0].log_softmax(1).numpy()
            for place in range(max(first, at + 1), min(at + width, len(ids))):
                row, true = p[place - 1 - at], ids[place]
                nats -= row[true]
                inverse += 1 / (1 + (row > row[true]).sum())
                count += 1
            if at + width >= len(ids):
                break
            at += width - 1
    return np.exp(nats / count), inverse / count


def test_what_is_told_follows_from_the_table(done):
    notes = done[0].notes
    matrix = np.array(notes["matrix"]["perplexity"])[:, :3]
    found = notes["transfer"]
    assert found["start"] == matrix[0].tolist()
    assert found["learned"] == [matrix[1, 0], matrix[2, 1], matrix[3, 2]]
    assert found["backward"] == pytest.approx([matrix[3, 0] - matrix[1, 0], matrix[3, 1] - matrix[2, 1]])
    assert found["forward"] == pytest.approx([matrix[1, 1] - matrix[0, 1], matrix[2, 2] - matrix[0, 2]])
    assert found["alone"] == notes["matrix"]["alone"]


def test_transfers_agree_with_loops():
    draw = np.random.default_rng(3)
    table = draw.random((6, 5))
    found = transfers(table, recent=2)
    for k in range(2, 6):
        near = [table[k, j - 1] - table[j, j - 1] for j in range(max(1, k - 2), k)]
        assert found["recent"][k - 2] == pytest.approx(sum(near) / len(near))
    lost = [max(0.0, table[5, j - 1] - table[j, j - 1]) for j in range(1, 5)]
    assert found["forgetting"] == pytest.approx(sum(lost) / 4)
    for wrong in (table[:5], table[:, :4], np.full((4, 3), np.nan), table[:2, :1]):
        with pytest.raises(AcclimateError, match="a row for the start model"):
            transfers(wrong, 1)


class Vectors:
    """Tools whose encoder gives each topic a direction; remembers what it was asked for."""

    def __init__(self, seed=0):
        self.seed, self.asked = seed, []

    def vectors(self, texts, encoder):
        self.asked = texts
        angle = {"legal": 0, "finance": 50, "software": 80, "wikipedia": 70}
        words = {topic: set(documents(topic, 60)) for topic in angle}
        turned = [next(angle[topic] for topic in angle if text in words[topic]) for text in texts]
        return np.stack([np.cos(np.radians(turned)), np.sin(np.radians(turned))], 1)


def test_the_similar_order(world):
    _, domains, general = world
    tools = Vectors()
    order, similarity = load("continual.cpt_benchmark", order="similar", embed_samples=4).ordered(tools, domains, general)
    assert order == ["software", "finance", "legal"]  # 10 degrees from general text; then 30, and 50
    assert similarity[0] == pytest.approx(np.cos(np.radians([0, 30, 80])))
    assert len(tools.asked) == 4 * 4
    assert tools.asked[0] == domains["legal"].texts("train")[0]
    assert tools.asked[3] == domains["legal"].texts("train")[-1]
    begins = load("continual.cpt_benchmark", order="similar", first="finance")
    assert begins.ordered(tools, domains, general)[0] == ["finance", "software", "legal"]
    free = load("continual.cpt_benchmark", order="similar")
    assert {free.ordered(Vectors(seed), domains, None)[0][0] for seed in range(20)} == set(TOPICS)
    assert load("continual.cpt_benchmark", order="given").ordered(tools, domains, general) == (list(TOPICS), [])
    with pytest.raises(AcclimateError, match="first = 'finnace' is none of the domains; nearest: finance"):
        load("continual.cpt_benchmark", order="similar", first="finnace").ordered(tools, domains, general)
    assert nearest_chain(np.eye(1), 0) == [0]


def test_errors_for_people(world):
    start, domains, general = world
    method = load("continual.cpt_benchmark")
    for given, said in (
        ({"domains": domains, "genral": general}, "takes no genral"),
        ({"domains": {"legal": domains["legal"]}}, "at least two domains"),
        ({"domains": domains["legal"]}, "at least two domains"),
    ):
        with pytest.raises(AcclimateError, match=said):
            method.run(None, start=start, **given)
    with pytest.raises(AcclimateError, match="is masked; give a decoder"):
        method.run(None, start=tiny_model("masked"), domains=domains)
    with pytest.raises(AcclimateError, match="name it with use: in a recipe"):
        shifts.continual("cpt_benchmark", ["a", "b"])


def test_ranks_are_found_only_where_asked_for(world):
    start, domains, _ = world
    texts = domains["legal"].texts("test")[:2]
    plain, ranked = bits_per_byte(start, texts), bits_per_byte(start, texts, ranks=True)
    assert plain.reciprocal_ranks is None
    assert (plain.nats == ranked.nats).all()
    assert ((ranked.reciprocal_ranks > 0) & (ranked.reciprocal_ranks < ranked.tokens)).all()


def test_the_recipe_holds_both_orders():
    recipe = Recipe.read("continual/cpt_order")
    first, second = recipe.steps
    assert (first.method.order, second.method.order) == ("random", "similar")
    assert first.on["domains"] == second.on["domains"] == recipe.evaluate["in"]
    assert [recipe.evaluate["models"][0], len(first.on["domains"])] == ["random.after10", 10]
    for spec in recipe.domains.values():
        assert spec["source"].partition("/")[0] in datasets.names()
    assert (Path(datasets.__file__).parents[1] / "recipes" / "continual" / "cpt_order.yaml").is_file()


# the experiment


def figures(**changes):
    found = {}
    for size, base in (("1M", 4.0), ("5M", 3.5)):
        found |= {f"{size}: start": base + (0.8 if size == "1M" else 0.6), f"{size}: DAPT": base + 0.1}
        for order, (learned, last) in {"random": (0.02, 0.10), "similar": (0.0, 0.15)}.items():
            lost = 0.2 if size == "1M" else 0.1
            found |= {f"{size}, {order}: learned": base + learned, f"{size}, {order}: last": base + last}
            found[f"{size}, {order}: forgotten"] = lost
    return {arm: [value] * 3 for arm, value in {**found, **changes}.items()}


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, []),
        ({"5M: DAPT": 3.5}, [1]),
        ({"5M, random: last": 4.11, "1M, random: last": 3.6}, [2]),
        ({"1M, random: forgotten": 0.0, "1M, similar: forgotten": 0.1}, [3]),
        ({"1M: start": 4.5}, [3]),
        ({"1M, random: last": 4.25}, [4]),
        ({"1M, similar: learned": 4.05}, [5]),
    ],
)
def test_the_clauses_of_the_experiment(changes, failed):
    module = experiment("continual_pretraining_benchmark")
    given = figures(**changes)
    assert [place for place, (_, met) in enumerate(module.clauses(given), 1) if not met] == failed
    assert module.verdict(given) == ("does_not_hold" if failed else "holds")
    assert module.verdict(figures(**{"1M: start": 4.15})) == "not_testable"
    assert "less than 0.1 below the start" in " ".join(module.CRITERION.split())
