"""Predicts memory and time of a recipe's training steps before anything runs, from a probe of a few real steps.

Each step is probed in a process of its own, so that its peak memory is its own, and by the very code that makes it, with a few
optimizer steps in place of all. What is done once (loading, packing, saving), once an optimizer step, once a look at the watched
domains and once a checkpoint is told apart and put together again in the numbers the recipe asks for. The probe leaves ids and
prepared datasets in the cache, where the run finds them; so these are predicted as found.

A model of more than ``WHOLE`` weights is probed with one and with two of its layers, with fresh weights, and every figure is
extended along a straight line to all layers: the prediction then needs neither the download nor the memory of the model it is
about. (Loading from disk is then predicted by the making of fresh weights.)

Not predicted: the measuring of the finished models, strategies (their steps depend on what they find), the seconds of merges, imports.
"""

import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

from .errors import AcclimateError
from .fitting import root
from .kinds import Merge, Strategy
from .recipe import Recipe, Step

WHOLE = 200_000_000  # weights up to which the model is probed whole
STEPS_PACKED, STEPS_PADDED = 4, 12  # of a probe: packed steps are all alike, the length of padded ones varies
KEPT = 16  # bytes per weight that learns: itself, its gradient, AdamW's two moments, in fp32
RECALLED = 50  # texts that a probe lets the model write, one batch of the generate engine


def forecast(recipe: Recipe) -> dict[str, Any]:
    """Predicted ``memory_bytes``, ``seconds``, ``tokens`` and what trains, per step and in all."""
    rows: list[dict[str, Any]] = []
    opened: set[str] = set()
    for step in recipe.steps:
        if isinstance(step.method, Strategy):
            nothing = {"tokens": 0, "memory_bytes": 0, "seconds": 0.0}
            rows.append({"name": step.name, "trains": "a strategy: several steps, each probed when it runs", **nothing})
            continue
        if isinstance(step.method, Merge):
            from .engines.merging.tensors import chunks

            memory = chunks(len(step.tuned) + 1, os.cpu_count() or 1)
            rows.append({"name": step.name, "trains": "a merge: streamed from disk", "tokens": 0, "memory_bytes": memory, "seconds": 0.0})
            continue
        probes = [_probe(recipe, step, layers) for layers in _layers(recipe, step)]
        rows.append(_extend(step, probes, opened))
        opened |= set(probes[0]["opening"])
    return {
        "steps": rows,
        "seconds": sum(row["seconds"] for row in rows),
        "memory_bytes": max((row["memory_bytes"] for row in rows), default=0),
        "tokens": sum(row["tokens"] for row in rows),
    }


def _extend(step: Step, probes: list[dict[str, Any]], opened: set[str]) -> dict[str, Any]:
    """From one probe of the whole, or two of one and two layers, to the whole. Domains in ``opened`` are open already."""
    first = probes[0]

    def line(one: float, two: float) -> float:
        return max(0.0, one + (two - one) * (first["layers_in_all"] - 1))

    def whole(key: str) -> float:
        return line(first[key], probes[1][key]) if len(probes) == 2 else first[key]

    def opening(name: str) -> float:
        return line(*(probe["opening"][name] for probe in probes)) if len(probes) == 2 else first["opening"][name]

    steps, total, trained = first["steps"], int(whole("total")), int(whole("trained"))
    seconds = whole("setup") + steps * whole("step") + first["looks"] * whole("look") + first["checkpoints"] * whole("checkpoint")
    memory = whole("peak")
    if len(probes) == 2:
        # With few layers the peak may lie at the output layer, with many at the end of the backward pass, where all of this is kept.
        memory = max(memory, first["bare"] + KEPT * trained + (0 if first["in_place"] else 4 * total))
    return {
        "name": step.name,
        "trains": f"{trained:,} of {total:,} weights",
        "tokens": first["tokens_per_step"] * steps,
        "memory_bytes": int(memory),
        "seconds": round(seconds + sum(opening(name) for name in first["opening"] if name not in opened), 1),
        "seconds_per_step": round(whole("step"), 4),
    }


def _layers(recipe: Recipe, step: Step) -> list[int]:
    """How many layers to probe with: [0] for all of them, [1, 2] for a large model."""
    from transformers import AutoConfig

    from .model import _folder, _not_found

    ref = root(recipe.steps, step.start)
    folder = _folder(ref)
    if folder is not None and not (folder / "config.json").exists():
        return [0]  # an adapter: probed as it is
    try:
        config = AutoConfig.from_pretrained(str(folder or ref))
    except (OSError, ValueError) as error:
        raise AcclimateError(_not_found(ref, error)) from error
    return [0] if weights(config) <= WHOLE or depths(config) is None else [1, 2]


