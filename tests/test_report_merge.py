"""Merges and searches in the report: what is drawn is what merge.json and the logs of trials hold, and what is broken is said."""

import copy
import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file

from acclimate import execute, report
from acclimate.engines.merging import planning
from acclimate.engines.merging.adapted import open_model
from acclimate.engines.pareto import pareto
from acclimate.engines.search import search
from acclimate.errors import AcclimateError
from acclimate.files import read_json, write_json
from acclimate.method import load
from acclimate.model import Model
from acclimate.parts.layer_groups import LAYER, role_of
from acclimate.report.gather import gather
from acclimate.report.merge_facts import ROOM, condense
from acclimate.report.merge_page import merge_page
from acclimate.report.searches import read_searches
from test_report import Page
from worlds import model_of, network, sentences, varied


@pytest.fixture(scope="module")
def family(tmp_path_factory, tokenizer):
    """A Llama of two layers and two tunes of it, saved."""
    root = tmp_path_factory.mktemp("family")
    base = network("llama", tokenizer)
    for name, net in {"base": base, "a": varied(base, 1), "b": varied(base, 2)}.items():
        model_of(net, tokenizer, name=name).save(root / name)
    return root


@pytest.fixture(scope="module")
def recipe(family, places):
    """A merge and two searches on tiny text."""
    data = places / "merge data"
    data.mkdir()
    for split, texts in (("train", 0), ("validation", 1), ("test", 2)):
        lines = [json.dumps({"text": text}) for text in sentences("pipes", 6, texts)]
        (data / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    both = {"from": [str(family / "a"), str(family / "b")]}
    return {
        "title": "merges",
        "model": str(family / "base"),
        "domains": {"pipes": str(data)},
        "steps": [
            {"as": "merged", "use": "merging.ties", **both, "with": {"keep": [0.5]}},
            {"as": "evo", "use": "merging.evolutionary", **both, "on": {"fit": "pipes"}, "with": {"trials": 7, "population": 4}},
            {"as": "soup", "use": "merging.soup", **both, "on": {"fit": "pipes"}},
        ],
        "evaluate": {"in": ["pipes"], "out": [], "samples": 0},
    }


@pytest.fixture(scope="module")
def ran(recipe, places):
    data = execute.run(recipe, places / "merging run", command="a test")
    return data, places / "merging run"


def read(html) -> Page:
    found = Page(html)
    assert all(address.startswith("#") for address in found.addresses), "only places inside the page may be named"
    assert len(found.ids) == len(set(found.ids))
    assert {address[1:] for address in found.addresses} <= set(found.ids)
    return found


def by_hand(facts, layer, role, value):
    """The mean of a fact over the tensors of one role in one layer, weighted by size."""
    some = [
        (math.prod(fact["shape"]), value(fact))
        for name, fact in facts["tensors"].items()
        if role_of(name) == role and (match := LAYER.match(name)) and int(match[2]) == layer
    ]
    return sum(size * x for size, x in some) / sum(size for size, _ in some)


def test_the_report_draws_each_merge_with_the_numbers_of_its_merge_json(ran):
    _, folder = ran
    data, facts = report.load(folder), read_json(folder / "steps/merged/model/merge.json")
    assert list(data["merges"]) == ["merged", "evo.ps", "soup.soup"]
    merge = data["merges"]["merged"]
    assert merge["changed"] == facts["changed"]
    assert merge["weights"] == facts["weights"]
    assert merge["tensors"] == len(facts["tensors"])
    assert [parent["name"] for parent in merge["parents"]] == ["a", "b", "base (base)"]
    rows = {(row["x"], row["role"]): row for row in merge["layers"]}
    assert {role for _, role in rows} == {"attention", "feed-forward", "norms", "embedding/head"}
    keys = list(facts["tensors"]["model.norm.weight"]["cosine"])
    for layer in (0, 1):
        for role in ("attention", "feed-forward", "norms"):
            row = rows[layer, role]
            assert row["changed"] == pytest.approx(by_hand(facts, layer, role, lambda fact: fact["changed"]))
            for key, parent in zip(keys, merge["parents"], strict=True):
                mean = by_hand(facts, layer, role, lambda fact, key=key: fact["cosine"][key])
                assert row["cosine"][parent["name"]] == pytest.approx(mean)
    weights = {name: value for path in folder.glob("steps/merged/model/*.safetensors") for name, value in load_file(path).items()}
    values = torch.cat([value.flatten() for name, value in weights.items() if "layers.1.mlp" in name])
    assert rows[1, "feed-forward"]["rms"] == pytest.approx(values.square().mean().sqrt().item(), rel=1e-5)
    assert rows[-1, "embedding/head"]["place"] == "embedding"
    assert rows[2, "norms"]["place"] == "head"
    assert sum(row["weights"] for row in merge["layers"]) == facts["weights"]


def test_the_page_shows_them(ran):
    _, folder = ran
    html = (folder / "report.html").read_text()
    found, facts = read(html), read_json(folder / "steps/merged/model/merge.json")
    assert found.tags.count("svg") >= 3 * 2 + 2  # two for each merge, one for each search
    assert "ties of a, b, base (base)" in found.text
    assert "vocabulary: one for all" in found.text
    assert "keep:" in found.text
    row = next(row for row in report.load(folder)["merges"]["merged"]["layers"] if (row["x"], row["role"]) == (1, "attention"))
    figures = ["layer 1", "attention", str(row["weights"]), f"{100 * row['changed']:.2f}%", *(f"{c:.5f}" for c in row["cosine"].values())]
    assert re.search(r"\s+".join(map(re.escape, figures[:4])) + r"\s+\S+\s+" + r"\s+".join(map(re.escape, figures[4:])), found.text)
    table = report.load(folder)["merges"]["merged"]["table"]
    for name, fact in facts["tensors"].items():
        match = LAYER.match(name)
        heading = f"{match[1]}*{match[3]}" if match else name
        rows = table.split(f"\n{heading}  ")[1].split("\n\n")[0].split("\n")[1:]
        cells = next(cells for cells in map(str.split, rows) if cells[0] == (match[2] if match else "-"))
        assert float(cells[1]) == pytest.approx(fact["norm"], rel=1e-4)
        assert float(cells[2].rstrip("%")) == pytest.approx(100 * fact["changed"], abs=0.006)
        assert [float(cell) for cell in cells[3:]] == pytest.approx(list(fact["cosine"].values()), abs=1e-5)


def test_searches_are_drawn_from_their_logs(ran):
    _, folder = ran
    data = report.load(folder)
    assert list(data["searches"]) == ["evo.ps", "soup.soup"]
    lines = [json.loads(line) for line in (folder / "searches/evo.ps.jsonl").read_text().splitlines()[1:]]
    evo, note = data["searches"]["evo.ps"], read_json(folder / "notes/evo.ps.json")
    assert evo["trials"] == [[i, line["score"]] for i, line in enumerate(lines, 1)]
    assert evo["best"][-1][1] == min(line["score"] for line in lines) == pytest.approx(note["score"])
    assert evo["held_out"] == pytest.approx(note["held out"]["fit"])
    assert [score for _, score in data["searches"]["soup.soup"]["trials"]] == read_json(folder / "notes/soup.soup.json")["curve"]
    text = read((folder / "report.html").read_text()).text
    assert "7 trials by CMA-ES over 16 genes" in text
    assert "held-out text: start and winner" in text
    assert "2 trials by greedy addition" in text
    assert f"{evo['best'][-1][1]:.6f}" in text


def test_a_broken_or_missing_merge_json_is_said(ran, tmp_path, capsys):
    data, folder = ran
    for name in ("merged", "evo.ps"):
        (tmp_path / "steps" / name / "model").mkdir(parents=True)
        (tmp_path / "steps" / name / "step.json").write_text((folder / "steps" / name / "step.json").read_text())
    (tmp_path / "recipe.yaml").write_text((folder / "recipe.yaml").read_text())
    (tmp_path / "steps/evo.ps/model/merge.json").write_text('{"made": ')
    (tmp_path / "searches").mkdir()
    (tmp_path / "searches/evo.ps.jsonl").write_text("no log\n")
    plain = {key: value for key, value in data.items() if key not in ("merges", "searches", "folder")}
    text = read(report.write(plain, tmp_path).read_text()).text
    assert re.search(r"The facts of this merge cannot be drawn: \S*merged/model/merge\.json does not exist", text)
    assert re.search(r"cannot be drawn: \S*merge\.json is not valid JSON", text)
    assert "The trials of this search cannot be drawn" in text
    (tmp_path / "recipe.yaml").write_text("steps: [")
    assert list(gather(tmp_path, ["evo.ps", "/absolute"])["merges"]) == ["evo.ps"]


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        {},
        {"tensors": []},
        {"tensors": {"a": 3}},
        {"tensors": {"a": {"shape": [2], "norm": float("nan"), "changed": 0, "cosine": {}}}},
    ],
)
def test_nothing_to_draw_is_a_page_that_says_so(broken):
    assert "nothing to draw" in read(merge_page(broken, "odd")).text
    with pytest.raises(AcclimateError, match="merge again"):
        condense(broken)


