"""RE-Adapt: the recombination by hand, LoRE's ranks, the sweep, unequal vocabularies, both exports, and what is refused."""

import numpy as np
import pytest
import torch

from acclimate.domain import Domain
from acclimate.engines.merging.patches import Patch, changes, differences, stack
from acclimate.errors import AcclimateError
from acclimate.experiments import load as experiment
from acclimate.experiments.fixture import documents, tiny_model
from acclimate.method import load
from strategy_tools import Bench

SMALL = {"r": 2, "lora_alpha": 4.0, "lr": 1e-2}


@pytest.fixture(scope="module")
def world():
    """A base, its "instruct" sibling, a corpus, and text to score on."""
    base = tiny_model("causal")
    instruct = base.copy("instruct")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in instruct.net.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    instruct.net.eval()
    return base, instruct, Domain.from_texts("law", documents("legal", 60)), Domain.from_texts("wiki", documents("wikipedia", 60))


def readapt(world, folder, instruct=None, **settings):
    bench = Bench(folder, steps=3)
    base, sibling, law, wiki = world
    scoring = {"general": wiki} if settings.get("grid") else {}
    before = base.fingerprint, sibling.fingerprint
    base.source = str(base.save(folder / "base"))
    method = load("merging.re_adapt", **{**SMALL, **settings})
    made = method.run(bench, start=base, tuned=[instruct or sibling], corpus=law, **scoring)
    assert (base.fingerprint, sibling.fingerprint) == before
    return bench, made


def out(model):
    with torch.no_grad():
        return model.net(input_ids=torch.tensor([[5, 9, 30, 17, 8, 21]])).logits


@pytest.mark.parametrize("peft", ["dora", "lora"])
def test_the_result_by_hand(world, tmp_path, peft):
    bench, made = readapt(world, tmp_path, alpha=0.7, beta=0.3, peft=peft)
    assert list(made) == ["domain", "readapted"]
    asked = bench.trained["domain"]
    assert (asked["objective"].name, asked["adapter"].name, asked["epochs"]) == ("objectives.causal_lm", f"adapters.{peft}", 1.0)
    assert asked["start"] is world[0]
    merged = made["domain"].copy().net  # peft folds it
    for name, weight in made["readapted"].net.named_parameters():
        base, instruct = (model.net.get_parameter(name) for model in world[:2])
        wanted = base + 0.7 * (merged.get_parameter(name) - base) + 0.3 * (instruct - base)
        assert torch.allclose(weight, wanted, atol=1e-6), name
    assert bench.notes["scales"] == {"alpha": 0.7, "beta": 0.3}
    assert made["readapted"].net.lm_head.weight is made["readapted"].net.get_input_embeddings().weight


def test_lore_takes_each_matrix_at_its_own_rank(world, tmp_path):
    bench, made = readapt(world, tmp_path, alpha=0.0, beta=1.0, lore=True, tau=0.5)
    ranks = bench.notes["ranks"]
    for name, weight in made["readapted"].net.named_parameters():
        base, instruct = (model.net.get_parameter(name).detach() for model in world[:2])
        change = (instruct - base).double().numpy()
        if change.ndim == 1:  # norms stay whole
            assert np.allclose((weight - base).detach(), change, atol=1e-6)
            continue
        left, singular, right = np.linalg.svd(change, full_matrices=False)
        share = np.cumsum(singular**2) / np.sum(singular**2)
        rank = int(np.argmax(share >= 0.5)) + 1
        assert ranks[name] == rank
        assert np.allclose((weight - base).detach(), left[:, :rank] * singular[:rank] @ right[:rank], atol=1e-5), name
    assert len(set(ranks.values())) > 1  # no fixed rank