def weights(config: Any) -> int:
    """How many weights a configuration has, counted without memory for them."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        return sum(p.numel() for p in AutoModel.from_config(config).parameters())


def depths(config: Any) -> list[str] | None:
    """The names under which a configuration says how many layers there are; None where they differ (encoder and decoder).

    >>> from transformers import BertConfig, T5Config
    >>> depths(BertConfig()), depths(T5Config()), depths(T5Config(num_decoder_layers=2))
    (['num_hidden_layers'], ['num_hidden_layers', 'num_decoder_layers'], None)
    """
    names = ("num_hidden_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
    found = {name: getattr(config, name) for name in names if getattr(config, name, None)}
    return list(found) if len(set(found.values())) == 1 else None


def _probe(recipe: Recipe, step: Step, layers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(recipe.text(), encoding="utf-8")
        command = [sys.executable, "-m", "acclimate.forecast", str(path), step.name, str(layers), folder]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "ACCLIMATE_QUIET": "1"}, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise AcclimateError(f"the probe of step {step.name} failed: {last.removeprefix('acclimate: ')}")
        return json.loads(done.stdout.strip().splitlines()[-1])


def _measure(path: str, name: str, layers: int, folder: str) -> dict[str, Any]:
    """In the child: the step is made with a few optimizer steps; returns seconds and peak bytes."""
    import psutil

    from . import tools as maker
    from .engines import train as engine
    from .engines.forward import packs
    from .recipe import training
    from .runs import Run
    from .tools import Tools

    recipe = Recipe.read(path)
    step = next(step for step in recipe.steps if step.name == name)
    settings = training(step, recipe.seed)
    run = Run(Path(folder) / "run", recipe.seed)
    tools = Tools(recipe, run)
    used = list(dict.fromkeys([*step.on, *recipe.evaluate["in"], *recipe.evaluate["out"]]))
    real = [domain for domain in used if "recall" not in recipe.domains[domain]]
    for domain in real:
        tools.domain(domain)  # what it prepares is kept; the run finds it, as the second opening below does
    bare = psutil.Process().memory_info().rss
    began = time.perf_counter()
    ref = root(recipe.steps, step.start)
    start, total_layers, size = _start(ref, layers)
    in_place = step.adapter is None and 5 * size > psutil.virtual_memory().available
    if layers:
        maker._too_large_to_copy = lambda model: in_place  # decided for the whole model, not for a few layers of it
    loading = time.perf_counter() - began

    tools = Tools(recipe, run)
    tools.models[ref] = start
    opening = {domain: _recalled(tools, ref, domain) for domain in used if domain not in real}
    for domain in real:
        opening[domain] = _seconds(lambda domain=domain: tools.domain(domain))
    for domain in step.on:
        opening[domain] += _seconds(lambda domain=domain: tools.clean(domain))

    width = settings.row_tokens or min(start.context, 512)
    per_step = settings.batch_rows or max(1, settings.batch_tokens // width)
    packed = settings.pack == "auto" and packs(start)
    sources = [engine.rows_for(tools.domain(d), start, step.method, width, settings.seed, packed) for d in step.on]
    steps = settings.steps or max(1, math.ceil(settings.epochs * sources[0].size / per_step))
    few = STEPS_PACKED if packed else STEPS_PADDED
    short: dict[str, Any] = {"steps": few, "watch_every": few, "checkpoint_every": few}
    if settings.max_forgetting is not None:
        short["max_forgetting"] = 1e9  # looked at, never reached
    teacher = root(recipe.steps, step.teacher) if step.teacher else ""
    probed = dataclasses.replace(step, start=ref, teacher=teacher, train={**step.train, **short})
    del sources

    making = _seconds(lambda: tools.make(probed))
    cost, marks = tools.costs[name], [row["seconds"] for row in tools.curves[name]]
    gaps = [b - a for a, b in pairwise(marks[1:])]
    usual = (median if packed else mean)(gaps)
    every_look = settings.watch_every or math.ceil(steps / 8)
    every_checkpoint = settings.checkpoint_every or math.ceil(steps / 10)
    return {
        "peak": engine.peak_memory(start.device),
        "bare": bare if start.device.type == "cpu" else 0,
        "opening": opening,
        "setup": loading + making - cost["seconds"] - cost["looking"] + max(0.0, marks[1] - usual),
        "step": usual,
        "look": cost["looking"] / 2,
        "checkpoint": max(0.0, cost["seconds"] - marks[-1]),
        "steps": steps,
        "looks": 1 + math.ceil(steps / every_look),
        "checkpoints": math.ceil(steps / every_checkpoint),
        "tokens_per_step": per_step * width,
        "trained": cost["trained_parameters"],
        "total": cost["total_parameters"],
        "layers_in_all": total_layers,
        "in_place": in_place,
    }


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _recalled(tools: Any, ref: str, name: str) -> float:
    """Let the start model write a part of a recalled domain, put the domain in its place, and say how long all of it will take."""
    from . import tools as maker
    from .engines.generate import recall

    spec = tools.recipe.domains[name]
    source = spec.get("model") or tools.recipe.model
    model = tools.models[ref] if source == ref else tools.model(source)
    wanted = int(spec["recall"])
    began = time.perf_counter()
    texts = recall(model, min(wanted, RECALLED), seed=tools.recipe.seed)
    seconds = time.perf_counter() - began
    share = len(texts) / min(wanted, RECALLED)
    tools.domains[name] = maker._recalled(name, (texts * math.ceil(wanted / RECALLED))[: round(share * wanted)], "")
    return seconds * math.ceil(wanted / RECALLED)


def _start(ref: str, layers: int) -> tuple[Any, int, int]:
    """The model itself, or one of its shape with a few layers and fresh weights; the layers and bytes of the whole."""
    from .model import Model, _folder

    if not layers:
        model = Model.load(ref)
        return model, 0, model.bytes
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    from .model import KINDS, default_device, kind_of

    where = str(_folder(ref) or ref)
    config = AutoConfig.from_pretrained(where)
    total, size = config.num_hidden_layers, 4 * weights(config)
    for key in depths(config) or []:
        setattr(config, key, layers)
    if getattr(config, "layer_types", None):  # a list with one entry a layer follows
        config.layer_types = list(config.layer_types)[:layers]
    kind = kind_of(config)
    net = getattr(transformers, KINDS[kind]).from_config(config)
    tokenizer = AutoTokenizer.from_pretrained(where)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Model(ref, net, tokenizer, kind, ref).to(default_device()), total, size


if __name__ == "__main__":
    try:
        print(json.dumps(_measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])))
    except AcclimateError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
