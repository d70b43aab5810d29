"""Images through recipes: class folders and named arrays, networks for them, a strategy on arrays from the recipe to the page."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from acclimate import datasets, execute
from acclimate.domain.arrays import ArrayDomain, Arrays, form_of, open_domain
from acclimate.engines import finetune
from acclimate.engines.finetune import guesses
from acclimate.errors import AcclimateError
from acclimate.files import read_json
from acclimate.measure import evaluate
from acclimate.method import load
from acclimate.model import ArrayModel, FeatureModel, Model, open_model
from acclimate.models.convnet import ConvNet
from acclimate.recipe import Recipe
from worlds import sentences

SHAPES = ("disc", "stripes", "square")


def image(shape, draw, ink, side=16):
    """A noisy shape somewhere in a picture of one style: uint8 [side, side, 3]."""
    rows, columns = np.mgrid[:side, :side]
    middle, size = draw.integers(side // 2 - 1, side // 2 + 2, 2), draw.integers(3, 6)
    drawn = {
        "disc": (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 <= size**2,
        "stripes": (rows + draw.integers(4)) % 4 < 2,
        "square": np.maximum(abs(rows - middle[0]), abs(columns - middle[1])) <= size,
        "cross": (abs(rows - middle[0]) < 2) | (abs(columns - middle[1]) < 2),
        "rain": (columns + draw.integers(4)) % 4 < 2,
    }[shape]
    pixels = drawn[..., None] * np.array(ink) + ~drawn[..., None] * 40 + draw.integers(0, 40, (side, side, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def draw_folder(folder, shapes, ink, seed, each=16, side=16, mode="RGB"):
    from PIL import Image

    draw = np.random.default_rng(seed)
    for shape in shapes:
        (folder / shape).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(image(shape, draw, ink, side)).convert(mode).save(folder / shape / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three styles of one task and another task, as class folders; one image stands in two styles."""
    root = tmp_path_factory.mktemp("images")
    for number, (style, ink) in enumerate({"red": (220, 60, 60), "green": (60, 200, 60), "blue": (80, 80, 230)}.items()):
        draw_folder(root / style, SHAPES, ink, number)
    draw_folder(root / "other", ("cross", "rain"), (200, 200, 90), 9)
    learned = ArrayDomain.load("blue", str(root / "blue")).rows("train").origins[0]  # by its content it goes to train wherever it stands
    shutil.copy(learned, root / "red" / "disc" / "copy.png")
    (root / "red" / "README.md").write_text("Drawn by a test.")
    return root


@pytest.fixture(scope="module")
def recipe(folders):
    method = {"n_runs": 2, "steps": 25, "lp_steps": 3, "lr": [2e-3, 4e-3], "batch_size": 8, "baselines": True}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = FeatureModel(ConvNet(6))
    seen = ArrayDomain.load("other", str(folders / "other")).rows("train").tensors()[0]
    for _ in range(40):  # statistics of images, so that fresh weights give features that can be learned from
        net.train()(seen)
    start = ArrayModel("small", net.eval()).save(folders / "small")
    return {
        "title": "shapes",
        "model": str(start),
        "domains": {
            **{name: str(folders / name) for name in ("red", "green", "other")},
            "blue": {"source": str(folders / "blue"), "shares": [0, 0, 1]},
        },
        "steps": [
            {
                "as": "stew",
                "use": "merging.model_ratatouille",
                "on": {"target": ["red", "green"], "auxiliaries": {"lines": "other"}},
                "with": method,
            }
        ],
        "evaluate": {"in": ["red", "green"], "out": ["blue"], "models": ["stew.erm", "stew.ratatouille"]},
    }


@pytest.fixture(scope="module")
def ran(recipe, places):
    return execute.run(recipe, places / "shapes", command="a test")


@pytest.fixture
def tuned(monkeypatch):
    """How many fine-tunings were run."""
    made, plain = [], finetune.fine_tune
    monkeypatch.setattr(finetune, "fine_tune", lambda *a, **k: made.append(1) or plain(*a, **k))
    return made