def test_odd_facts_are_left_out_one_by_one(ran):
    _, folder = ran
    facts = read_json(folder / "steps/merged/model/merge.json")
    names = list(facts["tensors"])
    facts["tensors"][names[0]]["norm"] = "big"
    facts["tensors"][names[1]]["cosine"] = {"0:x": None, "1:<script>": 0.0}
    facts["tensors"]["layers.7.inv"] = {"shape": [3], "dtype": "int64", "norm": 1e200, "changed": 0.0, "cosine": {"0:x": 1.0}}
    facts |= {"vocabulary": {"rows": 5, "models": {"0:x": 1}}, "weights": None, "changed": None, "probe": 3, "requantised": []}
    facts["made"] = {"parents": 3, "settings": "a: [", "method": "<b>"}
    found = read(merge_page(facts, "odd <title>"))
    assert "1 entries of merge.json could not be read" in found.text
    assert "b" not in found.tags
    assert "script" not in found.tags


def test_a_page_of_thousands_of_tensors_stays_small():
    parents = [f"{i}:org/model-{i}" for i in range(10)]
    tensors = {
        f"model.layers.{layer}.mlp.experts.{expert}.{kind}_proj.weight": {
            "shape": [1024, 4096],
            "dtype": "bfloat16",
            "norm": 12.3456 + layer,
            "cosine": {parent: 1 - (i + layer) / 3000 for i, parent in enumerate(parents)},
            "changed": layer / 60,
        }
        for layer in range(50)
        for expert in range(20)
        for kind in ("gate", "up", "down")
    }
    html = merge_page({"tensors": tensors, "weights": 3000 * 2**22, "changed": 0.4})
    assert len(html.encode()) < 300_000
    assert "model.layers.*.mlp.experts.19.down_proj.weight" in read(html).text
    assert condense({"tensors": tensors})["hidden"] == 0
    more = condense({"tensors": {f"{name}.{i}": fact for name, fact in tensors.items() for i in range(3)}})
    assert more["hidden"] > 0
    assert len(more["table"]) < ROOM + 1000


