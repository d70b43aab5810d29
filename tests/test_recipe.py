"""Recipes: what is wrong is said in one line that names the place and the nearest right word, before anything loads."""

import inspect
import sys
from pathlib import Path

import pytest

import acclimate
from acclimate.errors import AcclimateError
from acclimate.files import read_yaml
from acclimate.kinds import Adapter, Objective, Strategy
from acclimate.method import find
from acclimate.recipe import Recipe

GOOD = {
    "title": "a trial",
    "seed": 3,
    "model": "base",
    "domains": {"law": "law.txt", "news": {"source": "news.jsonl", "limit": 50}, "recall": {"recall": 20}},
    "steps": [
        {
            "as": "second",
            "use": "objectives.causal_lm",
            "from": "first",
            "on": {"law": 0.8, "recall": 0.2},
            "train": {"steps": 5, "lr": 1e-4},
        },
        {"as": "first", "use": "objectives.causal_lm", "on": ["law", "news"], "stages": [[0.5, {"law": 1}], [1, {"news": 1.5}]]},
        {"as": "small", "use": "objectives.distill", "on": "law", "adapter": "adapters.lora", "teacher": "second", "with": {"weight": 0.3}},
    ],
    "evaluate": {"in": "law", "out": ["news", "recall"], "samples": 0},
}


def changed(**changes) -> dict:
    """The good recipe with some keys of the first step (``step``), of evaluate, or of the whole changed."""
    data = {**GOOD, "steps": [dict(step) for step in GOOD["steps"]], "domains": dict(GOOD["domains"]), "evaluate": dict(GOOD["evaluate"])}
    for key, value in changes.items():
        if key in ("step", "domains", "evaluate") and isinstance(value, dict):
            (data["steps"][0] if key == "step" else data[key]).update(value)
        elif key == "step":
            data["steps"][0] = value
        else:
            data[key] = value
    return data


def test_a_good_recipe_is_put_in_order_and_its_defaults_are_written_out():
    recipe = Recipe.check(GOOD)
    assert [step.name for step in recipe.steps] == ["first", "second", "small"]
    assert recipe.steps[0].start == "base"
    assert recipe.steps[0].on == {"law": 1.0, "news": 1.0}
    assert isinstance(recipe.steps[2].method, Objective)
    assert recipe.steps[2].method.weight == 0.3
    assert isinstance(recipe.steps[2].adapter, Adapter)
    assert recipe.evaluate == {"in": ["law"], "out": ["news", "recall"], "samples": 0}
    resolved = recipe.text()
    for written in ("seed: 3", "lr: 0.0001", "temperature: 1.0", "r: 8", "source: law.txt", "recall: 20", "schedule: cosine"):
        assert written in resolved
    assert "{'" not in resolved


def test_the_resolved_recipe_reads_back_as_itself(tmp_path):
    for data in (GOOD, changed(contamination="off"), changed(domains={"on": "off.txt", "no": "yes.txt"}, evaluate={"in": ["on", "no"]})):
        recipe = Recipe.check(data)
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe.text())
        again = Recipe.read(path)
        assert again.text() == recipe.text()
        assert again.contamination == recipe.contamination
        for one, other in zip(recipe.steps, again.steps, strict=True):
            assert (one.name, one.use, one.start, one.on, one.teacher, one.stages) == (
                other.name, other.use, other.start, other.on, other.teacher, other.stages,
            )  # fmt: skip
            assert one.method.values() == other.method.values()
            assert (one.adapter and one.adapter.values()) == (other.adapter and other.adapter.values())


def test_the_packages_own_recipes_are_good():
    root = Path(acclimate.__file__).parent / "recipes"
    own = sorted(root.rglob("*.yaml"))
    assert "quickstart" in [path.stem for path in own]
    for path in own:
        recipe = Recipe.read(path)
        assert recipe.steps
        assert Recipe.read(path.relative_to(root).with_suffix("")).text() == recipe.text()
    with pytest.raises(AcclimateError, match=r"no recipe quickstat: .*; nearest: quickstart"):
        Recipe.read("quickstat")