def changed(recipe, domains=None, **step):
    return {**recipe, "domains": {**recipe["domains"], **(domains or {})}, "steps": [{**recipe["steps"][0], **step}]}


def tunings(folder):
    """The steps that are fine-tunings, by their curves."""
    return [path for path in (folder / "steps").iterdir() if "validation" in read_json(path / "step.json")]


def figures(data):
    return json.loads(json.dumps({key: data[key] for key in ("results", "domains", "contamination")})), data["provenance"]["models"]


# from the recipe to the page


def test_a_strategy_on_images_is_run_measured_and_reported(ran, recipe, places):
    rows = {(row["model"], row["domain"]): row for row in ran["results"]}
    start = recipe["model"]
    models = [start, "stew.erm", "stew.ratatouille"]
    assert list(rows) == [(model, domain) for domain in ("red", "green", "blue") for model in models]
    for (model, domain), row in rows.items():
        assert (row["metric"], row["better"], row["n"]) == ("accuracy", "higher", ran["domains"][domain]["documents"])
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
        assert (row["change"] is None) == (model == start)
    assert rows["stew.ratatouille", "blue"]["value"] > 0.45  # chance is a third
    assert rows["stew.ratatouille", "red"]["value"] > 0.6
    assert rows["stew.ratatouille", "blue"]["change_low"] < rows["stew.ratatouille", "blue"]["change"]
    assert {name: domain["role"] for name, domain in ran["domains"].items()} == {"red": "in", "green": "in", "blue": "out"}
    assert ran["models"][start]["how"] == "the start model with a head probed on red, green"
    held = open_domain("blue", recipe["domains"]["blue"]["source"], shares=[0, 0, 1]).rows("test")
    model = open_model(str(places / "shapes/steps/stew.ratatouille/model"))
    right = (guesses(model.net, held.tensors()[0]).numpy() == held.y).mean()
    assert rows["stew.ratatouille", "blue"]["value"] == pytest.approx(right)
    assert "accuracy" in (places / "shapes/report.html").read_text()
    assert read_json(places / "shapes/report.json")["results"] == json.loads(json.dumps(ran["results"]))
    notes = read_json(places / "shapes/notes/stew.runs.ratatouille.json")
    assert len(notes) == 2
    assert f"base_model: {start}" in (places / "shapes/steps/stew.ratatouille/model/README.md").read_text()


def test_an_image_that_is_learned_and_measured_is_left_out(ran):
    assert ran["contamination"]["removed"] == 1
    (span,) = ran["contamination"]["spans"]
    assert (span["domain"], span["found_in"], span["text"]) == ("red", "blue", "a whole row of class disc")
    assert span["origin"].endswith("red/disc/copy.png")


def test_what_is_made_is_not_made_again(ran, recipe, places, tuned):
    assert figures(execute.run(recipe, places / "shapes")) == figures(ran)
    assert tuned == []
    text = (places / "shapes/recipe.yaml").read_text()
    assert "&id" not in text
    assert Recipe.read(places / "shapes/recipe.yaml").text() == text


def test_changed_settings_are_made_again(ran, recipe, places, tuned, tmp_path):
    shutil.copytree(places / "shapes", tmp_path / "run")
    execute.run(changed(recipe, **{"with": {**recipe["steps"][0]["with"], "n_runs": 4}}), tmp_path / "run")
    assert len(tuned) == len(tunings(tmp_path / "run")) - len(tunings(places / "shapes")) > 0


KILLED = """
from acclimate import execute
from acclimate.engines import finetune
plain, calls = finetune.fine_tune, []
def fine_tune(*given, **more):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*given, **more)
finetune.fine_tune = fine_tune
execute.run(recipe, folder)
"""


