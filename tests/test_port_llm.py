"""PortLLM: the ported patch by hand, the chain of versions, the control, what is told and flagged, and what is refused."""

import numpy as np
import pytest
import torch

from acclimate.domain import Domain, Task
from acclimate.engines.merging.patches import changes
from acclimate.errors import AcclimateError
from acclimate.experiments import load as experiment
from acclimate.experiments.fixture import documents, tiny_model
from acclimate.method import load
from strategy_tools import Bench
from worlds import domain_of, model_of, network

SMALL = {"r": 2, "lora_alpha": 4.0, "lr": 2e-2}


def evolved(model, name, size, seed):
    made = model.copy(name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in made.net.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator))
    made.net.eval()
    return made


@pytest.fixture(scope="module")
def world():
    """A model and three versions that follow it: two close ones, and one that is another model altogether."""
    base = tiny_model("causal")
    first = evolved(base, "v1", 0.002, 1)
    second = evolved(first, "v2", 0.002, 2)
    return base, [first, second, evolved(second, "v3", 1.0, 3)], Domain.from_texts("law", documents("legal", 80))


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    base, versions, law = world
    folder = tmp_path_factory.mktemp("port")
    for model in (base, *versions):
        model.source = str(model.save(folder / "given" / model.name))
    bench = Bench(folder, steps=8)
    return bench, load("merging.port_llm", **SMALL).run(bench, start=base, tuned=versions, task=law)


def test_the_port_is_the_new_base_plus_the_old_patch(world, done):
    _, made = done
    assert list(made) == ["patch", *(f"{kind}{i}" for i in (1, 2, 3) for kind in ("fresh", "ported"))]
    patch = dict(changes(made["patch"]))
    assert {name.split(".")[-2] for name in patch} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    for number, version in enumerate(world[1], 1):
        ported = made[f"ported{number}"].copy().net  # peft folds it
        for name, weight in version.net.named_parameters():
            wanted = weight + patch[name] if name in patch else weight
            assert torch.allclose(ported.get_parameter(name), wanted, atol=1e-5), name
        stored = [p.numel() for n, p in made[f"ported{number}"].net.named_parameters() if "lora_" in n]
        assert sum(stored) == sum(p.numel() for n, p in made["patch"].net.named_parameters() if "lora_" in n)


def test_a_port_trains_nothing_and_each_version_has_its_control(world, done):
    bench, _ = done
    assert list(bench.trained) == ["patch", "fresh1", "fresh2", "fresh3"]
    assert [bench.trained[f"fresh{i + 1}"]["start"] for i in range(3)] == world[1]
    assert {asked["adapter"].r for asked in bench.trained.values()} == {2}
    quiet = Bench(bench.folder / "quiet", steps=8)
    fewer = load("merging.port_llm", **SMALL, control=False).run(quiet, start=world[0], tuned=world[1][:1], task=world[2])
    assert list(quiet.trained) == ["patch"]
    assert list(fewer) == ["patch", "ported1"]
    assert "fresh" not in quiet.notes["report"][0]


def test_what_is_told_of_each_version(world, done):
    bench, made = done
    rows = bench.notes["report"]
    assert [row["version"] for row in rows] == ["v1", "v2", "v3"]
    for number, (row, version) in enumerate(zip(rows, world[1], strict=True), 1):
        assert row["metric"] == "bits"
        assert row["zero_shot"] == pytest.approx(bench.bits(version, world[2]))
        assert row["ported"] == pytest.approx(bench.bits(made[f"ported{number}"], world[2]))
        assert row["gain"] == pytest.approx(row["zero_shot"] - row["ported"])
        assert row["behind"] == pytest.approx(row["ported"] - row["fresh"])
        assert len(row["matrices"]) == 4
    assert rows[0]["gain"] > 0
    shares = [row["medians"]["share"] for row in rows]
    assert shares[0] > shares[1] > shares[2]  # the base moves on, the patch stays
    gap = [row["medians"]["gap"] for row in rows]
    assert gap[0] < gap[2]
    record = bench.notes["patch"]
    assert record["base_fingerprint"] == world[0].fingerprint
    assert record["metric"]["bits patched"] < record["metric"]["bits zero_shot"]