BAD = {  # name: (recipe, what the line must hold)
    "not a mapping": ([1, 2], "must be a mapping of keys, but is list"),
    "nothing": (None, "must be a mapping of keys, but is NoneType"),
    "key at the top": (changed(domian={}), "unknown key 'domian'; nearest: domains"),
    "key of a step": (changed(step={"trian": {}}), "step second: unknown key 'trian'; nearest: train"),
    "key of an adapter": (changed(step={"adapter": {"use": "adapters.lora", "wiht": {}}}), "adapter: unknown key 'wiht'; nearest: with"),
    "key of evaluate": (changed(evaluate={"sample": 2}), "evaluate: unknown key 'sample'; nearest: samples"),
    "key of a domain": (changed(domains={"law": {"source": "x", "limt": 3}}), "domain law: unknown key 'limt'; nearest: limit"),
    "key of recall": (changed(domains={"recall": {"recall": 9, "modle": "x"}}), "domain recall: unknown key 'modle'; nearest: model"),
    "training setting": (changed(step={"train": {"stesp": 4}}), "step second, train: Training has no setting 'stesp'; nearest: steps"),
    "method's setting": (changed(step={"use": "objectives.dpo", "with": {"bta": 1}}), "Dpo has no setting 'bta'; nearest: beta"),
    "adapter's setting": (changed(step={"adapter": {"use": "adapters.lora", "with": {"rank": 2}}}), "Lora has no setting 'rank'"),
    "setting out of range": (changed(step={"train": {"lr": -1}}), "Training.lr = -1"),
    "option out of range": (changed(domains={"law": {"source": "x", "limit": 0}}), "domain law: Options.limit = 0"),
    "method": (changed(step={"use": "objectives.causal"}), "step second: no method 'objectives.causal'; nearest: objectives.causal_lm"),
    "no method": (changed(steps=[{"as": "x", "on": "law"}]), "step x: use: is missing"),
    "method is a number": (changed(step={"use": 5}), "use: is missing; name a method such as objectives.causal_lm"),
    "method of another kind": (changed(step={"use": "adapters.lora"}), "adapters.lora cannot stand here"),
    "adapter of another kind": (changed(step={"adapter": "objectives.dpo"}), "objectives.dpo cannot stand here"),
    "adapter without a method": (changed(step={"adapter": {"with": {}}}), "adapter: use: is missing; name a method such as adapters.lora"),
    "unknown domain": (changed(step={"on": "lwa"}), "step second: no domain 'lwa'; nearest: law"),
    "unknown domain in a mixture": (changed(step={"on": {"law": 1, "nwes": 1}}), "no domain 'nwes'; nearest: news"),
    "unknown domain to evaluate": (changed(evaluate={"out": ["nws"]}), "evaluate.out: no domain 'nws'; nearest: news"),
    "unknown step to evaluate": (changed(evaluate={"models": ["frist"]}), "evaluate.models: no step 'frist'; nearest: first"),
    "a product no step makes": (changed(evaluate={"models": ["first.dapt"]}), "evaluate.models: no step 'first.dapt'"),
    "no domain to learn on": (changed(step={"on": {}}), "on: is missing"),
    "on is a number": (changed(step={"on": 5}), "on must be a name or a list of names, but is 5"),
    "weight is text": (changed(step={"on": {"law": "much"}}), "the weight of domain 'law' is 'much'"),
    "weight is negative": (changed(step={"on": {"law": -1}}), "the weight of domain 'law' is -1"),
    "doubled names": (changed(step={"as": "first"}), "two steps are called 'first'"),
    "a name that leaves the folder": (changed(step={"as": "../x"}), "a step's name is the name of its folder"),
    "cycle": (
        changed(steps=[{"as": a, "use": "objectives.causal_lm", "on": "law", "from": b} for a, b in ("ab", "bc", "ca")]),
        "steps go round in a circle: a -> b -> c -> a",
    ),
    "a step from itself": (changed(step={"from": "second"}), "circle: second -> second"),
    "cycle through a teacher": (changed(step={"from": "small"}), "steps go round in a circle: second -> small -> second"),
    "no teacher": (changed(step={"use": "objectives.distill"}), "step second: objectives.distill needs teacher_"),
    "steps are a mapping": (changed(steps={"a": 1}), "steps must be a list"),
    "a step is a word": (changed(steps=["causal_lm"]), "step step1 must be a mapping of keys, but is str"),
    "domains are a list": (changed(domains=["law"]), "domains must be a mapping of keys, but is ['law']"),
    "domain without a source": (changed(domains={"law": {"limit": 4}}), "domain law needs either source: "),
    "domain with two sources": (changed(domains={"law": {"source": "x", "recall": 4}}), "domain law needs either source: "),
    "empty domain": (changed(domains={"law": None}), "domain law needs either source: "),
    "recall is text": (changed(domains={"recall": {"recall": "some"}}), "domain recall, recall = 'some', but must be a whole number"),
    "evaluate is a list": (changed(evaluate=["law"]), "evaluate must be a mapping of keys"),
    "in is a number": (changed(evaluate={"in": 3}), "evaluate.in must be a name or a list of names, but is 3"),
    "bytes are text": (changed(evaluate={"bytes": "lots"}), "evaluate.bytes = 'lots', but must be a whole number of 1 or more"),
    "seed is text": (changed(seed="lucky"), "seed = 'lucky', but must be a whole number of 0 or more"),
    "train is a number": (changed(step={"train": 5}), "train must be a mapping of keys, but is 5"),
    "with is a list": (changed(step={"with": ["beta"]}), "with must be a mapping of keys"),
    "stages are a number": (changed(step={"stages": 0.5}), "a stage is written [share of the run at its end"),
    "a stage is a number": (changed(step={"stages": [0.5]}), "a stage is written"),
    "a stage without weights": (changed(step={"stages": [[0.5, "law"]]}), "a stage is written"),
    "a stage with an end in words": (changed(step={"stages": [["half", {"law": 1}]]}), "a stage is written"),
    "a stage of a domain elsewhere": (changed(step={"stages": [[1, {"news": 1}]]}), "no domain of this step 'news'"),
    "stages that fall": (changed(step={"stages": [[0.8, {"law": 1}], [0.2, {"law": 1}]]}), "the ends of stages must rise"),
    "a stage past the end": (changed(step={"stages": [[1.5, {"law": 1}]]}), "the ends of stages must rise"),
    "a stage's weight": (changed(step={"stages": [[1, {"law": "x"}]]}), "the weight of domain 'law' in a stage is 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_one_line(name):
    data, line = BAD[name]
    with pytest.raises(AcclimateError) as caught:
        Recipe.check(data, "trial.yaml")
    assert line in str(caught.value)
    assert str(caught.value).startswith("trial.yaml")
    assert "\n" not in str(caught.value)


def test_yaml_that_cannot_be_read_is_one_line(tmp_path):
    path = tmp_path / "bad.yaml"
    for text in ("steps: [a, b", "a: b: c", "\tx: 1"):
        path.write_text(text)
        with pytest.raises(AcclimateError, match=r"bad\.yaml is not valid YAML") as caught:
            Recipe.read(path)
        assert "\n" not in str(caught.value)
    path.write_text("on: 1\n")
    assert read_yaml(path) == {"on": 1}


def merging(**changes) -> dict:
    """The good recipe with a merge of its steps."""
    step = {"as": "merged", "use": "merging.ties", "from": ["first", "second"], "with": {"keep": [0.5]}, **changes}
    return {**GOOD, "steps": [{key: value for key, value in step.items() if value is not None}, *GOOD["steps"]]}


def test_a_merge_comes_after_what_it_merges_and_starts_from_the_recipes_model():
    recipe = Recipe.check(merging())
    assert [step.name for step in recipe.steps] == ["first", "second", "merged", "small"]
    merged = recipe.steps[2]
    assert (merged.tuned, merged.start) == (["first", "second"], "base")
    again = Recipe.check(read_yaml_text(recipe.text()))
    assert again.text() == recipe.text()


def read_yaml_text(text: str):
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        return read_yaml(file.name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"from": None}, r"merging.ties merges models; list them with from: \[a, b\]"),
        ({"on": "law"}, "on: has no meaning for merging.ties"),
        ({"train": {"steps": 3}}, "train: has no meaning for merging.ties"),
        ({"with": {"keep": [0.1, 0.2, 0.3]}}, "keep holds 3 values for 2 models"),
        ({"with": {"kep": [0.1]}}, "nearest: keep"),
        ({"use": "merging.nearswap", "with": None}, "nearswap takes 1 tuned models, but was given 2"),
        ({"use": "objectives.causal_lm", "on": "law", "with": None}, "from: is one model for objectives.causal_lm, not a list"),
        ({"from": ["first", "merged"]}, "go round in a circle"),
    ],
)
def test_merges_are_checked_before_anything_loads(changes, said):
    with pytest.raises(AcclimateError, match=said):
        Recipe.check(merging(**changes))


@pytest.mark.parametrize("name", [n for n in acclimate.names() if issubclass(find(n), Strategy)])
def test_strategies_say_whether_a_recipe_reaches_their_training(name):
    """``trains`` is what the source does: it hands its training to ``tools.train``, where the recipe's train: is added."""
    kind = find(name)
    source = "".join(
        inspect.getsource(sys.modules[each.__module__]) for each in kind.__mro__ if each.__module__.startswith("acclimate.methods.")
    )
    assert kind.trains == ("tools.train(" in source)


def test_training_settings_that_reach_nothing_are_refused():
    step = {"as": "a", "use": "adapters.sentence_embeddings", "on": {"domain": "docs"}, "train": {"lr": 1e-3}}
    with pytest.raises(AcclimateError, match=r"train: reaches nothing in adapters.sentence_embeddings, which trains by its own settings"):
        Recipe.check({"domains": {"docs": "x"}, "steps": [step]})
    step = {"as": "a", "use": "objectives.dapt_tapt", "on": {"corpus": "docs", "task": "docs"}, "train": {"stesp": 3}}
    with pytest.raises(AcclimateError, match="no setting 'stesp'; nearest: steps"):
        Recipe.check({"domains": {"docs": "x"}, "steps": [step]})
