"""One experiment per paper: the smallest one that can still speak for or against the paper's claim.

An experiment is a module ``experiments/<room>/<id>.py``; its path is the registry. It has

- a docstring: what is done here, and what differs from the paper and why,
- ``CRITERION``: when the claim counts as holding, written before the run,
- ``METRIC``: what the figures are, their unit, which direction is better,
- ``run(seed, tiny, work) -> {arm: figure}``, or ``{"arms": {arm: figure}, "details": anything JSON can hold}``;
  ``work`` is a folder of its own, ``tiny`` asks for a run of a few seconds that proves only that the code runs,
- ``clauses({arm: [figure per seed]}) -> [(what the figures say, whether the clause is met)]``, one for each clause of the criterion: the
  claim holds if all are met; and where it may be that nothing can be said, ``testable(figures) -> bool``,
- or, where a criterion has no clauses, ``verdict(figures) -> "holds" | "does_not_hold" | "not_testable"``, and perhaps
  ``why(figures) -> str``, the explanation of that verdict,
- optionally ``SEEDS`` (0, 1, 2 if absent).

Verdicts, rows and evidence all come from the figures; nothing about an outcome is ever typed.
"""

import importlib.util
import json
import math
import shutil
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import catalogue
from ..errors import AcclimateError
from ..files import cache_dir, digest, file_digest, lock, read_json, write_json
from ..progress import say

SEEDS = (0, 1, 2)
ENOUGH = 3  # seeds below which there is no verdict
OUTCOMES = ("holds", "does_not_hold", "not_testable")


def reproduce(
    name: str | int,
    *,
    tiny: bool = False,
    seeds: Iterable[int] | None = None,
    out: str | Path | None = None,
    record: bool = False,
) -> dict[str, Any]:
    """Run one paper's experiment, seed after seed, and judge it by the criterion written beforehand.

    ``name`` is a paper's id or number. ``out`` is the folder for results (by default one in the cache). A run that was killed
    goes on at the seed it had not finished. ``tiny`` uses the first two seeds and never gives a verdict; ``record`` also
    writes ``evidence/<id>.json`` (a full run of at least 3 seeds, in a checkout).

    Returns plain data: id, title, claim, criterion, metric, verdict ("not_run" for tiny or fewer than 3 seeds), note, why,
    rows [{name, mean, ci95 (half-width of the 95 % t interval over seeds, None for one seed), seeds (figure per seed)}],
    details per seed, seeds, seconds, device, tiny, source (digest of the experiment's file), provenance, file (the result's).

    Raises AcclimateError for an unknown paper, a paper without experiment, missing data, or a figure that is no number.
    """
    paper = catalogue.paper(name)
    module = load(paper["id"])
    wanted = _seeds(module, tiny, seeds)
    if record:
        _may_record(tiny, wanted)
    source = file_digest(catalogue.PACKAGE / paper["experiment"])
    folder = Path(out).expanduser() if out else cache_dir("experiments", paper["id"])
    with lock(folder):
        done = _run_seeds(paper["id"], module, wanted, tiny, source, folder)
        result = _judge(paper, module, done, tiny, source, record)
        stem = paper["id"] + ("-tiny" if tiny else "")
        write_json(folder / f"{stem}.json", result)
        _partial(folder, paper["id"], source, tiny).unlink(missing_ok=True)
    if record:
        write_json(catalogue.PACKAGE / "evidence" / f"{paper['id']}.json", result)
        say(f"{paper['id']}: recorded as evidence/{paper['id']}.json")
    return {**result, "file": str(folder / f"{stem}.json")}


