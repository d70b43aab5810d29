"""The tensors engine: streamed equals whole, memory, resume, faults."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from acclimate.engines.merging import layout, tensors
from acclimate.engines.merging.checkpoint import Checkpoint, read_header
from acclimate.engines.merging.dtypes import DTYPES, NAMED
from acclimate.engines.merging.in_memory import merge_in_memory
from acclimate.engines.merging.tensors import Part, Work, merge
from acclimate.errors import AcclimateError
from acclimate.method import load, names
from merge_tools import SHAPES, checkpoint, works

PURE = [name for name in names("merging") if hasattr(load(name), "look")]


@pytest.fixture
def models(tmp_path):
    base = checkpoint(tmp_path / "base", 0)
    tuned = [checkpoint(tmp_path / f"m{i}", i, base, shard=i == 2 or None) for i in (1, 2, 3)]
    opened = [Checkpoint.open(str(tmp_path / name)) for name in ("base", "m1", "m2", "m3")]
    return base, tuned, opened


@pytest.mark.parametrize("name", PURE)
def test_streamed_in_chunks_equals_merged_whole(name, models, tmp_path, monkeypatch):
    method = load(name)
    if "generator" in method.needs():  # draws belong to a chunk
        method = load(name, **({"drop": [0.0], "window": [0.0]} if name.endswith("della") else {"keep": [1.0]}))
    base, tuned, opened = models
    monkeypatch.setattr(tensors, "CHUNK", 1000)
    merge(works(method, opened), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    count = min(max(3, method.takes[0]), method.takes[1])
    expected = merge_in_memory(method, base, tuned[:count])
    assert found.keys() == expected.keys()
    for key in expected:
        assert torch.allclose(found[key], expected[key], atol=2e-6), key


@pytest.mark.parametrize("name", ["merging.dare", "merging.della"])
def test_draws_do_not_depend_on_workers(name, models, tmp_path):
    method, found = load(name), []
    for workers in (1, 3):
        merge(works(method, models[2]), tmp_path / str(workers), workers=workers)
        found.append((tmp_path / str(workers) / "model.safetensors").read_bytes())
    assert found[0] == found[1]
    merge(works(method, models[2]), tmp_path / "other", seed=1)
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != found[0]


def test_dare_keeps_the_mean_and_the_share():
    base, tuned = torch.zeros(400, 500), torch.ones(1, 400, 500)
    merged = load("merging.dare", keep=[0.3], elect="none").whole(base, tuned)
    assert (merged != 0).float().mean().item() == pytest.approx(0.3, abs=0.005)  # 200,000 draws: standard error 0.001
    assert merged.mean().item() == pytest.approx(1, abs=0.02)


def test_della_drops_small_changes_more_often():
    tuned = torch.linspace(0.1, 1, 101).repeat(3000, 1)[None]
    kept = (load("merging.della", drop=[0.5], window=[0.4], elect="none").whole(torch.zeros(3000, 101), tuned) != 0).float().mean(0)
    expected = 0.3 + 0.4 * torch.arange(101) / 100
    assert (kept - expected).abs().max() < 0.05  # 3,000 draws each: standard error 0.009


def test_della_over_the_whole_tensor_ranks_all_entries():
    changes = torch.randn(1, 20, 50, generator=torch.Generator().manual_seed(0))
    method = load("merging.della", scope="tensor", drop=[0.5], window=[0.4])
    chances = method.chances(changes, method.settle([method.look(torch.zeros(20, 50), changes, [])], len(changes)))
    order = changes.abs().flatten().argsort()
    assert (chances.flatten()[order].diff() >= 0).all()
    assert chances.min() >= 0.3 - 1e-6
    assert chances.max() <= 0.7 + 1e-6


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_types_in_and_out(dtype, compiled, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCLIMATE_COMPILE", str(int(compiled)))
    values = checkpoint(tmp_path / "a", 1, dtype=NAMED[dtype].torch)
    opened = Checkpoint.open(str(tmp_path / "a"))
    for out in ("bfloat16", "float16", "float32"):
        facts = merge(
            [Work(n, s.shape, NAMED[out], (Part(opened, s),), None, load("merging.linear")) for n, s in opened.slots.items()],
            tmp_path / out,
        )
        found = load_file(tmp_path / out / "model.safetensors")
        assert all(torch.equal(found[name], value.float().to(NAMED[out].torch)) for name, value in values.items())
        assert all(fact["changed"] == 0 for fact in facts.values())


def test_thresholds_are_exact_order_statistics():
    from acclimate.parts import thresholds

    values = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0)) ** 3
    shares = np.array([[0.2, 0.3], [0.01, 0.99]])
    seen = []
    for _ in range(2):
        parts = [thresholds.look(part, seen, shares) for part in values.split(1234, 1)]
        seen.append(sum(parts[1:], parts[0]))
    assert thresholds.look(values, seen, shares) is None
    ordered = values.abs().sort(1, descending=True).values
    expected = torch.stack([ordered[0, [999, 2499]], ordered[1, [49, 4999]]])
    assert np.array_equal(thresholds.magnitudes(seen, shares), expected)


def test_thresholds_of_16_bit_numbers_take_one_look():
    from acclimate.parts import thresholds

    values = (torch.randn(1, 5000, generator=torch.Generator().manual_seed(0)) ** 3).bfloat16().float()
    shares = np.array([[0.2]])
    seen = [thresholds.look(values, [], shares, 16)]
    assert thresholds.look(values, seen, shares, 16) is None
    assert thresholds.magnitudes(seen, shares).item() == values.abs().sort(1, descending=True).values[0, 999]
    finer = values * (1 + 2**-10)  # what differs below the upper 16 bits ties, and is kept
    assert thresholds.magnitudes([thresholds.look(finer, [], shares, 16)], shares).item() == thresholds.magnitudes(seen, shares).item()


def test_ties_over_the_whole_model_ranks_across_tensors(models, tmp_path):
    base, tuned, opened = models
    merge(works(load("merging.ties", keep=[0.1], sign="count", normalize=False), opened), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    changes = [torch.cat([(model[n] - base[n]).flatten() for n in base]) for model in tuned]
    kept = torch.stack([c * (c.abs() >= c.abs().sort(descending=True).values[int(0.1 * len(c)) - 1]) for c in changes])
    sign = torch.where(kept.sign().sum(0) < 0, -1.0, 1.0)
    expected = (kept * (kept * sign > 0)).sum(0)
    got = torch.cat([(found[n] - base[n]).flatten() for n in base])
    assert torch.allclose(got, expected, atol=1e-6)


def test_a_resumed_merge_ranks_over_the_whole_model_too(models, tmp_path):
    todo = works(load("merging.ties", keep=[0.1]), models[2])
    merge(todo, tmp_path / "whole", key="k")
    merge(todo, tmp_path / "out", key="k")
    journal = tmp_path / "out" / layout.JOURNAL
    journal.write_text("".join(f"{line}\n" for line in journal.read_text().splitlines()[:2]))  # as if killed after the first tensor
    merge(todo, tmp_path / "out", key="k")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_facts_of_a_tensor(models, tmp_path):
    _, tuned, opened = models
    facts = merge(works(load("merging.linear", weights=[1.0, 0.0, 0.0]), opened), tmp_path / "out")["model.norm.weight"]
    assert facts["norm"] == pytest.approx(tuned[0]["model.norm.weight"].norm().item(), rel=1e-5)
    first, second, _ = facts["cosine"].values()
    assert first == pytest.approx(1, abs=1e-6)
    assert second == pytest.approx(
        torch.cosine_similarity(tuned[0]["model.norm.weight"], tuned[1]["model.norm.weight"], 0).item(), abs=1e-6
    )
    assert facts["changed"] == 0  # against the first model, as linear has no base


MEMORY = """
import resource, sys
from pathlib import Path
from acclimate.engines.merging.checkpoint import Checkpoint
from acclimate.engines.merging.tensors import Part, Work, forecast, merge
from acclimate.method import load
folder = Path(sys.argv[1])
opened = [Checkpoint.open(str(folder / name)) for name in ("base", "m1", "m2")]
method = load(sys.argv[2])
def inputs(name):
    return tuple(Part(c, c.slots[name]) for c in opened[1:])
