"""Predicts memory and time of a recipe's training steps before anything runs, from a probe of a few real steps.

Each step is probed in a process of its own, so that its peak memory is its own. A model of more than ``WHOLE`` weights is probed with
one and with two of its layers, with fresh weights, and both figures are extended along a straight line to all layers: the prediction
then needs neither the download nor the memory of the model it is about.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from .errors import AcclimateError
from .kinds import Strategy
from .recipe import Recipe, Step

WHOLE = 200_000_000  # weights up to which the model is probed whole
PROBE_STEPS = 4


def forecast(recipe: Recipe) -> dict[str, Any]:
    """Predicted ``memory_bytes``, ``seconds``, ``tokens`` and what trains, per step and in all."""
    rows: list[dict[str, Any]] = []
    for step in recipe.steps:
        if isinstance(step.method, Strategy):
            rows.append(
                {
                    "name": step.name,
                    "trains": "a strategy: several steps, each probed when it runs",
                    "tokens": 0,
                    "memory_bytes": 0,
                    "seconds": 0.0,
                }
            )
            continue
        rows.append(_extend(step, [_probe(recipe, step, layers) for layers in _layers(recipe, step)]))
    return {
        "steps": rows,
        "seconds": sum(row["seconds"] for row in rows),
        "memory_bytes": max((row["memory_bytes"] for row in rows), default=0),
        "tokens": sum(row["tokens"] for row in rows),
    }


def _extend(step: Step, probes: list[dict[str, Any]]) -> dict[str, Any]:
    """From one probe of the whole, or two of one and two layers, to the whole."""

    def whole(key: str) -> float:
        if len(probes) == 1:
            return probes[0][key]
        one, two = probes[0][key], probes[1][key]
        return one + (two - one) * (probes[0]["layers_in_all"] - 1)

    steps = probes[0]["steps"]
    return {
        "name": step.name,
        "trains": f"{int(whole('trained')):,} of {int(whole('total')):,} weights",
        "tokens": probes[0]["tokens_per_step"] * steps,
        "memory_bytes": int(whole("peak")),
        "seconds": round(whole("setup") + steps * whole("step") + probes[0]["looks"] * whole("look"), 1),
        "seconds_per_step": round(whole("step"), 4),
    }


def root(recipe: Recipe, step: Step) -> str:
    """The model a chain of steps begins with: it has the shape of all that follow."""
    by_name = {other.name: other for other in recipe.steps}
    while step.start in by_name:
        step = by_name[step.start]
    return step.start


def _layers(recipe: Recipe, step: Step) -> list[int]:
    """How many layers to probe with: [0] for all of them, [1, 2] for a large model."""
    from transformers import AutoConfig

    from .model import _folder, _not_found

    ref = root(recipe, step)
    folder = _folder(ref)
    if folder is not None and not (folder / "config.json").exists():
        return [0]  # an adapter: probed as it is
    try:
        config = AutoConfig.from_pretrained(str(folder or ref))
    except (OSError, ValueError) as error:
        raise AcclimateError(_not_found(ref, error)) from error
    return [0] if weights(config) <= WHOLE else [1, 2]


def weights(config: Any) -> int:
    """How many weights a configuration has, counted without memory for them."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        return sum(p.numel() for p in AutoModel.from_config(config).parameters())


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
    """In the child: a few real training steps on the real domain; returns seconds and peak bytes."""
    from .engines import train as engine
    from .execute import Tools
    from .recipe import training
    from .runs import Run

    began = time.perf_counter()
    recipe = Recipe.read(path)
    step = next(step for step in recipe.steps if step.name == name)
    for spec in recipe.domains.values():
        if "recall" in spec:
            spec["recall"] = min(int(spec["recall"]), 24)
    tools = Tools(recipe, Run(Path(folder) / "run", recipe.seed))
    start, total_layers = _start(root(recipe, step), layers)
    settings = training(step, recipe.seed)
    domains = {n: (tools.domain(n), float(w)) for n, w in step.on.items()}
    first = next(iter(domains.values()))[0]
    watch = {n: tools.domain(n) for n in (*recipe.evaluate["in"], *recipe.evaluate["out"])}
    width = settings.row_tokens or min(start.context, 512)
    per_step = settings.batch_rows or max(1, settings.batch_tokens // width)
    steps = settings.steps or _steps(first, start, step, settings, width, per_step)
    every = settings.watch_every or max(1, math.ceil(steps / 8))
    short = type(settings)(
        **{
            **settings.values(),
            "steps": PROBE_STEPS,
            "watch_every": PROBE_STEPS,
            "checkpoint_every": PROBE_STEPS,
            "max_forgetting": None,
        }
    )
    done = engine.train(
        start,
        step.method,
        domains,
        short,
        Path(folder) / "work",
        adapter=step.adapter,
        watch=watch,
        teacher=tools.model(step.teacher) if step.teacher else None,
    )
    marks = [row["seconds"] for row in done.curve]
    gaps = sorted(b - a for a, b in pairwise(marks[1:]))
    look = (done.cost["looking"]) / 2
    step_seconds = gaps[len(gaps) // 2]
    return {
        "peak": engine.peak_memory(start.device),
        "step": step_seconds,
        "look": look,
        "looks": steps // every + 2,
        "setup": max(0.0, time.perf_counter() - began - done.cost["seconds"] - done.cost["looking"]),
        "steps": steps,
        "tokens_per_step": per_step * width,
        "trained": done.cost["trained_parameters"],
        "total": done.cost["total_parameters"],
        "layers_in_all": total_layers,
    }


def _steps(domain: Any, start: Any, step: Step, settings: Any, width: int, per_step: int) -> int:
    from .engines.train import rows_for

    source = rows_for(domain, start, step.method, width, 0, True)
    return max(1, math.ceil(settings.epochs * source.size / per_step))


def _start(ref: str, layers: int) -> tuple[Any, int]:
    """The model itself, or one of its shape with a few layers and fresh weights."""
    from .model import Model, _folder

    if not layers:
        return Model.load(ref), 0
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    from .model import KINDS, default_device, kind_of

    where = str(_folder(ref) or ref)
    config = AutoConfig.from_pretrained(where)
    total = config.num_hidden_layers
    config.num_hidden_layers = layers
    for key in ("layer_types",):  # lists with one entry a layer follow
        if getattr(config, key, None):
            setattr(config, key, list(getattr(config, key))[:layers])
    kind = kind_of(config)
    net = getattr(transformers, KINDS[kind]).from_config(config)
    return Model(ref, net, AutoTokenizer.from_pretrained(where), kind, ref).to(default_device()), total


if __name__ == "__main__":
    try:
        print(json.dumps(_measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])))
    except AcclimateError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