def test_requantised_and_moved_tensors_have_columns(ran):
    _, folder = ran
    facts = read_json(folder / "steps/merged/model/merge.json")
    for fact in facts["tensors"].values():
        fact["moved"] = 0.125
    name = "model.layers.0.mlp.up_proj.weight"
    told = {"kept": 0.4321, "relative_error": 0.0765, "unchanged_codes": 0.987}
    facts["requantised"] = {"format": "nf4, blocks of 64", "weights": 1, **told, "tensors": {name: {"format": "nf4", **told}}}
    found = read(merge_page(facts, "again"))
    assert "nf4, blocks of 64: 43.2 % of the merge's change kept, 98.7 % of the codes as they were, weights off by 7.6 %" in found.text
    table = condense(facts)["table"]
    assert table.split("\n")[0].split()[-3:] == ["kept", "error", "same"]
    row = table.split("model.layers.*.mlp.up_proj.weight")[1].split("\n")[1].split()
    assert row[-3:] == ["0.432", "0.0765", "0.987"]
    assert row[2] == "0.125"
    assert "norm of the change over the base's" in found.text


def test_a_merge_writes_its_page_beside_its_facts(family, tmp_path):
    part = planning.Slice(tuple((open_model(str(family / name)), 0) for name in "ab"), (open_model(str(family / "base")), 0))
    made = planning.plan([part], lambda name, place, number: load("merging.task_arithmetic"), method="merging.task_arithmetic")
    found = planning.run(made, tmp_path / "out", page=merge_page)
    html = (tmp_path / "out/merge.html").read_text()
    text = read(html).text
    assert html.count("<svg") == 2
    assert "loaded again; all logits finite" in text
    assert found["made"]["parents"][0]["sha256"] in text
    assert "`merge.html`" in (tmp_path / "out/README.md").read_text()
    assert "://" not in html
    assert Model.load(str(tmp_path / "out")).kind == "causal"
    assert merge_page(read_json(tmp_path / "out/merge.json"), "out") == html  # the same facts, the same bytes


