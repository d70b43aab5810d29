"""The compiled lane of merges: the same as the methods in torch, chunk by chunk and file by file."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import acclimate
from acclimate.engines.merging import fused, tensors
from acclimate.engines.merging.checkpoint import Checkpoint
from acclimate.errors import AcclimateError
from acclimate.method import load, names
from merge_tools import checkpoint, works

pytestmark = pytest.mark.skipif(not fused.available(), reason="numba is not installed")

CASES = {
    "linear": [{}, {"weights": [0.5, 0.3, 0.2], "normalize": False}, {"weights": [1.0, -1.0, 0.0]}],
    "task_arithmetic": [{}, {"weights": [1.0, 2.0, -0.5], "normalize": True, "scale": 0.7}],
    "slerp": [{}, {"origin": "base"}, {"weights": [3.0, 1.0, 2.0]}],
    "ties": [
        {}, {"keep": [0.3], "scope": "tensor", "scale": 0.5}, {"keep": [0.1, 0.5, 1.0], "weights": [1.0, 2.0, 0.5], "sign": "count"},
        {"keep": [1.0], "normalize": False}, {"keep": [0.0]}, {"weights": [1.0, -0.5, 0.2]},
    ],
    "breadcrumbs": [{}, {"keep": [0.6, 0.5, 0.7], "outliers": [0.05, 0.0, 0.1], "elect": "sum", "normalize": True}, {"keep": [0.0]}],
    "dare": [
        {}, {"elect": "none"}, {"keep": [0.3, 1.0, 0.000001], "elect": "count", "normalize": False}, {"rescale": "norm", "keep": [0.5]},
        {"rescale": "none", "weights": [0.5, 1.0, 2.0]}, {"keep": [1.0]},
    ],
    "della": [
        {}, {"drop": [0.5], "window": [0.3], "elect": "none"}, {"rescale": "norm", "weights": [1.0, 0.2, 3.0]},
        {"drop": [0.0], "window": [0.0]},
        {"drop": [0.2, 0.5, 0.9], "window": [0.1, 0.9, 0.05], "rescale": "none", "normalize": False},
    ],
}  # fmt: skip
BEYOND = {"della": [{"by": "magnitude"}, {"scope": "tensor"}, {"adaptive": True}]}  # what one pass cannot do


def inputs(rows=37, columns=130, models=3, coarse=False):
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(rows, columns, generator=draw)
    tuned = base + 0.1 * torch.randn(models, rows, columns, generator=draw)
    tuned[0, :3] = base[:3]  # no change at all
    return (base.bfloat16().float(), tuned.bfloat16().float()) if coarse else (base, tuned)


@pytest.mark.parametrize("coarse", [True, False], ids=["16 bits", "32 bits"])
@pytest.mark.parametrize(("name", "settings"), [(name, s) for name, cases in CASES.items() for s in cases])
def test_equals_the_method_in_torch(name, settings, coarse):
    method = load(f"merging.{name}", **settings)
    base, tuned = inputs(coarse=coarse)
    base = None if name == "linear" else base
    expected, found = method.whole(base, tuned, seed=[3, 4]), fused.whole(method, base, tuned.numpy(), seed=[3, 4])
    assert np.abs(found - expected.numpy()).max() < 2e-6 * max(1, expected.abs().max().item())


@pytest.mark.parametrize(("name", "settings"), [(name, s) for name, cases in BEYOND.items() for s in cases])
def test_what_one_pass_cannot_do_goes_through_torch(name, settings):
    assert load(f"merging.{name}", **settings).fused(3) is None


def test_every_method_that_is_fused_is_compared_here():
    whole = [name.partition(".")[2] for name in names("merging") if hasattr(load(name), "look")]
    assert {name for name in whole if load(f"merging.{name}").fused(2) is not None} == set(CASES)


@pytest.fixture
def family(tmp_path):
    base = checkpoint(tmp_path / "base", 0, dtype=torch.bfloat16)
    for i in (1, 2, 3):
        checkpoint(tmp_path / f"m{i}", i, base, dtype=torch.bfloat16 if i < 3 else torch.float16)
    return [Checkpoint.open(str(tmp_path / name)) for name in ("base", "m1", "m2", "m3")]


@pytest.mark.parametrize("name", ["linear", "slerp", "ties", "dare", "della"])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("models", [2, 3], ids=["one type", "two types"])
def test_both_lanes_write_the_same_model(name, dtype, models, family, tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "CHUNK", 1000)
    settings = {"ties": {"keep": [0.4], "scope": "tensor"}}.get(name, {})
    facts, made = [], []
    for lane in ("1", "0"):
        monkeypatch.setenv("ACCLIMATE_COMPILE", lane)
        todo = works(load(f"merging.{name}", **settings), family[: models + 1], dtype)
        assert all((work.fused is not None) == (lane == "1") for work in todo)
        facts.append(tensors.merge(todo, tmp_path / f"out{lane}"))
        made.append(load_file(tmp_path / f"out{lane}" / "model.safetensors"))
    for key, value in made[1].items():
        one = {"BF16": 2**-8, "F16": 2**-11, "F32": 2e-6}[dtype]  # a step of the type
        assert ((made[0][key].float() - value.float()).abs() <= one * value.float().abs() + 1e-6).all()
        mine, theirs = facts[0][key], facts[1][key]
        assert mine["norm"] == pytest.approx(theirs["norm"], rel=1e-4)
        assert list(mine["cosine"].values()) == pytest.approx(list(theirs["cosine"].values()), abs=1e-4)
        assert mine["changed"] == pytest.approx(theirs["changed"], abs=0.01)


def test_nan_is_named(family, tmp_path):
    values = load_file(tmp_path / "m2" / "model.safetensors")
    values["model.norm.weight"][5] = float("inf")
    save_file(values, tmp_path / "m2" / "model.safetensors")
    opened = [Checkpoint.open(str(tmp_path / name)) for name in ("base", "m1", "m2", "m3")]
    with pytest.raises(AcclimateError, match=r"m2: tensor model.norm.weight holds inf at entry 5"):
        tensors.merge(works(load("merging.ties"), opened, "BF16"), tmp_path / "out")


ALONE = """
import sys
import acclimate
root = sys.argv[1]
acclimate.merge(sys.argv[2], [f"{root}/m1", f"{root}/m2"], base=f"{root}/base", out=f"{root}/alone", check=False)
assert "torch" not in sys.modules, "torch was imported"
"""


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "dare", "della", "breadcrumbs", "task_arithmetic"])
def test_a_merge_that_needs_no_torch_does_not_wait_for_it(method, family, tmp_path):
    done = subprocess.run([sys.executable, "-c", ALONE, str(tmp_path), method], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "alone" / "merge.json").read_text())["made"]["method"] == f"merging.{method}"


def test_other_methods_still_go_through_torch(family, tmp_path):
    made = acclimate.merge("model_stock", [str(tmp_path / "m1"), str(tmp_path / "m2")], base=str(tmp_path / "base"), out=tmp_path / "out")
    assert made["weights"] == 96 * 48 + 300 * 48 + 48
