"""Whole runs: made once, repeated to the bit, resumed after a kill, and honest about what was measured."""

import json

import pytest

from acclimate import execute
from acclimate.domain import Domain, Task
from acclimate.engines import train as engine
from acclimate.errors import AcclimateError
from acclimate.files import read_json
from acclimate.measure import evaluate, measure
from acclimate.model import Model
from worlds import model_of, network, sentences

PLAIN = {"batch_tokens": 256, "row_tokens": 64, "precision": "fp32", "checkpoint_every": 1}
PLANTED = " ".join(sentences("kitchen", 6, 7))  # text that is measured, and stands inside a training document


@pytest.fixture(scope="module")
def recipe(places, tiny_folder):
    """Two steps, one from the other, on a domain one of whose training documents holds text that is measured outside."""
    data = places / "data"
    for name, texts in (("pipes", sentences("pipes", 60)), ("kitchen", sentences("kitchen", 60, 7))):
        (data / name).mkdir(parents=True)
        test, train = [" ".join(texts[i : i + 2]) for i in range(0, 10, 2)], texts[10:]
        if name == "kitchen":
            test.append(PLANTED)
        else:
            train.append("Something of its own before it, and at quite some length, so that it is no near duplicate. " * 3 + PLANTED)
        for split, some in (("test", test), ("train", train)):
            (data / name / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    return {
        "title": "a trial",
        "model": str(tiny_folder),
        "domains": {"pipes": str(data / "pipes"), "kitchen": str(data / "kitchen"), "recall": {"recall": 40}},
        "steps": [
            {"as": "full", "use": "objectives.causal_lm", "on": "pipes", "train": {**PLAIN, "steps": 4, "lr": 1e-2}},
            {
                "as": "lora",
                "use": "objectives.causal_lm",
                "from": "full",
                "on": {"pipes": 0.5, "recall": 0.5},
                "adapter": {"use": "adapters.lora", "with": {"r": 2}},
                "train": {**PLAIN, "steps": 3, "lr": 1e-2},
            },
        ],
        "evaluate": {"in": ["pipes"], "out": ["kitchen", "recall"], "samples": 1, "sample_tokens": 8},
    }


@pytest.fixture(scope="module")
def ran(recipe, places):
    return execute.run(recipe, places / "run", command="a test")


@pytest.fixture
def trained(monkeypatch):
    """The names of the steps that are trained, in order."""
    names, plain = [], engine.train
    monkeypatch.setattr(engine, "train", lambda *a, **k: names.append(k["name"]) or plain(*a, **k))
    return names


def figures(data) -> dict:
    """All a run measured: what must be the same whenever it is repeated."""
    curves = {n: [{k: v for k, v in row.items() if k != "seconds"} for row in rows] for n, rows in data["curves"].items()}
    hashes = [data["provenance"][key] for key in ("models", "domains")]
    return {key: data[key] for key in ("results", "samples", "domains", "contamination")} | {"curves": curves, "hashes": hashes}


def test_a_run_reports_every_model_on_every_domain(ran, recipe, places):
    base = recipe["model"]
    assert {(row["model"], row["domain"]) for row in ran["results"]} == {
        (model, domain) for model in (base, "full", "lora") for domain in ("pipes", "kitchen", "recall")
    }
    values = {(row["model"], row["domain"]): row for row in ran["results"]}
    for (model, domain), row in values.items():
        assert row["low"] < row["value"] < row["high"]
        assert row["n"] == ran["domains"][domain]["documents"]
        if model == base:
            assert row["change"] is None
        else:
            assert row["change"] == pytest.approx(row["value"] - values[base, domain]["value"])
            assert row["change_low"] < row["change"] < row["change_high"]
    assert values["full", "pipes"]["change"] < -0.2  # it learned
    assert {name: domain["role"] for name, domain in ran["domains"].items()} == {"pipes": "in", "kitchen": "out", "recall": "out"}
    assert ran["models"]["full"]["trained_parameters"] > ran["models"]["lora"]["trained_parameters"] > 0
    assert ran["models"]["lora"]["how"] == "causal_lm with lora on pipes, recall from full, 3 steps"
    assert [row["step"] for row in ran["curves"]["full"]] == [0, 1, 2, 3, 4]
    assert {*ran["samples"][0]["texts"]} == {base, "full", "lora"}
    again = Domain.load("kitchen", recipe["domains"]["kitchen"])
    from acclimate.engines.score import bits_per_byte

    model = Model.load(str(places / "run/steps/full/model"))
    assert values["full", "kitchen"]["value"] == pytest.approx(bits_per_byte(model, again.texts("test")).value)
    report = read_json(places / "run/report.json")
    assert report["results"] == json.loads(json.dumps(ran["results"]))
    assert (places / "run/report.html").stat().st_size > 10_000
    assert not list((places / "run").glob("steps/*/work/checkpoints"))  # tidied once the model is saved


def test_a_training_document_with_measured_text_is_left_out(ran):
    found = ran["contamination"]
    assert found["removed"] == 1
    assert [(span["domain"], span["found_in"]) for span in found["spans"]] == [("pipes", "kitchen")]
    assert found["spans"][0]["origin"].endswith("train.jsonl:51")
    assert PLANTED[10:200] in found["spans"][0]["text"]


def test_contamination_can_be_left_unchecked(recipe, tmp_path, trained):
    data = execute.run({**recipe, "steps": recipe["steps"][:1], "contamination": "off"}, tmp_path / "run")
    assert data["contamination"] == {"checked": 0, "removed": 0, "spans": []}
    assert trained == ["full"]


def test_a_second_run_in_the_same_folder_makes_nothing_again(ran, recipe, places, trained):
    again = execute.run(recipe, places / "run")
    assert trained == []
    assert figures(again) == figures(ran)
    assert again["models"]["lora"] == json.loads(json.dumps(ran["models"]["lora"]))


def test_the_resolved_recipe_gives_the_same_figures_elsewhere(ran, places, tmp_path, trained, monkeypatch):
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path / "cache"))  # nothing of the first run is at hand
    monkeypatch.chdir(tmp_path)
    again = execute.run(places / "run/recipe.yaml", "elsewhere")
    assert trained == ["full", "lora"]
    assert figures(again) == figures(ran)
    assert (tmp_path / "elsewhere/recipe.yaml").read_text() == (places / "run/recipe.yaml").read_text()
    once = Model.load("elsewhere/steps/lora/model")
    monkeypatch.chdir("/")  # an adapter finds its base from anywhere
    assert Model.load(str(tmp_path / "elsewhere/steps/lora/model")).fingerprint == once.fingerprint