def test_the_version_where_porting_fails_is_flagged(done):
    bench, _ = done
    failed = [row["failed"] for row in bench.notes["report"]]
    assert failed[0] == ""
    assert failed[2] in ("under zero-shot", "behind a fresh LoRA")
    assert bench.notes["failed_at"] == next(f"v{i}" for i, why in enumerate(failed, 1) if why)
    method = load("merging.port_llm", tolerance=0.02)
    assert method.judged({"zero_shot": 0.6, "ported": 0.5, "fresh": 0.4}, higher=True)["failed"] == "under zero-shot"
    assert method.judged({"zero_shot": 2.0, "ported": 1.5, "fresh": 1.49}, higher=False)["failed"] == ""
    assert method.judged({"zero_shot": 2.0, "ported": 1.5}, higher=False) == {"gain": 0.5, "behind": 0.0, "failed": ""}


def test_a_task_with_questions_is_scored_by_accuracy(world, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "odd" if i % 2 else "even"}]}
        for i in range(20)
    ]
    task = domain_of("parity", "messages", rows)
    asked = [{"prompt": f"{i}?", "options": ["odd", "even"], "answer": "odd" if i % 2 else "even"} for i in range(10)]
    task.tasks["parity"] = Task("parity", "classification", asked)
    bench = Bench(tmp_path, steps=2)
    base = world[0]
    base.source = str(base.save(tmp_path / "base"))
    load("merging.port_llm", **SMALL).run(bench, start=base, tuned=world[1][:1], task=task)
    [row] = bench.notes["report"]
    assert row["metric"] == "accuracy"
    assert bench.trained["patch"]["objective"].name == "objectives.sft"
    assert row["gain"] == pytest.approx(row["ported"] - row["zero_shot"])
    assert np.isclose(10 * row["ported"] % 1, 0) or np.isclose(10 * row["ported"] % 1, 1)


def test_errors_for_people(world, tokenizer, tmp_path):
    base, versions, law = world
    method = load("merging.port_llm", **SMALL)
    for given, said in (
        ({"tuned": []}, "needs a start model, its later versions and a task"),
        ({"corpus": law}, "takes no corpus"),
    ):
        with pytest.raises(AcclimateError, match=said):
            method.run(Bench(tmp_path), **{"start": base, "tuned": versions, "task": law, **given})
    stranger = model_of(network("llama", tokenizer, num_hidden_layers=1), tokenizer, name="stranger")
    bench = Bench(tmp_path / "x", steps=1)
    with pytest.raises(AcclimateError, match="stranger has another tokenizer"):
        method.run(bench, start=base, tuned=[*versions, stranger], task=law)
    assert not bench.trained  # said before any training


# the experiment


@pytest.mark.parametrize(
    ("ported", "fresh", "verdict", "failing"),
    [
        ((50, 48), (52, 50), "holds", []),
        ((50, 25), (52, 26), "does_not_hold", [1]),
        ((50, 45), (52, 50), "does_not_hold", [2]),
        ((58, 43), (52, 50), "does_not_hold", [3]),
        ((50, 27), (52, 27), "not_testable", [1]),
    ],
)
def test_the_verdict_of_the_experiment(ported, fresh, verdict, failing):
    module = experiment("port_llm")
    figures = {}
    for number in (1, 2):
        for arm, value in (("zero-shot", 17.5), ("ported", ported[number - 1]), ("fresh", fresh[number - 1])):
            figures[f"v{number}: {arm}"] = [value] * 3
    figures["v2: zero-shot"] = [17.5] * 3 if verdict == "not_testable" else [16.0] * 3
    assert [number for number, (_, met) in enumerate(module.clauses(figures), 1) if not met] == failing
    assert module.verdict(figures) == verdict
    assert (module.ABOVE, module.BEHIND, module.WORST) == (10.0, 3.0, 6.0)
