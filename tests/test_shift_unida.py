"""Classes that no source has: thresholds from held-out rows, transport against its optimality conditions, open targets in sweeps."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from acclimate import shifts
from acclimate.engines.shift import Data, Learner, Pool, Training, fit, predict, reverse_risk, right
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.parts.openness import h_score
from acclimate.parts.transport import column_scaling, row_plan

QUICK = {"steps": 60, "batch": 12, "optimizer": "adam", "lr": 0.01, "schedule": "constant", "weight_decay": 0.0, "choose": "last"}


@pytest.fixture
def toy():
    """Three classes, one per column; the target is moved a little and has rows of a fourth column (labelled 3)."""
    draw, pools = torch.Generator().manual_seed(0), []
    for number, kinds in enumerate((3, 3, 4)):
        y = torch.arange(60) % kinds
        x = 0.3 * torch.randn(60, 4, generator=draw) + 0.1 * number
        x[torch.arange(60), y] += 2.0
        pools.append(Pool(f"domain {number}", x, y))
    return Data(pools[:1], pools[2].unlabelled(), [pools[1]], ["a", "b", "c"], oracle=pools[2])


def learner():
    torch.manual_seed(0)
    return Learner(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8)), ["a", "b", "c"], width=8)


def test_the_threshold_comes_from_held_out_source_rows(toy):
    method, made = load("domain_adaptation.thresholding", share=0.9), learner()
    fit(method, made, toy, Training(**QUICK))
    sure = predict(load("domain_generalization.erm"), made, toy.validation[0].x).softmax(1).amax(1)
    assert made.memory["threshold"] == pytest.approx(float(np.quantile(sure.double().numpy(), 0.1)), abs=1e-6)
    found = predict(method, made, toy.oracle.x)
    assert torch.equal(
        found.argmax(1) == 3, predict(load("domain_generalization.erm"), made, toy.oracle.x).softmax(1).amax(1) < made.memory["threshold"]
    )
    score = h_score(right(method, made, toy.oracle), toy.oracle.y, 3)
    assert score["common"] > 0.7
    assert score["unknown"] > 0.5
    assert 0 <= reverse_risk(method, made, toy, Training(**{**QUICK, "steps": 5})) <= 1


@pytest.mark.parametrize("base", ["coral", "dann"])
def test_thresholds_go_over_other_methods(toy, base):
    method, made = load("domain_adaptation.thresholding", over=base), learner()
    assert method.training == load(f"domain_{'adaptation' if base == 'dann' else 'generalization'}.{base}").training
    fit(method, made, toy, Training(**{**QUICK, "steps": 3}))
    assert predict(method, made, toy.oracle.x).shape == (60, 4)


@pytest.mark.parametrize("name", ["ovanet", "uan", "cmu", "uniot"])
def test_open_methods_know_their_classes_and_say_unknown(toy, name):
    smaller = {"hidden": [16]} if name in ("uan", "cmu") else {}
    method, made = load(f"domain_adaptation.{name}", **smaller), learner()
    fit(method, made, toy, Training(**{**QUICK, "steps": 100}))
    one = predict(method, made, toy.oracle.x)
    assert (one[:, :3].argmax(1) == toy.oracle.y)[toy.oracle.y < 3].float().mean() > 0.7
    assert torch.allclose(one, predict(method, made, toy.oracle.x, block=7), atol=1e-5)  # answers do not depend on company
    assert (one.argmax(1) == 3).any() or name == "ovanet"


def test_transport_meets_the_conditions_of_an_optimum():
    draw = torch.Generator().manual_seed(1)
    similarity, wanted = torch.rand(7, 3, generator=draw), torch.tensor([0.2, 0.3, 0.5])
    v = column_scaling(similarity, wanted, smooth=0.1, relaxed=0.5, enough=1e-12)
    plan = row_plan(similarity, v, 7, smooth=0.1, relaxed=0.5)
    rows, columns = (7 * plan.sum(1)).log(), (plan.sum(0) / wanted.double()).log()
    slope = 1 - similarity.double() + 0.1 * plan.log() + 0.5 * (rows[:, None] + columns)  # of cost - entropy + both divergences
    assert slope.abs().max() < 1e-6


def test_sweeps_allow_new_classes_to_open_methods_only(tmp_path):
    words = {"good": "fine lovely great happy", "bad": "awful broken sad poor", "odd": "seven eleven forty nine"}
    made = []
    for number, (name, labels) in enumerate({"books": ("good", "bad"), "pans": ("good", "bad", "odd")}.items()):
        draw = np.random.default_rng(number)
        rows = [
            {"text": f"{name} {i}: " + " ".join(draw.choice(words[labels[i % len(labels)]].split(), 4)), "label": labels[i % len(labels)]}
            for i in range(90)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        made.append(str(tmp_path / f"{name}.jsonl"))
    found = shifts.shift("thresholding", made[:1], made[1], training={"steps": 40, "batch": 8}, out=tmp_path / "out", keep=True)
    row = found["rows"][0]
    assert row["h_score"] == pytest.approx(2 * row["common"] * row["unknown"] / (row["common"] + row["unknown"]))
    assert found["leaderboard"][0]["h_score"] == row["h_score"]
    kept = shifts.Adapted.load(next((tmp_path / "out" / "models").rglob("adapted.json")).parent)
    assert set(kept.predict(["what a lovely happy day", "seven eleven forty", "x y z"])) <= {"good", "bad", "unknown"}
    with pytest.raises(AcclimateError, match="has the class 'odd', which no source has"):
        shifts.shift("erm", made[:1], made[1], training={"steps": 4, "batch": 8})