def test_a_changed_step_is_made_again_and_what_stands_on_it(ran, recipe, places, tmp_path, trained):
    import shutil

    shutil.copytree(places / "run", tmp_path / "run")
    first, second = recipe["steps"]
    execute.run({**recipe, "steps": [first, {**second, "train": {**second["train"], "lr": 2e-2}}]}, tmp_path / "run")
    assert trained == ["lora"]
    trained.clear()
    changed = execute.run({**recipe, "steps": [{**first, "train": {**first["train"], "lr": 2e-2}}, second]}, tmp_path / "run")
    assert trained == ["full", "lora"]
    assert figures(changed)["results"] != figures(ran)["results"]
    trained.clear()
    execute.run(
        {**recipe, "evaluate": {"in": ["kitchen"], "out": []}, "steps": [{**first, "train": {**first["train"], "lr": 2e-2}}, second]},
        tmp_path / "run",
    )
    assert trained == []  # what is measured is no part of what was made


KILLED = """
from acclimate import execute
from acclimate.engines.watch import Watcher
plain = Watcher.on_log
def on_log(self, args, state, control, logs=None, **rest):
    plain(self, args, state, control, logs, **rest)
    if (self.learner.name, state.global_step) == tuple(at):
        os.kill(os.getpid(), signal.SIGKILL)
Watcher.on_log = on_log
execute.run(recipe, folder)
"""