def test_the_resolved_recipe_killed_and_gone_on_with_gives_the_same_figures(ran, child, tmp_path, tuned, places):
    resolved = places / "shapes/recipe.yaml"
    code, said = child(KILLED, recipe=str(resolved), folder=str(tmp_path / "run"))
    assert code == -9, said
    assert figures(execute.run(resolved, tmp_path / "run")) == figures(ran)
    assert len(tuned) == len(tunings(places / "shapes")) - 3


def test_a_step_may_start_from_an_array_step_and_evaluate_takes_folders(ran, recipe, places, tmp_path, tuned):
    two = [recipe["steps"][0], {**recipe["steps"][0], "as": "second", "from": "stew", "with": {"n_runs": 1, "steps": 2, "lr": [1e-3]}}]
    shutil.copytree(places / "shapes", tmp_path / "run")
    data = execute.run({**recipe, "steps": two, "evaluate": {**recipe["evaluate"], "models": ["second"]}}, tmp_path / "run")
    assert [row["model"] for row in data["results"]] == [recipe["model"], "second"] * 3
    folder = str(places / "shapes/steps/stew.erm/model")
    found = evaluate(["convnet", folder], {"red": recipe["domains"]["red"]}, outside={"blue": recipe["domains"]["blue"]["source"]})
    assert {(row["model"], row["metric"]) for row in found["results"]} == {("convnet", "accuracy"), (folder, "accuracy")}


def test_plan_and_dry_run_say_what_would_run(recipe, tmp_path):
    from typer.testing import CliRunner

    from acclimate.cli.commands import app
    from acclimate.files import yaml_text

    (tmp_path / "recipe.yaml").write_text(yaml_text(recipe))
    for command in (["plan"], ["run", "--dry-run"]):
        done = CliRunner().invoke(app, [command[0], str(tmp_path / "recipe.yaml"), *command[1:]])
        assert done.exit_code == 0, done.output
        assert "auxiliaries" in done.output


