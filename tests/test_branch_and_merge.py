"""Branch-and-Merge: slices, rounds, what each branch is trained on and with, the merge by hand, and what is told."""

import math
from itertools import chain

import numpy as np
import pytest
import torch

from acclimate.domain import Domain
from acclimate.errors import AcclimateError
from acclimate.experiments import load as experiment
from acclimate.experiments.fixture import documents, tiny_model
from acclimate.method import load
from acclimate.methods.merging.branch_and_merge import cut
from strategy_tools import Bench
from worlds import domain_of

SMALL = {"slices": 4, "slice_steps": 2, "lr": 1e-2}


@pytest.fixture(scope="module")
def world():
    """A base, law to learn, an encyclopaedia to keep."""
    base = tiny_model("causal")
    target, old = Domain.from_texts("law", documents("legal", 80)), Domain.from_texts("wiki", documents("wikipedia", 80))
    return base, target, old


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    base, target, old = world
    bench = Bench(tmp_path_factory.mktemp("bam"))
    before = base.fingerprint
    made = load("merging.branch_and_merge", **SMALL, baseline=True).run(bench, start=base, target=target, replay=old)
    assert base.fingerprint == before
    return bench, made


def test_rounds_and_their_starts(world, done):
    bench, made = done
    assert list(made) == ["sequential", "round1", "round2"]
    assert list(bench.trained) == ["sequential", *(f"round{i}-branch{j}" for i in (1, 2) for j in (1, 2))]
    starts = {name: asked["start"] for name, asked in bench.trained.items()}
    assert {id(starts[f"round1-branch{j}"]) for j in (1, 2)} == {id(world[0])}
    assert {id(starts[f"round2-branch{j}"]) for j in (1, 2)} == {id(made["round1"])}  # it goes on from the merge


def test_every_row_is_learned_once_with_its_part_of_the_replay(world, done):
    bench, _ = done
    branches = [asked["domains"] for name, asked in bench.trained.items() if "branch" in name]
    for place, domain in enumerate(world[1:]):
        parts = [list(domains.values())[place][0].texts("train") for domains in branches]
        assert sorted(chain.from_iterable(parts)) == sorted(domain.texts("train"))
        sizes = [sum(map(len, part)) for part in parts]
        assert max(sizes) < 1.2 * min(sizes)
    for domains in branches:
        assert [weight for _, weight in domains.values()] == [0.9, 0.1]
    assert {name: domain for name, (domain, _) in bench.trained["sequential"]["domains"].items()} == {"law": world[1], "wiki": world[2]}


def test_every_branch_has_its_whole_schedule_and_the_baseline_one_of_equal_length(done):
    bench, _ = done
    for name, asked in bench.trained.items():
        assert (asked["lr"], asked["schedule"], asked["warmup"]) == (1e-2, "cosine", 0.05)
        assert asked["steps"] == (8 if name == "sequential" else 2)
    strategy = load("merging.branch_and_merge", replay_share=0.2)
    spy = type("Spy", (), {"train": lambda self, *given, **settings: settings})()
    piece = Domain.from_texts("a", documents("legal", 9), splits=False)
    assert strategy.train(spy, "x", None, piece, piece)["epochs"] == 1.25  # a whole pass over the target beside 20 % replay
    assert strategy.train(spy, "x", None, piece, None)["epochs"] == 1.0


def test_two_branches_are_merged_on_the_arc(done):
    bench, made = done
    asked = bench.merges["round1"]
    a, b = (dict(model.net.named_parameters()) for model in asked["tuned"])
    merged = dict(made["round1"].net.named_parameters())
    for name in a:
        x, y = a[name].detach().double().flatten(), b[name].detach().double().flatten()
        omega = math.acos(min(1.0, float(x @ y / x.norm() / y.norm())))
        share = math.sin(omega / 2) / math.sin(omega) if omega >= 1e-6 else 0.5
        assert torch.allclose(merged[name].detach().double().flatten(), share * (x + y), atol=2e-6), name
    apart = merged["model.embed_tokens.weight"] - (a["model.embed_tokens.weight"] + b["model.embed_tokens.weight"]) / 2
    assert apart.abs().max() > 1e-6  # the mean would be another model