def load(name: str | int) -> ModuleType:
    """The module of one paper's experiment, checked for what it must have."""
    paper = catalogue.paper(name)
    if paper["experiment"] is None:
        written = [row["id"] for row in catalogue.papers() if row["experiment"]]
        path = f"experiments/{paper['room']}/{paper['id']}.py"
        raise AcclimateError(f"no experiment for {paper['id']} yet ({path}); written: {', '.join(written) or 'none'}")
    # always from the file itself: the digest that keys a resumed run must be of the code that runs
    full = f"{__name__}.{paper['room']}.{paper['id']}"
    spec = importlib.util.spec_from_file_location(full, catalogue.PACKAGE / paper["experiment"])
    if spec is None or spec.loader is None:
        raise AcclimateError(f"{paper['experiment']} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[full] = module
    spec.loader.exec_module(module)
    for part, meaning in {"__doc__": "a docstring", "CRITERION": "a sentence", "METRIC": "a sentence"}.items():
        if not isinstance(getattr(module, part, None), str) or not getattr(module, part).strip():
            raise AcclimateError(f"{paper['experiment']} lacks {part}: {meaning}, written before the run")
    if hasattr(module, "clauses"):
        _judging(module)
    for part in ("run", "verdict"):
        if not callable(getattr(module, part, None)):
            raise AcclimateError(f"{paper['experiment']} lacks the function {part}")
    return module


def _judging(module: Any) -> None:
    """Give an experiment with clauses what follows from them, where it does not say it itself."""

    def verdict(figures: dict[str, list[float]]) -> str:
        if hasattr(module, "testable") and not module.testable(figures):
            return "not_testable"
        return "holds" if all(met for _, met in module.clauses(figures)) else "does_not_hold"

    def why(figures: dict[str, list[float]]) -> str:
        told = enumerate(module.clauses(figures), 1)
        return "; ".join(f"({number}) {said}: {'met' if met else 'not met'}" for number, (said, met) in told)

    vars(module).setdefault("verdict", verdict)
    vars(module).setdefault("why", why)


def recheck(name: str) -> str:
    """The verdict that an experiment gives today on the figures recorded as evidence; no run."""
    found = catalogue.evidence(name)
    if found is None:
        raise AcclimateError(f"no evidence for {name}; record it with: acclimate reproduce {name} --record")
    return _outcome(name, load(name).verdict({row["name"]: list(row["seeds"]) for row in found["rows"]}))


def _seeds(module: ModuleType, tiny: bool, given: Iterable[int] | None) -> list[int]:
    seeds = list(given) if given is not None else list(getattr(module, "SEEDS", SEEDS))[: 2 if tiny else None]
    if not seeds or len(set(seeds)) < len(seeds) or not all(isinstance(seed, int) for seed in seeds):
        raise AcclimateError(f"seeds = {seeds!r}, but must be different whole numbers, at least one")
    return seeds


def _may_record(tiny: bool, seeds: list[int]) -> None:
    if tiny:
        raise AcclimateError("a tiny run proves only that the code runs and is never evidence; leave out --tiny or --record")
    if len(seeds) < ENOUGH:
        raise AcclimateError(f"evidence needs at least {ENOUGH} seeds, but --seeds gives {len(seeds)}")
    if not catalogue.checkout():
        raise AcclimateError("evidence is recorded in a checkout of the project only; leave out --record and read the result file")


def _run_seeds(name: str, module: ModuleType, seeds: list[int], tiny: bool, source: str, folder: Path) -> dict[int, dict[str, Any]]:
    """Every wanted seed's {arms, details, seconds, started, device, git}; finished ones are kept on disk at once."""
    partial = _partial(folder, name, source, tiny)
    kept = read_json(partial) if partial.is_file() else {}
    for place, seed in enumerate(seeds, 1):
        where = f"{name}: seed {seed} ({place} of {len(seeds)})"
        if str(seed) in kept:
            say(f"{where} was finished before")
            continue
        work = partial.with_suffix("") / f"seed-{seed}"  # kept after a failure, so that an experiment may go on in it
        work.mkdir(parents=True, exist_ok=True)
        kept[str(seed)] = _run_seed(name, module, seed, tiny, work)
        _same_arms(name, kept)
        write_json(partial, kept)
        shutil.rmtree(work, ignore_errors=True)
        arms = ", ".join(f"{arm} {figure:.4g}" for arm, figure in kept[str(seed)]["arms"].items())
        say(f"{where} took {kept[str(seed)]['seconds']:.1f} s: {arms or 'no figure'}")
    shutil.rmtree(partial.with_suffix(""), ignore_errors=True)
    return {seed: kept[str(seed)] for seed in seeds}


def _partial(folder: Path, name: str, source: str, tiny: bool) -> Path:
    from .. import __version__

    return folder / f"{name}-{digest([source, tiny, __version__])}.partial.json"


def _run_seed(name: str, module: ModuleType, seed: int, tiny: bool, work: Path) -> dict[str, Any]:
    import random

    import numpy as np
    import torch

    # a seed must give the same figures whether or not another one ran before it in this process
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started, clock = datetime.now(UTC), time.perf_counter()
    found = module.run(seed, tiny, work)
    seconds = time.perf_counter() - clock
    used = torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
    given = found.get("arms") if isinstance(found, dict) and "arms" in found else found
    if not isinstance(given, dict):
        raise AcclimateError(f"{name}: run(seed={seed}) must return a dict of arms and figures, but gave {type(given).__name__}")
    arms = {}
    for arm, figure in given.items():
        try:
            arms[arm] = float(figure)
        except (TypeError, ValueError):
            arms[arm] = math.nan
        if not math.isfinite(arms[arm]):
            raise AcclimateError(f"{name}: arm {arm!r} of seed {seed} is {figure!r}, but must be a finite number")
    details = found.get("details") if given is not found else None
    return {
        "arms": arms,
        "details": json.loads(json.dumps(details, default=_plain)),
        "seconds": seconds,
        "started": started.isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if used else "cpu",
        "git": _commit(),
    }


def _plain(value: Any) -> Any:
    """Arrays, tensors and numpy scalars as lists and numbers; anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _same_arms(name: str, kept: dict[str, dict[str, Any]]) -> None:
    (first, one), *others = kept.items()
    for seed, other in others:
        if set(other["arms"]) != set(one["arms"]):
            raise AcclimateError(f"{name}: seed {seed} has arms {sorted(other['arms'])}, but seed {first} has {sorted(one['arms'])}")


def _judge(
    paper: dict[str, Any], module: ModuleType, done: dict[int, dict[str, Any]], tiny: bool, source: str, record: bool
) -> dict[str, Any]:
    from ..parts.statistics import over_seeds

    seeds = list(done)
    figures = {arm: [done[seed]["arms"][arm] for seed in seeds] for arm in done[seeds[0]]["arms"]}
    rows = []
    for arm, values in figures.items():
        mean, half = over_seeds(values)
        rows.append({"name": arm, "mean": mean, "ci95": half, "seeds": values})
    outcome, why = "not_run", ""
    if len(seeds) > 1:  # also when tiny, so that a broken verdict shows before the full run
        outcome = _outcome(paper["id"], module.verdict({arm: list(values) for arm, values in figures.items()}))
        why = str(module.why(figures)) if hasattr(module, "why") else ""
    note = ""
    if tiny:
        note = "a tiny run proves only that the code runs; it says nothing about the claim"
    elif len(seeds) < ENOUGH:
        note = f"a verdict needs at least {ENOUGH} seeds, and this run has {len(seeds)}"
    if note:
        outcome, why = "not_run", ""
    seconds = [done[seed]["seconds"] for seed in seeds]
    device = ", ".join(sorted({done[seed]["device"] for seed in seeds}))
    return {
        "id": paper["id"],
        "title": paper["title"],
        "claim": paper["claim"],
        "criterion": _line(module.CRITERION),
        "metric": _line(module.METRIC),
        "verdict": outcome,
        "note": note,
        "why": why,
        "rows": rows,
        "details": {str(seed): done[seed]["details"] for seed in seeds},
        "seeds": seeds,
        "seconds": sum(seconds),
        "device": device,
        "tiny": tiny,
        "source": source,
        "provenance": {
            **_versions(),
            "machine": _machine(),
            "device": device,
            "git": sorted({done[seed]["git"] for seed in seeds} - {""}),
            "command": _command(paper["id"], seeds, tiny, record),
            "started": min(done[seed]["started"] for seed in seeds),
            "seconds": seconds,
            "figures": {str(seed): done[seed]["arms"] for seed in seeds},
        },
    }


def _outcome(name: str, given: Any) -> str:
    if given not in OUTCOMES:
        raise AcclimateError(f"{name}: verdict() gave {given!r}, but must give one of {', '.join(OUTCOMES)}")
    return given


def _line(text: str) -> str:
    return " ".join(text.split())


def _command(name: str, seeds: list[int], tiny: bool, record: bool) -> str:
    listed = ",".join(map(str, seeds))
    return f"acclimate reproduce {name} --seeds {listed}" + " --tiny" * tiny + " --record" * record


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    from .. import __version__

    return {"acclimate": __version__, "python": platform.python_version(), **{p: version(p) for p in ("torch", "transformers")}}


def _machine() -> dict[str, Any]:
    import os
    import platform

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = named[0] if named else cpu
    return {"cpu": cpu, "cores": os.cpu_count()}


def _commit() -> str:
    """The commit the code stands at, marked if the sources differ from it; "" outside a checkout."""
    import subprocess

    root = catalogue.checkout()
    if root is None:
        return ""
    said = []
    for command in (
        ["rev-parse", "--short=12", "HEAD"],
        ["status", "--porcelain", "-uno", "--", "src", ":!src/acclimate/evidence"],
    ):
        try:
            done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            return ""
        said.append(done.stdout.strip())
    head, changed = said
    return head + (" with local changes" if changed else "")
