"""What a run directory knows of its merges and searches, for its report."""

from pathlib import Path
from typing import Any

from ..errors import AcclimateError
from ..files import read_json, read_yaml
from .merge_facts import ROOM, read_merge
from .searches import read_searches


def gather(folder: str | Path, models: list[str]) -> dict[str, dict[str, Any]]:
    """The parts ``merges`` and ``searches`` of a report: merge steps of the run's recipe, merges among ``models``, all searches.

    A merge.json that is broken, or missing where the recipe merges, is told as {"broken": why}.
    """
    folder = Path(folder)
    steps = _steps(folder / "recipe.yaml")
    merging = [name for name, step in steps.items() if str(step.get("use", "")).startswith("merging.")]
    found = []
    for name in dict.fromkeys([*merging, *(model for model in models if "/" not in model)]):
        made = folder / "steps" / name
        path = made / "model" / "merge.json"
        if path.is_file() or (name in merging and (made / "step.json").is_file()):  # a strategy's step has no folder of its own name
            found.append((name, path, _names(made / "step.json")))
    room = min(ROOM, 2 * ROOM // max(1, len(found)))
    merges = {name: read_merge(path, names, room) for name, path, names in found}
    return {"merges": merges, "searches": read_searches(folder, steps)}


def _steps(path: Path) -> dict[str, dict[str, Any]]:
    try:
        recipe = read_yaml(path) if path.is_file() else {}
    except AcclimateError:
        recipe = {}
    steps = recipe.get("steps") if isinstance(recipe, dict) else []
    return {str(step.get("as")): step for step in steps or [] if isinstance(step, dict)}


def _names(path: Path) -> list[str]:
    """Names of the merged models, from what a step says of itself ("ties of a, b")."""
    try:
        how = str(read_json(path).get("how") or "")
    except (AcclimateError, AttributeError):
        return []
    return [name for name in how.partition(" of ")[2].split(", ") if name]