def test_a_run_killed_in_the_middle_goes_on_to_the_same_figures(ran, recipe, child, tmp_path, trained):
    for at in (("full", 3), ("lora", 2)):
        code, said = child(KILLED, at=at, recipe=recipe, folder=str(tmp_path / "run"))
        assert code == -9, said
    assert (tmp_path / "run/steps/full/step.json").exists()
    assert not (tmp_path / "run/steps/lora/step.json").exists()
    again = execute.run(recipe, tmp_path / "run")
    assert trained == ["lora"]
    assert figures(again) == figures(ran)


def test_two_runs_in_one_folder_are_refused(recipe, tmp_path, monkeypatch):
    def second(*_):
        with pytest.raises(AcclimateError, match="is in use by process"):
            execute.run(recipe, tmp_path / "run")
        raise RuntimeError("far enough")

    monkeypatch.setattr(execute.Tools, "open", second)
    with pytest.raises(RuntimeError, match="far enough"):
        execute.run(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"domains": {"source": "nowhere.txt"}}, "no file or folder 'nowhere.txt'"),
        ({"from": "nowhere"}, "no model 'nowhere'"),
        ({"teacher": "nobody"}, "no model 'nobody'"),
    ],
    ids=str,
)
def test_what_is_missing_is_said_before_anything_is_trained(change, line, recipe, tmp_path, trained):
    steps = [recipe["steps"][0], {**recipe["steps"][1], **{k: v for k, v in change.items() if k != "domains"}}]
    domains = {**recipe["domains"], **({"late": change["domains"]} if "domains" in change else {})}
    with pytest.raises(AcclimateError, match=line):
        execute.run({**recipe, "steps": steps, "domains": domains}, tmp_path / "run")
    assert trained == []


def test_a_run_folder_that_cannot_be_one_is_refused(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AcclimateError, match="file"):
        execute.run(recipe, tmp_path / "file")


def test_an_encoder_with_a_new_output_layer_is_the_same_one_every_time(mask_tokenizer, places, recipe, tmp_path, trained):
    model_of(network("bert body", mask_tokenizer), mask_tokenizer, "encoder").save(tmp_path / "body")
    step = {"as": "headed", "use": "objectives.masked_lm", "on": "pipes", "new_head": True, "train": {**PLAIN, "steps": 2}}
    plan = {**recipe, "model": str(tmp_path / "body"), "steps": [step], "domains": {"pipes": recipe["domains"]["pipes"]}}
    plan["evaluate"] = {"in": ["pipes"], "samples": 0}
    first = execute.run(plan, tmp_path / "run")
    assert [row["model"] for row in first["results"]] == ["headed"]  # a body alone predicts nothing
    assert figures(execute.run(plan, tmp_path / "run")) == figures(first)
    assert trained == ["headed"]


def test_adapt_writes_the_recipe_a_person_would(recipe, tmp_path, trained):
    given = {"steps": 2, **{key: str(value) for key, value in PLAIN.items()}}
    pipes, kitchen = recipe["domains"]["pipes"], recipe["domains"]["kitchen"]
    plan = execute.adapt(recipe["model"], pipes, name="pipes", replay=0.2, outside={"kitchen": kitchen}, settings=given, dry_run=True)
    assert "kitchen: 0.2" in plan["recipe"]
    assert trained == []
    done = execute.adapt(recipe["model"], pipes, name="pipes", replay=0.2, outside={"kitchen": kitchen}, settings=given, out=tmp_path / "r")
    assert trained == ["adapted"]
    assert {row["domain"] for row in done["results"]} == {"pipes", "kitchen"}
    with pytest.raises(AcclimateError, match=r"replay = 1.5, but must lie in \[0, 1\)"):
        execute.adapt(recipe["model"], pipes, replay=1.5)
    with pytest.raises(AcclimateError, match="'pipes' is the name of the domain itself"):
        execute.adapt(recipe["model"], pipes, name="pipes", outside={"pipes": kitchen})


