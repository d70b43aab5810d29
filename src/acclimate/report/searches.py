"""What the page says of a search: the trials of its log, the best so far, and the check on text that chose nothing."""

import json
import math
from pathlib import Path
from typing import Any

from ..errors import AcclimateError
from ..files import read_json
from .data import plain

MAX_TRIALS = 400  # of one search that are kept for the page, the best among them; the log has all


def read_searches(folder: Path, steps: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """All searches of a run directory by name: logs of trials under ``searches``, and soups and sweeps under ``notes``.

    steps: the recipe's, by name; what belongs to none of them is left from an earlier recipe.
    """
    found = {}
    logs = sorted((folder / "searches").glob("*.jsonl"))
    notes = [path for kind in ("soup", "sweep") for path in sorted((folder / "notes").glob(f"*.{kind}.json"))]
    for path in [*logs, *notes]:
        name = path.stem
        step = name.partition(".")[0]
        if steps and step not in steps:
            continue
        try:
            roles = list(steps.get(step, {}).get("on") or {})
            told = _log(path, _note(folder, name), roles) if path.suffix == ".jsonl" else _noted(read_json(path))
        except (AcclimateError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            told = {"broken": f"{path}: {' '.join(str(error).split()) or type(error).__name__}"}
        if told:
            found[name] = told
    return found


def _note(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "notes" / f"{name}.json"
    try:
        note = read_json(path) if path.exists() else {}
    except AcclimateError:
        note = {}
    return note if isinstance(note, dict) else {}


def _log(path: Path, note: dict[str, Any], roles: list[str]) -> dict[str, Any]:
    """A search engine's log: what it is, then a line per trial; half a line at the end is a trial that was killed."""
    lines = path.read_text(encoding="utf-8").split("\n")
    what = json.loads(lines[0])["search"]
    trials: list[list[float]] = []
    broken = 0
    for line in filter(None, lines[1:-1]):
        try:
            score = json.loads(line)["score"]
            trials.append([float(value) for value in (score if isinstance(score, list) else [score])])
        except (ValueError, KeyError, TypeError):
            broken += 1
    told = _condensed([sum(scores) / len(scores) for scores in trials])
    metrics = int(what.get("metrics") or 1)
    told |= {"by": {"cma": "CMA-ES", "nsga2": "NSGA-II"}.get(what.get("by"), str(what.get("by"))), "genes": len(what["start"])}
    told |= {"broken_lines": broken, "stopped": str(note.get("stopped") or ""), "held_out": _held_out(note)}
    if metrics > 1 and trials:
        pairs = [scores[:2] for scores in trials]
        kept = sorted(number for number, _ in told["trials"])
        front = _front(pairs) if metrics == 2 else []
        told |= {"metrics": roles if len(roles) == metrics else [f"metric {i + 1}" for i in range(metrics)]}
        told |= {"points": [pairs[number - 1] for number in kept], "front": front}
    return plain(told)


def _held_out(note: dict[str, Any]) -> dict[str, float]:
    """Scores of the search's start and of its winner on text that chose nothing: of the engine's own check, or means over domains."""
    rows = note.get("held out") or {"": note.get("held_out")}
    rows = [row for row in rows.values() if isinstance(row, dict)]
    ends = {end: [row[end] for row in rows if isinstance(row.get(end), (int, float))] for end in ("start", "best")}
    if not rows or any(len(values) != len(rows) for values in ends.values()):
        return {}
    return {end: sum(values) / len(values) for end, values in ends.items()}


def _noted(note: Any) -> dict[str, Any]:
    """The trials of a greedy soup, or of a sweep over a grid."""
    if isinstance(note, list):
        return plain({**_condensed([float(row["mean"]) for row in note]), "by": "a grid"})
    members = ", ".join(map(str, note["members"]))
    return plain({**_condensed([float(score) for score in note["curve"]]), "by": "greedy addition, best first", "members": members})


def _condensed(scores: list[float]) -> dict[str, Any]:
    """Trials from 1 on [[number, score]], thinned; the best so far where it fell; lower is better."""
    best: list[tuple[int, float]] = []
    for number, score in enumerate(scores, 1):
        if not math.isnan(score) and (not best or score < best[-1][1]):
            best.append((number, score))
    step = max(1, math.ceil(len(scores) / MAX_TRIALS))
    kept = sorted({*range(1, len(scores) + 1, step), *(number for number, _ in best[-MAX_TRIALS:])})
    return {"count": len(scores), "trials": [[number, scores[number - 1]] for number in kept], "best": [list(pair) for pair in best]}


def _front(pairs: list[list[float]]) -> list[list[float]]:
    """Pairs that no other beats in both scores, by the first."""
    front: list[list[float]] = []
    for pair in sorted(pairs):
        if all(map(math.isfinite, pair)) and (not front or pair[1] < front[-1][1]):
            front.append(pair)
    return front
