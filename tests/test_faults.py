"""What a machine does to us: full disks, kills at bad moments, damaged files. One line each, and nothing whole is lost."""

import errno
import os
import signal
import time

import numpy as np
import pytest
import torch

from acclimate.domain import Domain
from acclimate.engines import train as engine
from acclimate.engines.train import Training, train
from acclimate.errors import AcclimateError
from acclimate.files import atomic_dir, atomic_file, lock, read_json, write_json, write_text
from acclimate.method import load
from acclimate.runs import Run
from worlds import model_of, network, sentences

LM = load("objectives.causal_lm")


def plan(**given):
    return Training(**{"steps": 4, "batch_tokens": 256, "row_tokens": 64, "lr": 3e-3, "precision": "fp32", "checkpoint_every": 1, **given})


# ---------------------------------------------------------------- files


def break_off(path):
    path.write_text("half")
    raise RuntimeError


def test_a_file_is_whole_or_as_it_was(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "a.txt") as temporary:
        break_off(temporary)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_whole_or_as_it_was(tmp_path):
    for old in (None, "old"):
        with atomic_dir(tmp_path / "a") as temporary:
            (temporary / "x").write_text("new")
            (temporary / "only").mkdir()
        assert (tmp_path / "a/x").read_text() == "new"
        with pytest.raises(RuntimeError), atomic_dir(tmp_path / "a") as temporary:
            break_off(temporary / "x")
        assert (tmp_path / "a/x").read_text() == "new", old
        assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("number", "line"),
    [(errno.ENOSPC, "disk full while writing"), (errno.EDQUOT, "disk full"), (errno.EROFS, "cannot write"), (errno.EACCES, "cannot write")],
)
def test_what_the_disk_says_is_one_line(number, line, tmp_path):
    with pytest.raises(AcclimateError, match=line) as caught, atomic_file(tmp_path / "a.txt"):
        raise OSError(number, os.strerror(number))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_json_file_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"half": ')
    with pytest.raises(AcclimateError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(AcclimateError, match=r"b\.json does not exist"):
        read_json(tmp_path / "b.json")
    write_json(tmp_path / "c.json", {"é": [1, None]})
    assert read_json(tmp_path / "c.json") == {"é": [1, None]}


HOLDS = """
import time
from acclimate.files import lock
with lock(folder):
    open(os.path.join(folder, "held"), "w").close()
    time.sleep(60)
"""


def test_a_lock_keeps_others_out_and_dies_with_its_process(child, tmp_path):
    process = child(HOLDS, wait=False, folder=str(tmp_path))
    end = time.monotonic() + 60
    while not (tmp_path / "held").exists() and time.monotonic() < end:
        time.sleep(0.02)
    try:
        with pytest.raises(AcclimateError, match=f"is in use by process {process.pid}; wait for it"), lock(tmp_path):
            pass
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
    with lock(tmp_path), pytest.raises(AcclimateError, match=f"is in use by process {os.getpid()}"), lock(tmp_path):
        pass
    with lock(tmp_path):
        pass


# ---------------------------------------------------------------- training


FULL = {
    "weights": (OSError(errno.ENOSPC, "No space left on device"), "disk full while writing"),
    "optimizer": (RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing"), "disk full while writing"),
    "memory": (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
    "gpu": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), "out of memory"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FULL)
def test_a_full_disk_or_memory_is_one_line_and_the_run_goes_on(kind, tiny, pipes, tmp_path, monkeypatch):
    fault, line = FULL[kind]
    whole = train(tiny, LM, pipes, plan(), tmp_path / "whole").model
    place = engine.words.Supply if kind in ("memory", "gpu") else engine._Trainer
    name = "loss" if kind in ("memory", "gpu") else "_save_optimizer_and_scheduler"
    plain, calls = getattr(place, name), []

    def third(self, *args, **given):
        calls.append(1)
        if len(calls) == 3:
            raise fault
        return plain(self, *args, **given)

    monkeypatch.setattr(place, name, third)
    with pytest.raises(AcclimateError, match=line) as caught:
        train(tiny, LM, pipes, plan(), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run/checkpoints/checkpoint-2/complete").exists()
    assert not (tmp_path / "run/checkpoints/checkpoint-3/complete").exists()
    again = train(tiny, LM, pipes, plan(), tmp_path / "run")
    assert again.model.fingerprint == whole.fingerprint
    assert len(calls) > 3


def test_another_error_keeps_its_own_words(tiny, pipes, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.words.Supply, "loss", lambda *_: (_ for _ in ()).throw(RuntimeError("a bug of ours")))
    with pytest.raises(RuntimeError, match="a bug of ours"):
        train(tiny, LM, pipes, plan(), tmp_path)


def test_damaged_files_of_a_run_are_named(tiny, pipes, tmp_path):
    run = Run(tmp_path)
    made = []

    def make(work):
        made.append(work)
        done = train(tiny, LM, pipes, plan(steps=1), work)
        return done.model, {"how": "", "cost": done.cost, "curve": done.curve}

    first = run.step("a", {"x": 1}, make)
    assert Run(tmp_path).step("a", {"x": 1}, make).fingerprint == first.fingerprint
    assert len(made) == 1
    weights = tmp_path / "steps/a/model/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(AcclimateError, match=r"steps/a/model cannot be read"):
        Run(tmp_path).step("a", {"x": 1}, make)
    weights.write_bytes(whole)
    (tmp_path / "steps/a/step.json").write_text("{")
    with pytest.raises(AcclimateError, match=r"steps/a/step\.json is not valid JSON"):
        Run(tmp_path).step("a", {"x": 1}, make)
    (tmp_path / "steps/a/step.json").unlink()  # killed before it was written: the step is trained no more than it must be
    assert Run(tmp_path).step("a", {"x": 1}, make).fingerprint == first.fingerprint
    assert Run(tmp_path).step("a", {"x": 2}, make).fingerprint == first.fingerprint
    assert len(made) == 3


def test_a_damaged_cache_of_the_reference_is_made_again(tiny, preferences, tmp_path, cache):
    dpo = load("objectives.dpo")
    first = train(tiny, dpo, preferences, plan(steps=1, batch_rows=4), tmp_path / "1").curve[-1]["loss"]
    (stored,) = (cache / "reference").glob("*.npy")
    whole = np.load(stored)
    stored.write_bytes(stored.read_bytes()[:140])
    assert train(tiny, dpo, preferences, plan(steps=1, batch_rows=4), tmp_path / "2").curve[-1]["loss"] == first
    assert np.array_equal(np.load(stored), whole)


def test_a_run_leaves_nothing_open_and_no_stray_files(tokenizer, tmp_path):
    model = model_of(network("llama", tokenizer), tokenizer)
    domain = Domain.from_texts("pipes", sentences("pipes", 40))
    train(model, LM, domain, plan(steps=1), tmp_path / "warm")
    before = len(os.listdir("/proc/self/fd"))
    for i in range(3):
        train(model, LM, domain, plan(steps=1), tmp_path / str(i), watch={"pipes": domain})
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert sorted(path.name for path in (tmp_path / "0").iterdir()) == [".lock", "checkpoints", "metrics.jsonl", "plan.json"]