def test_evaluate_compares_models_item_by_item(ran, recipe, places):
    models = [recipe["model"], str(places / "run/steps/full/model")]
    found = evaluate(models, {"pipes": recipe["domains"]["pipes"]}, outside={"kitchen": recipe["domains"]["kitchen"]})
    assert [row["model"] for row in found["results"]] == models * 2
    theirs = {(row["domain"], row["value"], row["change"]) for row in ran["results"] if row["model"] == "full"}
    assert {(row["domain"], row["value"], row["change"]) for row in found["results"] if row["model"] == models[1]} <= theirs


def test_tasks_are_measured_with_their_own_metric(tiny, tokenizer, mask_tokenizer):
    rows = [
        {"prompt": f"{text} This is about", "options": [" pipes", " food"], "answer": " pipes" if topic == "pipes" else " food"}
        for topic in ("pipes", "kitchen")
        for text in sentences(topic, 8, 3)
    ]
    generated = [{"prompt": "The", "answer": "valve"}]
    tasks = {"topic": Task("topic", "classification", rows, "macro_f1"), "say": Task("say", "generation", generated)}
    domain = Domain("tasks", "text", {}, tasks=tasks)
    other = model_of(network("llama", tokenizer, seed=3), tokenizer, name="other")
    one, two = [row for row in measure({"a": tiny, "b": other}, domain, []) if row["domain"] == "tasks: topic"]
    assert one["change"] is None
    assert two["change"] == pytest.approx(two["value"] - one["value"])
    assert two["change_low"] <= two["change"] <= two["change_high"]
    seq2seq = model_of(network("t5", tokenizer), tokenizer, "seq2seq")
    assert [row["domain"] for row in measure({"t5": seq2seq}, domain, [])] == ["tasks: say"]
    masked = model_of(network("bert", mask_tokenizer), mask_tokenizer, "masked")
    assert measure({"bert": masked}, domain, []) == []


def test_a_run_may_merge_its_own_steps(recipe, tmp_path):
    import torch

    steps = [{**recipe["steps"][0], "as": name, "train": {**PLAIN, "steps": 2, "lr": lr}} for name, lr in (("a", 1e-2), ("b", 3e-2))]
    steps.append({"as": "mean", "use": "merging.linear", "from": ["a", "b"], "with": {"weights": [3, 1]}})
    steps.append({"as": "further", "use": "objectives.causal_lm", "from": "mean", "on": "pipes", "train": {**PLAIN, "steps": 1}})
    steps.append({"as": "soup", "use": "merging.soup", "from": ["a", "b", "further"], "on": {"any": "recall"}})
    data = execute.run({**recipe, "steps": steps}, tmp_path / "run")
    a, b, mean = (Model.load(str(tmp_path / "run" / "steps" / name / "model")).net.state_dict() for name in ("a", "b", "mean"))
    assert all(torch.allclose(mean[key], 0.75 * a[key] + 0.25 * b[key], atol=1e-6) for key in mean)
    assert {row["model"] for row in data["results"]} >= {"mean", "further", "soup.soup"}
    assert "linear of a, b" in data["models"]["mean"]["how"]
    before = figures(data)
    assert figures(execute.run({**recipe, "steps": steps}, tmp_path / "run")) == before  # read from the run directory
    noted = read_json(tmp_path / "run" / "notes" / "soup.soup.json")
    assert set(noted["members"]) <= {"a", "b", "further"}
    steps[-1] = {**steps[-1], "on": {"any": "pipes"}}
    with pytest.raises(AcclimateError, match="looks at the validation split of pipes, which has none"):
        execute.run({**recipe, "steps": steps}, tmp_path / "run")
