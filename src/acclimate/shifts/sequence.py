"""``continual``: methods that learn domains, or portions of one domain's classes, one after another; what is known after each."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from ..engines.borderless import learn_borderless
from ..engines.continual import Memory, Task, class_stream, domain_stream, learn
from ..engines.shift import Training
from ..errors import AcclimateError, nearest
from ..files import write_json
from ..method import Setting, Settings
from ..parts.continual import backward_transfer, final_success, forgetting, forward_transfer
from ..parts.statistics import over_seeds
from ..progress import bar, say
from .adapted import make_learner, sound_options, text_options
from .arms import method_named
from .domains import load_domains, scaled_by_first

ROOMS = ("continual",)
SCALES = ("auto", "none")


class Order(Settings):
    """How one domain's classes become tasks."""

    classes: Annotated[int, Setting("new classes per task, for a single domain; 0 = each domain is a task", 0)] = 0
    first: Annotated[int, Setting("classes of the first task; 0 = as many as of the others", 0)] = 0
    shuffle: Annotated[bool, Setting("classes, or domains, in an order drawn by the seed")] = False


def continual(
    methods: str | Sequence[str],
    domains: Sequence[str],
    *,
    data: str = "",
    settings: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    memory: dict[str, Any] | None = None,
    order: dict[str, Any] | None = None,
    borderless: bool = False,
    backbone: str = "",
    options: dict[str, Any] | None = None,
    encoder: str = "minilm",
    scale: str = "auto",
    head: str = "linear",
    seeds: Sequence[int] = (0,),
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Learn domains in the order given, or one domain's classes a few at a time, and measure every task after each.

    Args:
        methods: ``ewc`` or ``continual.ewc``, one or several; ``settings`` where all of them know them.
        domains: as for ``shift``; with one domain, ``order`` says how many classes a task brings.
        memory: engines.continual Memory: ``rows`` or ``per_class`` of earlier tasks that are kept, and how they are chosen.
        borderless: neighbouring tasks pass over into each other and nobody says where; only for methods that need no borders.
        training: of each task (of the whole stream where it has no borders); the others as for ``shift``.
        scale: ``auto`` standardises columns of tables and vectors by the first domain's training rows, ``none`` leaves them.

    Returns rows [{method, seed, final, forgetting, backward, learned, matrix, kept}] (accuracy at the end, means over tasks; the matrix is
    [learned last, measured]), means with intervals over seeds by method, best first, and the tasks. With ``out`` the same is written to
    ``continual.json`` as it goes, and a killed run goes on at the task and step where it was.
    """
    made = [method_named(name, settings or {}, ROOMS) for name in ([methods] if isinstance(methods, str) else methods)]
    plan = Order(**(order or {}))
    if scale not in SCALES:
        raise AcclimateError(f"scale = {scale!r}{nearest(scale, SCALES)}")
    if len(domains) < 2 and not plan.classes:
        raise AcclimateError(
            "one domain after another needs two of them; of a single one, say how many classes a task brings (order: classes)"
        )
    if len(domains) > 1 and plan.classes:
        raise AcclimateError(f"order: classes divides one domain, but {len(domains)} were given; name one, or leave it out")
    own, tokens = text_options(backbone, options or {}, encoder)
    given = load_domains(domains, data, encoder, tokens)
    backbone, own = sound_options(backbone, own, next(iter(given.values())).rate)
    graphs = [domain.graph for domain in given.values() if domain.graph]
    classes = list(dict.fromkeys(c for domain in given.values() for c in domain.classes))
    parts = {name: domain.numbered(classes) for name, domain in given.items()}
    if next(iter(parts.values()))["train"].x.ndim == 2 and not tokens and scale == "auto":
        parts = scaled_by_first(parts)
    folder = Path(out) if out else None
    if folder:
        say(f"results go to {folder / 'continual.json'}")
    found: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    with bar(what="methods x seeds", total=len(seeds) * len(made), unit="run") as shown:
        for seed, method in product(seeds, made):
            tasks = _tasks(parts, len(classes), plan, seed)
            learner = make_learner(tasks[0].train.x, classes, backbone, head, seed, own, graphs)
            course = Training(**{**method.training, **(training or {}), "seed": seed})
            place = folder / "runs" / method.name / str(seed) if folder else None
            row = _row(method, learner, tasks, course, Memory(**(memory or {})), borderless, place)
            found.append({"method": method.name, "seed": seed, **row})
            result = {"rows": found, "leaderboard": _board(found), "tasks": [task.name for task in tasks], "classes": classes}
            if folder:
                write_json(folder / "continual.json", result)
            shown.update(1)
    return result


def _tasks(parts: dict[str, dict[str, Any]], classes: int, plan: Order, seed: int) -> list[Task]:
    draw = np.random.default_rng([seed, 17])
    if plan.classes:
        (own,) = parts.values()
        listed = draw.permutation(classes).tolist() if plan.shuffle else list(range(classes))
        return class_stream(own["train"], own["test"], plan.classes, first=plan.first, order=listed)
    names = list(parts)
    if plan.shuffle:
        names = [names[place] for place in draw.permutation(len(names))]
    return domain_stream([(parts[name]["train"], parts[name]["test"]) for name in names])


def _row(
    method: Any, learner: Any, tasks: Sequence[Task], training: Training, memory: Memory, borderless: bool, folder: Path | None
) -> dict[str, Any]:
    if borderless:
        last = learn_borderless(method, learner, tasks, training, memory, folder=folder)
        return {"final": float(np.mean(last)), "matrix": [last], "kept": [memory.rows]}
    done = learn(method, learner, tasks, training, memory, folder=folder)
    several = {"forgetting": forgetting(done.matrix), "backward": backward_transfer(done.matrix)} if len(tasks) > 1 else {}
    return {
        "final": final_success(done.matrix), "learned": forward_transfer(done.matrix), **several, "matrix": done.matrix, "kept": done.kept
    }  # fmt: skip


def _board(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Methods by accuracy at the end; intervals are over seeds."""
    found = []
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        told: dict[str, Any] = {"method": name, "seeds": len(own)}
        for key in ("final", "forgetting", "backward", "learned"):
            if values := [row[key] for row in own if key in row]:
                mean, half = over_seeds(values)
                told |= {key: mean, f"{key}_ci95": half}
        found.append(told)
    return sorted(found, key=lambda row: -row["final"])