def test_encoders_with_decoders_have_their_layers_side_by_side(tokenizer, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        net = network("t5", tokenizer, seed)
        net.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    part = planning.Slice(tuple((open_model(str(tmp_path / name)), 0) for name in "ab"))
    made = planning.plan([part], lambda name, place, number: load("merging.linear"), method="merging.linear")
    facts = condense(planning.run(made, tmp_path / "out", check=False))
    assert facts["stacks"] == {"decoder.block.": 2, "encoder.block.": 2}
    assert [row["place"] for row in facts["layers"] if row["role"] == "attention"] == [
        f"{stack}.block.{layer}" for stack in ("decoder", "encoder") for layer in (0, 1)
    ]
    assert {row["x"] for row in facts["layers"]} == {-1, 0, 1, 2, 3, 4}


def test_a_search_with_two_metrics_shows_its_front(tmp_path):
    def fitness(genome):
        return [float((genome**2).sum()), float(((genome - 1) ** 2).sum())]

    found = pareto(fitness, torch.zeros(3).numpy() + 0.7, metrics=2, sigma=0.3, trials=40, log=tmp_path / "searches/evo.ps.jsonl")
    told = read_searches(tmp_path, {"evo": {"on": {"law": "x", "medicine": "y"}}})["evo.ps"]
    assert told["metrics"] == ["law", "medicine"]
    assert told["front"] == pytest.approx(found.scores)
    assert told["count"] == 40
    text = read(report.write({"searches": {"evo.ps": told}}, tmp_path / "page").read_text()).text
    assert "the front in blue" in text


def test_long_and_interrupted_searches(tmp_path):
    log = tmp_path / "searches/evo.dfs.jsonl"

    def fitness(genome):
        size = float((genome**2).sum())
        return math.inf if genome[0] > 2.5 else size

    found = search(fitness, torch.full((2,), 2.0).numpy(), sigma=1.0, trials=900, log=log)
    with open(log, "a") as handle:
        handle.write('half a li\n{"genome": [1')
    told = read_searches(tmp_path, {})["evo.dfs"]
    assert told["count"] == found.trials
    assert len(told["trials"]) < 810
    assert told["best"][-1][1] == found.score
    assert told["broken_lines"] == 1
    text = read(report.write({"searches": {"evo.dfs": told}}, tmp_path / "page").read_text()).text
    assert "1 lines of the log could not be read" in text
    assert read_searches(tmp_path, {"other": {}}) == {}
    write_json(tmp_path / "notes/adapt.sweep.json", [{"alpha": 1, "mean": 2.0}, {"alpha": 2, "mean": 1.5}])
    assert read_searches(tmp_path, {"adapt": {}})["adapt.sweep"]["best"] == [[1, 2.0], [2, 1.5]]


def test_compared_runs_keep_their_merges(ran):
    _, folder = ran
    data = report.load(folder)
    other = copy.deepcopy(data) | {"title": "second"}
    other["merges"]["merged"]["changed"] = 0.5
    found = report.merge([data, other])
    assert {"merged", "second/merged", "evo.ps"} <= set(found["merges"])
    assert list(found["searches"]) == ["evo.ps", "soup.soup"]