# what does not fit is said in one line


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        ({"on": {"target": ["red", "rde"], "auxiliaries": {"l": "other"}}}, r"no domain 'rde'; nearest: red"),
        ({"on": {"target": [], "auxiliaries": {"l": "other"}}}, "role 'target' of .* names no domain"),
        ({"on": {"target": ["words"], "auxiliaries": {"l": "other"}}}, "works on arrays, but domain 'words' holds text; name images"),
        ({"use": "objectives.causal_lm", "on": "red", "with": {}}, "works on text, but domain 'red' holds arrays; name a domain of text"),
        ({"use": "merging.soup", "from": ["a", "b"], "on": {"any": "red"}, "with": {}}, "works on text, but domain 'red' holds arrays"),
        ({"use": "merging.soup", "from": ["a", "b"], "on": {"any": ["words"]}, "with": {}}, "role 'any' of merging.soup is one domain"),
        (
            {"use": "objectives.causal_lm", "on": "words", "with": {}},
            "works on text, but .* is a model of arrays; start from a model of text",
        ),
        ({"from": "TINY"}, "works on arrays, but .* is a model of text; start from a network for arrays such as convnet"),
    ],
)
def test_text_and_arrays_are_told_apart_before_anything_loads(edit, line, recipe, tiny_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(execute.Tools, "open", lambda self: pytest.fail("something was loaded"))
    (tmp_path / "words.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences("pipes", 20)))
    edit = {key: str(tiny_folder) if value == "TINY" else value for key, value in edit.items()}
    plan = changed(recipe, {"words": str(tmp_path / "words.jsonl")}, **edit)
    with pytest.raises(AcclimateError, match=line) as caught:
        execute.run({**plan, "evaluate": {"in": ["red"]}}, tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "options", "line"),
    [
        (lambda root: draw_folder(root / "x", SHAPES, (9, 9, 9), 1, 4), {"classes": ["disk"]}, "no class 'disk' in .*; nearest: disc"),
        (lambda root: (root / "x" / "disc").mkdir(parents=True), {}, "x is empty: it holds neither text nor class folders of images"),
        (
            lambda root: (draw_folder(root / "x", SHAPES, (9, 9, 9), 1, 4), (root / "x" / "zebra").mkdir()),
            {},
            "x/zebra holds no image .* or take the folder away",
        ),
        (
            lambda root: (
                draw_folder(root / "x", ("disc",), (9, 9, 9), 1, 4),
                draw_folder(root / "x", ("rain",), (9, 9, 9), 1, 4, side=12),
            ),
            {},
            "rain/0.png is 12 x 12 pixels, but .*disc/0.png is 16 x 16; .* e.g. side: 32",
        ),
        (
            lambda root: (draw_folder(root / "x", SHAPES, (9, 9, 9), 1, 4) / "disc" / "0.png").write_bytes(b"no"),
            {},
            "disc/0.png cannot be read as an image",
        ),
        (lambda root: None, {"side": 8}, "no folder of images .* exists, and no dataset has that name"),
        (lambda root: draw_folder(root / "x", ("disc", "rain"), (9, 9, 9), 1, 1), {}, "too small to split: 2 distinct rows leave"),
    ],
    ids=["unknown class", "empty folder", "empty class", "mixed sizes", "broken image", "missing folder", "too small"],
)
def test_a_folder_that_cannot_be_read_is_one_line(make, options, line, tmp_path, recipe, tuned):
    make(tmp_path)
    plan = changed(recipe, {"red": {"source": str(tmp_path / "x"), **options}})
    with pytest.raises(AcclimateError, match=line) as caught:
        execute.run(plan, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert tuned == []


def test_classes_and_shapes_are_compared_before_training(recipe, folders, tmp_path, tuned):
    grey = draw_folder(tmp_path / "grey", SHAPES, (250, 250, 250), 5, 8, mode="L")
    for domains, evaluate_, line in (
        ({}, {"in": ["other"]}, "domain 'other' is measured, but step stew learns no class 'cross'"),
        (
            {"green": str(grey)},
            {},
            r"domain 'green' has the shape \(1, 16, 16\), but .*small takes \(3, 32, 32\); for images say channels: 3",
        ),
        ({"green": {"source": str(grey), "side": 8, "channels": 3}}, {}, r"shape \(3, 8, 8\).* the same side: and channels:"),
        ({"green": {"source": str(folders / "green"), "classes": ["square", "disc", "stripes"]}}, {}, "name the same in the same order"),
    ):
        plan = {**changed(recipe, domains), "evaluate": {**recipe["evaluate"], **evaluate_}}
        with pytest.raises(AcclimateError, match=line):
            execute.run(plan, tmp_path / "run")
    assert tuned == []


def test_options_of_images_are_checked_with_the_recipe(recipe, folders):
    for options, line in (
        ({"sied": 8}, "domain red: unknown key 'sied'; nearest: side"),
        ({"channels": 2}, "channels = 2, but must be one of 0, 1, 3"),
        ({"shares": [0.5, 0.2, 0.2]}, "three numbers .* that sum to 1"),
        ({"passage_chars": 900}, "unknown key 'passage_chars'"),
    ):
        with pytest.raises(AcclimateError, match=line):
            Recipe.check(changed(recipe, {"red": {"source": str(folders / "red"), **options}}))


# the domain


def test_rows_are_divided_by_their_own_content(folders):
    domain = ArrayDomain.load("red", str(folders / "red"))
    assert (domain.classes, domain.form, set(domain.splits)) == (sorted(SHAPES), "arrays", {"train", "test"})
    assert len(domain.rows("train")) + len(domain.rows("test")) == 3 * 16 + 1
    assert domain.rows("train").x.shape[1:] == (3, 16, 16)
    assert 0.9 < domain.rows("train").x.max() <= 1
    wider = ArrayDomain.load("red", str(folders / "red"), shares=[0.6, 0.2, 0.2])
    assert wider.rows("test").hashes == domain.rows("test").hashes
    few = ArrayDomain.load("red", str(folders / "red"), classes=["square", "disc"], limit=20, side=8, channels=1)
    assert sum(map(len, few.splits.values())) == 20
    assert few.rows("train").x.shape[1:] == (1, 8, 8)
    assert few.fingerprint != domain.fingerprint == ArrayDomain.load("other name", str(folders / "red")).fingerprint


def test_splits_that_are_given_are_kept_and_train_loses_tested_rows(tmp_path):
    root = draw_folder(tmp_path / "given" / "train", SHAPES, (250, 0, 0), 1, 5).parent
    draw_folder(root / "test", SHAPES, (0, 250, 0), 2, 3)
    shutil.copy(root / "test" / "disc" / "1.png", root / "train" / "disc" / "again.png")
    domain = open_domain("given", str(root))
    assert {split: len(rows) for split, rows in domain.splits.items()} == {"test": 9, "train": 15}
    assert domain.dropped == {"exact": 1}


def test_a_source_says_what_it_holds(folders, tmp_path):
    assert form_of({"source": str(folders / "red")}) == "arrays"
    assert form_of({"source": "pacs/photo"}) == form_of({"source": "digits/usps"}) == "arrays"
    assert form_of({"source": "lm/legal"}) == form_of({"recall": 9}) == "text"
    assert form_of({"source": "someone/dataset"}) == ""
    pages = tmp_path / "pages"
    draw_folder(pages, ("disc",), (1, 1, 1), 0, 2)
    (pages / "index.md").write_text("A manual with figures.")
    assert form_of({"source": str(pages)}) == "text"


def test_bundled_digits_go_through_the_same_door():
    domain = open_domain("digits", "digits/sklearn", side=16, channels=3, limit=100)
    assert domain.rows("train").x.shape[1:] == (3, 16, 16)
    assert domain.classes == [str(digit) for digit in range(10)]
    assert domain.licence
    assert isinstance(datasets.load("digits/sklearn"), Arrays)


# the network


def test_a_network_is_saved_and_read_back_strictly(tmp_path):
    fresh = ArrayModel.load("convnet", seed=3)
    assert fresh.fingerprint == ArrayModel.load("convnet", seed=3).fingerprint != ArrayModel.load("convnet", seed=4).fingerprint
    assert fresh.kind == "featurizer"
    model = ArrayModel("net", FeatureModel(ConvNet(4), torch.nn.Linear(16, 2), classes=["a", "b"]))
    before = model.fingerprint
    model.net.featurizer.stem[1].running_mean.fill_(2.0)
    assert model.fingerprint != before  # statistics count as weights do
    model.save(tmp_path / "net")
    again = open_model(str(tmp_path / "net"))
    assert (again.fingerprint, again.classes, again.kind, again.name) == (model.fingerprint, ["a", "b"], "classifier", "net")
    assert torch.equal(again.probe(), model.probe())
    assert "library_name: acclimate" in (tmp_path / "net" / "README.md").read_text()
    stored = load_file(tmp_path / "net" / "model.safetensors")
    for change, line in (
        (lambda weights: weights.pop("head.bias"), "lacks 1 weights of its network, e.g. head.bias"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "has extra 1 weights of its network, e.g. extra"),
        (lambda weights: weights.update({"head.bias": torch.zeros(3)}), "has wrong shapes for 1 weights"),
    ):
        weights = dict(stored)
        change(weights)
        save_file(weights, tmp_path / "net" / "model.safetensors")
        with pytest.raises(AcclimateError, match=line):
            open_model(str(tmp_path / "net"))
    with pytest.raises(AcclimateError, match=r"built on Linear, which cannot be read back; build on .*convnet"):
        ArrayModel("net", FeatureModel(torch.nn.Linear(2, 2))).save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_text_models_are_opened_as_before(tiny_folder):
    assert isinstance(open_model(str(tiny_folder)), Model)
    assert load("merging.model_ratatouille").works_on == "arrays"