works = [Work(n, s.shape, s.dtype, inputs(n), Part(opened[0], s), method) for n, s in opened[0].slots.items()]
tiny = [Work("x", (8, 8), s.dtype, works[0].tuned, works[0].base, method) for s in [opened[0].slots["w"]]]
merge(tiny, folder / "warm", workers=2)  # what the libraries take at their first call is not the merge's
before = {line.split()[0]: int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(("VmData", "VmHWM"))}
room = forecast(works, 2)
resource.setrlimit(resource.RLIMIT_DATA, (before["VmData:"] * 1024 + room + (80 << 20), -1))  # two threads' stacks and arenas beside it
merge(works, folder / "out", workers=2)
after = {line.split()[0]: int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")}
print((after["VmHWM:"] - before["VmHWM:"]) * 1024, room)
"""


@pytest.mark.parametrize("name", ["merging.ties", "merging.della"])
def test_a_merge_needs_less_memory_than_one_input(name, tmp_path):
    shapes = {"w": (40_000, 1024)}  # 164 MB in fp32
    base = checkpoint(tmp_path / "base", 0, shapes=shapes)
    for i in (1, 2):
        checkpoint(tmp_path / f"m{i}", i, base, shapes=shapes)
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path), name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    grown, forecast = map(int, done.stdout.split())
    assert grown < forecast < 0.7 * 164e6


SLOW = """
import sys, time
from pathlib import Path
from acclimate.engines.merging import layout
from acclimate.engines.merging.checkpoint import Checkpoint
from acclimate.engines.merging.tensors import Part, Work, merge
from acclimate.method import load
write = layout.Layout.write
def slowly(self, *given):
    time.sleep(0.05)
    write(self, *given)
layout.Layout.write = slowly
folder = Path(sys.argv[1])
opened = [Checkpoint.open(str(folder / name)) for name in ("base", "m1")]
dare, (base, tuned) = load("merging.dare"), opened
works = [Work(n, s.shape, s.dtype, (Part(tuned, tuned.slots[n]),), Part(base, s), dare) for n, s in base.slots.items()]
merge(works, folder / "out", workers=1, key="k")
"""


def test_a_killed_merge_goes_on_to_the_same_bytes(tmp_path):
    shapes = {f"model.layers.{i}.w": (64, 32) for i in range(40)}
    base = checkpoint(tmp_path / "base", 0, shapes=shapes)
    checkpoint(tmp_path / "m1", 1, base, shapes=shapes)
    child = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)])
    journal = tmp_path / "out" / layout.JOURNAL
    for _ in range(600):
        if journal.exists() and len(journal.read_text().splitlines()) > 4:
            break
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = len(journal.read_text().splitlines())
    assert 4 < before < 41
    with open(journal, "a") as handle:
        handle.write('{"name": "model.la')  # a line that a kill cut short
    opened = [Checkpoint.open(str(tmp_path / name)) for name in ("base", "m1")]
    todo = [
        Work(n, s.shape, s.dtype, (Part(opened[1], opened[1].slots[n]),), Part(opened[0], s), load("merging.dare"))
        for n, s in opened[0].slots.items()
    ]
    facts = merge(todo, tmp_path / "out", key="k")
    merge(todo, tmp_path / "whole", key="k")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert set(facts) == set(shapes)


def test_shards_and_their_index(models, tmp_path):
    merge(works(load("merging.linear"), models[2]), tmp_path / "out", shard=40_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(SHAPES)
    assert len(set(index["weight_map"].values())) == 3
    for name, path in index["weight_map"].items():
        with safe_open(tmp_path / "out" / path, "pt") as stored:
            assert tuple(stored.get_tensor(name).shape) == SHAPES[name]


def test_nan_in_one_parent_is_named(models, tmp_path):
    _, tuned, _ = models
    tuned[0]["model.norm.weight"][7] = float("nan")
    save_file(tuned[0], tmp_path / "m1" / "model.safetensors")
    opened = [Checkpoint.open(str(tmp_path / name)) for name in ("base", "m1", "m2", "m3")]
    with pytest.raises(AcclimateError, match=r"m1: tensor model.norm.weight holds nan at entry 7"):
        merge(works(load("merging.ties"), opened), tmp_path / "out")


def test_damaged_files_are_one_line(tmp_path):
    checkpoint(tmp_path / "a", 0)
    path = tmp_path / "a" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(AcclimateError, match="truncated"):
        read_header(path)
    path.write_bytes(b"\x00" * 40)
    with pytest.raises(AcclimateError, match="no readable safetensors file"):
        read_header(path)
    path.write_bytes(whole)
    (tmp_path / "a" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "model-1.safetensors"}}))
    with pytest.raises(AcclimateError, match=r"model-1.safetensors does not exist, but the index"):
        Checkpoint.open(str(tmp_path / "a"))


def test_a_full_disk_leaves_nothing_half_written(models, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        merge(works(load("merging.linear"), models[2]), tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists() or not (tmp_path / "out" / "model.safetensors").read_bytes()


def test_rows_by_token(tmp_path):
    left = checkpoint(tmp_path / "a", 1)["model.embed_tokens.weight"]
    right = checkpoint(tmp_path / "b", 2)["model.embed_tokens.weight"]
    a, b = (Checkpoint.open(str(tmp_path / name)) for name in "ab")
    mine, theirs = np.array([0, 1, 2, -1, 4]), np.array([5, 4, -1, 3, 95])
    name = "model.embed_tokens.weight"
    work = Work(name, (5, 48), DTYPES["F32"], (Part(a, a.slots[name], mine), Part(b, b.slots[name], theirs)), None, load("merging.linear"))
    merge([work], tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")[name]
    both = (left[[0, 1, 4]] + right[[5, 4, 95]]) / 2
    assert torch.allclose(found[[0, 1, 4]], both, atol=1e-6)
    assert torch.equal(found[2], left[2])  # a row that one lacks is the other's
    assert torch.equal(found[3], right[3])
