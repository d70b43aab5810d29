import json
import subprocess

import pytest

from acclimate import forecast as module
from acclimate.errors import AcclimateError
from acclimate.fitting import root
from acclimate.forecast import forecast
from acclimate.kinds import Strategy
from acclimate.recipe import Recipe

PROBE = {
    "peak": 1000,
    "bare": 100,
    "opening": {"docs": 3.0},
    "setup": 2.0,
    "step": 0.5,
    "look": 0.25,
    "checkpoint": 0.125,
    "steps": 20,
    "looks": 9,
    "checkpoints": 10,
    "tokens_per_step": 64,
    "trained": 10,
    "total": 10,
    "layers_in_all": 0,
    "in_place": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny saved model and a file of lines to learn from."""
    from acclimate.model import Model
    from acclimate.models import seedling

    place = tmp_path_factory.mktemp("forecast")
    lines = [f"Line {i} counts to {i * i}, which is {i % 7} more than a multiple of seven, and then it ends." for i in range(200)]
    (place / "lines.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    tokenizer = seedling.build_tokenizer(lines, 400)
    Model("tiny", seedling.blank("seedling-xs", tokenizer), tokenizer, "causal").save(place / "tiny")
    return place


def recipe(folder, *steps, **more):
    step = {"as": "made", "use": "objectives.causal_lm", "on": "docs", "train": {"steps": 20, "batch_tokens": 64, "row_tokens": 32}}
    return Recipe.check(
        {
            "model": str(folder / "tiny"),
            "domains": {"docs": str(folder / "lines.jsonl"), "recall": {"recall": 60}},
            "steps": [step | given for given in steps or [{}]],
            "evaluate": {"in": ["docs"]},
            **more,
        }
    )


def test_the_parts_are_put_together_and_a_domain_is_opened_once(folder, monkeypatch):
    monkeypatch.setattr(module, "_probe", lambda *_: dict(PROBE))
    found = forecast(recipe(folder, {}, {"as": "second", "from": "made"}))
    once = 2.0 + 20 * 0.5 + 9 * 0.25 + 10 * 0.125
    assert [row["seconds"] for row in found["steps"]] == [pytest.approx(once + 3.0, abs=0.05), pytest.approx(once, abs=0.05)]
    assert found["seconds"] == pytest.approx(2 * once + 3.0, abs=0.1)
    assert (found["memory_bytes"], found["tokens"]) == (1000, 2 * 20 * 64)
    assert found["steps"][0]["trains"] == "10 of 10 weights"


def test_two_probes_are_extended_to_all_layers(folder, monkeypatch):
    one = PROBE | {"layers_in_all": 5, "opening": {"docs": 3.0, "recall": 1.0}}
    two = one | {"peak": 1400, "step": 0.75, "total": 14, "trained": 14, "opening": {"docs": 3.0, "recall": 1.5}}
    monkeypatch.setattr(module, "WHOLE", 1000)
    monkeypatch.setattr(module, "_probe", lambda recipe, step, layers: {1: one, 2: two}[layers])
    row = forecast(recipe(folder))["steps"][0]
    assert row["memory_bytes"] == 1000 + 4 * 400
    assert row["trains"] == "26 of 26 weights"
    assert row["seconds_per_step"] == 0.5 + 4 * 0.25
    assert row["seconds"] == pytest.approx(2.0 + 20 * 1.5 + 9 * 0.25 + 10 * 0.125 + 3.0 + 3.0, abs=0.05)


@pytest.mark.parametrize(("in_place", "per_weight"), [(False, 20), (True, 16)])
def test_memory_is_never_below_what_learning_keeps(folder, monkeypatch, in_place, per_weight):
    one = PROBE | {"layers_in_all": 5, "in_place": in_place, "total": 1000, "trained": 1000}
    two = one | {"total": 3000, "trained": 3000}
    monkeypatch.setattr(module, "WHOLE", 1000)
    monkeypatch.setattr(module, "_probe", lambda recipe, step, layers: {1: one, 2: two}[layers])
    assert forecast(recipe(folder))["memory_bytes"] == 100 + per_weight * 9000


def test_a_strategy_is_not_probed(folder, monkeypatch):
    class Several(Strategy):
        room = "objectives"

        def run(self, tools, **given):
            return {}

    monkeypatch.setattr(module, "_probe", lambda *_: pytest.fail("probed"))
    checked = recipe(folder)
    checked.steps[0].method = Several()
    row = forecast(checked)["steps"][0]
    assert (row["seconds"], row["tokens"]) == (0.0, 0)
    assert "strategy" in row["trains"]


def test_a_chain_is_traced_to_its_start(folder):
    checked = recipe(folder, {}, {"as": "second", "from": "made"}, {"as": "third", "from": "second"})
    assert {root(checked.steps, name) for name in ("made", "second", "third", "third.stage")} == {str(folder / "tiny")}
    assert root(checked.steps, "someone/model") == "someone/model"


def test_a_probe_that_fails_names_the_step(folder, monkeypatch):
    def run(command, **_):
        return subprocess.CompletedProcess(command, 2, "", "a warning\nrow_tokens = 5000, but tiny reads at most 1024 tokens\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(AcclimateError, match=r"^the probe of step made failed: row_tokens = 5000, but tiny reads at most 1024 tokens$"):
        forecast(recipe(folder))


def test_few_layers_have_the_shape_of_the_whole(folder):
    model, layers, size = module._start(str(folder / "tiny"), 2)
    assert (model.net.config.num_hidden_layers, layers) == (2, 3)
    from acclimate.model import Model

    assert size == pytest.approx(Model.load(str(folder / "tiny")).bytes, rel=0.01)


def test_a_real_probe_counts_what_the_run_will_do(folder):
    checked = recipe(folder, {"on": {"docs": 0.5, "recall": 0.5}})
    row = forecast(checked)["steps"][0]
    from acclimate.model import Model

    total = Model.load(str(folder / "tiny")).parameters()
    assert row["trains"] == f"{total:,} of {total:,} weights"
    assert row["tokens"] == 20 * 64
    assert 100e6 < row["memory_bytes"] < 4e9
    assert 20 * row["seconds_per_step"] < row["seconds"] < 600
