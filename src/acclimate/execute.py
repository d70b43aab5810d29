"""Runs a checked recipe: opens the domains, checks for contamination, makes the steps, measures every model, writes the report."""

import sys
from pathlib import Path
from typing import Any

from .errors import AcclimateError
from .files import lock, write_text
from .progress import say
from .recipe import Recipe
from .runs import Run, new_folder
from .tools import Tools


def run(recipe: "Recipe | str | Path | dict", out: str | Path | None = None, command: str = "") -> dict[str, Any]:
    """Run a recipe (a checked one, a YAML file, or plain data) and return the report's data; what is already made is not made again.

    ``out`` is the run directory (default: a fresh one under ./runs); a run that was killed goes on when it is named again.
    """
    from . import report

    if isinstance(recipe, dict):
        recipe = Recipe.check(recipe)
    elif not isinstance(recipe, Recipe):
        recipe = Recipe.read(recipe)
    folder = Path(out) if out else new_folder(recipe.title.replace(" ", "-").replace("/", "-"))
    with lock(folder):
        say(f"run directory: {folder}")
        write_text(folder / "recipe.yaml", recipe.text())
        tools = Tools(recipe, Run(folder, recipe.seed))
        tools.open()
        for step in recipe.steps:
            tools.make(step)
        data = tools.report(command or " ".join(["acclimate", *sys.argv[1:]]))
        page = report.write(data, folder)
        say(f"report: {page}")
    return {**data, "folder": str(folder)}


def adapt(
    model: str,
    domain: str,
    *,
    name: str = "domain",
    objective: str = "objectives.causal_lm",
    adapter: str = "",
    replay: float = 0.0,
    outside: dict[str, str] | None = None,
    settings: dict[str, Any] | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Adapt a model to a domain and report what was gained in it and lost outside it; the recipe is written beside the report.

    ``outside`` names general text to measure (and replay); without it the start model's own writing (``recall``) serves.
    """
    recipe = adapt_recipe(model, domain, name, objective, adapter, replay, outside, settings or {}, seed)
    return {"recipe": recipe.text()} if dry_run else run(recipe, out)


def adapt_recipe(
    model: str,
    domain: str,
    name: str,
    objective: str,
    adapter: str,
    replay: float,
    outside: dict[str, str] | None,
    settings: dict[str, Any],
    seed: int,
) -> Recipe:
    """The recipe behind ``adapt``."""
    if not 0 <= replay < 1:
        raise AcclimateError(f"replay = {replay}, but must lie in [0, 1): it is the share of training rows drawn from outside text")
    general: dict[str, Any] = dict(outside or {}) or {"recall": {"recall": 240}}
    if name in general:
        raise AcclimateError(f"{name!r} is the name of the domain itself; call the outside text otherwise, or the domain with --name")
    on: dict[str, float] = {name: 1.0 - replay} | ({key: replay / len(general) for key in general} if replay else {})
    step: dict[str, Any] = {"as": "adapted", "use": objective, "on": on, "train": settings}
    if adapter:
        step["adapter"] = adapter
    return Recipe.check(
        {
            "title": f"{name}-expert",
            "seed": seed,
            "model": model,
            "domains": {name: domain, **general},
            "steps": [step],
            "evaluate": {"in": [name], "out": list(general)},
        }
    )