def test_the_sweep_finds_the_best_pair(world, tmp_path):
    bench, made = readapt(world, tmp_path, grid=[0.0, 1.0])
    rows = bench.notes["sweep"]
    assert [(row["alpha"], row["beta"]) for row in rows] == [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
    assert rows[0]["general"] == pytest.approx(bench.bits(world[0], world[3]))
    assert rows[1]["general"] == pytest.approx(bench.bits(world[1], world[3]), rel=1e-5)
    best = min(rows, key=lambda row: row["mean"])
    assert bench.notes["scales"] == {"alpha": best["alpha"], "beta": best["beta"]}
    assert bench.bits(made["readapted"], world[3]) == pytest.approx(best["general"], rel=1e-5)
    assert list(bench.trained) == ["domain"]  # scales cost no training


def test_tokens_that_only_the_instruct_model_has(world, tmp_path):
    import copy

    base, sibling = world[:2]
    wider = sibling.copy("wider")
    wider.tokenizer = copy.deepcopy(sibling.tokenizer)
    wider.tokenizer.add_tokens(["<tool>"])
    wider.net.resize_token_embeddings(len(wider.tokenizer), mean_resizing=False)
    plain = readapt(world, tmp_path / "a", instruct=wider)[1]["readapted"]
    same = readapt(world, tmp_path / "b")[1]["readapted"]
    assert torch.equal(out(plain), out(same))  # the common rows
    whole = readapt(world, tmp_path / "c", instruct=wider, vocabulary="instruct")[1]["readapted"]
    name = "model.embed_tokens.weight"
    assert whole.tokenizer is wider.tokenizer
    assert torch.equal(whole.net.get_parameter(name)[-1], wider.net.get_parameter(name)[-1])
    assert torch.allclose(out(whole)[..., : len(base.tokenizer)], out(same)[..., : len(base.tokenizer)], atol=1e-5)
    whole.save(tmp_path / "saved")


@pytest.mark.parametrize("lore", [False, True])
def test_two_adapters_with_scales_are_the_merged_model(world, tmp_path, lore):
    base = world[0]
    bench, made = readapt(world, tmp_path, adapters=True, lore=lore, alpha=0.6, beta=0.4)
    assert list(made) == ["domain", "domain_adapter", "instruction_adapter", "readapted"]
    assert torch.allclose(out(made["domain_adapter"]), out(made["domain"]), atol=1e-4)
    for name in ("domain_adapter", "instruction_adapter"):
        made[name].save(tmp_path / "out" / name)
    parts = {"domain": Patch.of(made["domain_adapter"]), "instruction": Patch.of(made["instruction_adapter"])}
    scales = bench.notes["scales"]
    both = stack(base, {"domain": (parts["domain"], scales["alpha"]), "instruction": (parts["instruction"], scales["beta"])})
    assert torch.allclose(out(both), out(made["readapted"]), atol=2e-4)
    assert dict(changes(both)).keys() == dict(differences(base, world[1])).keys()


@pytest.mark.parametrize(
    ("settings", "given", "said"),
    [
        ({}, {"tuned": []}, "needs a base, its instruct model and text"),
        ({}, {"corpus": None}, "needs a base, its instruct model and text"),
        ({"grid": [1.0]}, {}, "lacks text to judge by"),
        ({}, {"general": None}, "lacks grid: to use general for"),
    ],
)
def test_errors_for_people(world, tmp_path, settings, given, said):
    base, sibling, law, _ = world
    with pytest.raises(AcclimateError, match=said):
        load("merging.re_adapt", **settings).run(Bench(tmp_path), **{"start": base, "tuned": [sibling], "corpus": law, **given})


# the experiment


def figures(**more):
    given = {
        "law: instruct": 3.0, "law: trained": 2.6, "law: RE-Adapt": 2.75, "law: LoRE-Adapt": 2.8, "answers: base": 4.0,
        "answers: instruct": 2.0, "answers: trained": 2.3, "answers: RE-Adapt": 2.05, "answers: LoRE-Adapt": 2.1, **more,
    }  # fmt: skip
    return {arm: [value] * 3 for arm, value in given.items()}


@pytest.mark.parametrize(
    ("more", "verdict", "failing"),
    [
        ({}, "holds", []),
        ({"answers: trained": 2.04}, "does_not_hold", [1]),
        ({"law: RE-Adapt": 2.85}, "does_not_hold", [2]),
        ({"answers: RE-Adapt": 2.15}, "does_not_hold", [3]),
        ({"answers: LoRE-Adapt": 2.2}, "does_not_hold", [4]),
        ({"answers: trained": 2.01}, "not_testable", [1]),
        ({"answers: base": 2.05}, "not_testable", []),
    ],
)
def test_the_verdict_of_the_experiment(more, verdict, failing):
    module = experiment("re_adapt")
    assert module.verdict(figures(**more)) == verdict
    assert [number for number, (_, met) in enumerate(module.clauses(figures(**more)), 1) if not met] == failing
    assert (module.SHARE, module.RISE, module.APART, module.HARM, module.USE) == (0.5, 0.1, 0.1, 0.02, 0.1)