def test_what_is_told(world, done):
    bench, made = done
    rows = bench.notes["rounds"]
    assert [row["round"] for row in rows] == [1, 2]
    for row in rows:
        assert row["merged"] < max(row["branches"])  # a merge moves less than its branches
        assert row.keys() == {"round", "branches", "merged", "from_start", "target", "source"}
    assert rows[-1]["target"] == pytest.approx(bench.bits(made["round2"], world[1]))
    assert rows[-1]["target"] < bench.bits(world[0], world[1])
    assert bench.notes["sequential"]["from_start"] > rows[-1]["from_start"]


@pytest.mark.parametrize(
    ("settings", "name", "values"),
    [
        ({"branches": 2, "t": 0.3}, "merging.slerp", {"t": 0.3}),
        ({"branches": 4}, "merging.linear", {}),
        ({"merge": "linear"}, "merging.linear", {}),
        ({"merge": "task_arithmetic", "scale": 0.25}, "merging.task_arithmetic", {"scale": 0.25}),
        ({"merge": "model_stock"}, "merging.model_stock", {}),
    ],
)
def test_ways_to_merge(settings, name, values):
    method = load("merging.branch_and_merge", **settings).merging()
    assert method.name == name
    assert values.items() <= method.values().items()


@pytest.mark.parametrize("merge", ["linear", "task_arithmetic", "model_stock"])
def test_other_merges_run(world, tmp_path, merge):
    bench = Bench(tmp_path)
    settings = {**SMALL, "slices": 3, "branches": 3, "slice_steps": 1, "scale": 1 / 3}
    made = load("merging.branch_and_merge", **settings, merge=merge).run(bench, start=world[0], target=world[1])
    assert list(made) == ["round1"]
    assert bench.merges["round1"]["base"] is (None if merge == "linear" else world[0])
    assert next(iter(bench.trained["round1-branch1"]["domains"].values()))[1] == 1.0  # no replay


def test_slices_in_order_and_by_form(world):
    strategy = load("merging.branch_and_merge", slices=4, cut="order")
    pieces = strategy.sliced(world[1], np.random.default_rng(0))
    assert list(chain.from_iterable(piece.texts() for piece in pieces)) == world[1].texts("train")
    rows = [{"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "Yes."}]} for i in range(8)]
    chats = domain_of("chats", "messages", rows)
    spy = type("Spy", (), {"train": lambda self, name, start, objective, domains, **settings: objective.name})()
    assert strategy.train(spy, "x", None, strategy.sliced(chats, np.random.default_rng(0))[0], None) == "objectives.sft"
    assert strategy.train(spy, "x", None, pieces[0], None) == "objectives.causal_lm"


@pytest.mark.parametrize("sizes", [[1000, 1, 1, 1], [1, 1, 1, 1000], [1, 1, 1], [0, 0, 0, 0, 0]])
def test_no_slice_is_empty(sizes):
    parts = cut(np.array(sizes), 3)
    assert list(chain.from_iterable(parts)) == list(range(len(sizes)))
    assert all(parts)


@pytest.mark.parametrize(
    ("settings", "given", "said"),
    [
        ({"slices": 5}, {}, "slices = 5, but must be a multiple of branches = 2"),
        ({"slices": 200}, {}, "too few for 200 slices"),
        ({}, {"replya": None}, "takes no replya"),
        ({}, {"target": None}, "needs a start model and a target"),
    ],
)
def test_errors_for_people(world, tmp_path, settings, given, said):
    with pytest.raises(AcclimateError, match=said):
        load("merging.branch_and_merge", **settings).run(Bench(tmp_path), **{"start": world[0], "target": world[1], **given})


# the experiment


def figures(target=1.04, bam=0.07, one=0.10):
    return {
        "source: start": [2.0] * 3, "target: sequential": [1.0] * 3, "target: BaM": [target] * 3,
        "source: sequential": [2 + one] * 3, "source: BaM": [2 + bam] * 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({}, "holds"),
        ({"target": 1.06}, "does_not_hold"),
        ({"bam": 0.085}, "does_not_hold"),
        ({"one": 0.01, "bam": 0.0}, "not_testable"),
    ],
)
def test_the_verdict_of_the_experiment(given, verdict):
    module = experiment("branch_and_merge")
    assert module.verdict(figures(**given)) == verdict
    assert "(2) it raises the source by" in module.why(figures(**given))
    for part in ("at most 0.05 above", "at least 20 % smaller", "by less than 0.02"):
        assert part in " ".join(module.CRITERION.split())
    assert (module.NEAR, module.LESS, module.ENOUGH) == (0.05, 0.2, 0.02)
