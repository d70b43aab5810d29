"""The commands themselves. Heavy modules are imported inside them, so that ``acclimate --help`` is instant."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import AcclimateError
from .common import DryRun, Json, Out, Pairs, Seed, Settings, app, emit, pairs


def _table(data: dict) -> None:
    from rich.console import Console

    from .. import report

    console = Console()
    shown = report.table(data)
    for part in shown if isinstance(shown, (list, tuple)) else [shown]:
        console.print(part)


def _finish(data: dict, as_json: bool) -> None:
    if as_json:
        emit(data)
        return
    _table(data)
    typer.echo(f"report: {Path(data['folder']) / 'report.html'}")
    typer.echo(f"recipe: {Path(data['folder']) / 'recipe.yaml'}   (acclimate run {Path(data['folder']) / 'recipe.yaml'} makes it again)")


@app.command()
def quickstart(out: Out = None, as_json: Json = False) -> None:
    """Adapt the embedded model to a package's documentation three ways and compare them; under 4 minutes on 2 cores."""
    from ..execute import run

    _finish(run("quickstart", out), as_json)


@app.command()
def adapt(
    model: Annotated[str, typer.Argument(help="seedling, a folder, a Hugging Face id, or a folder with a peft adapter")],
    domain: Annotated[str, typer.Argument(help="file, folder, named dataset (lm/legal, python_docs/numpy) or Hugging Face dataset id")],
    name: Annotated[str, typer.Option(help="what to call the domain")] = "domain",
    objective: Annotated[str, typer.Option(help="a method of the objectives room")] = "objectives.causal_lm",
    adapter: Annotated[str, typer.Option(help="a method of the adapters room, e.g. adapters.lora; none = all weights learn")] = "",
    replay: Annotated[float, typer.Option(help="share of training rows drawn from outside text, against forgetting")] = 0.0,
    outside: Pairs = None,
    max_forgetting: Annotated[
        float | None, typer.Option(help="bits per byte that outside text may lose before training goes back and stops")
    ] = None,
    steps: Annotated[int, typer.Option(help="optimizer steps; 0 = one pass over the domain")] = 0,
    settings: Settings = None,
    seed: Seed = 0,
    out: Out = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Adapt a model to a domain, and report what was gained in it and lost outside it."""
    from ..execute import adapt_recipe, run

    given: dict[str, Any] = dict(pairs(settings, "--set"))
    given |= {"steps": steps} if steps else {}
    given |= {"max_forgetting": max_forgetting} if max_forgetting is not None else {}
    recipe = adapt_recipe(model, domain, name, objective, adapter, replay, pairs(outside, "--outside"), given, seed)
    if dry_run:
        _plan(recipe, as_json)
    else:
        _finish(run(recipe, out), as_json)


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(help="models; the first is the one the others are compared with")],
    on: Annotated[list[str], typer.Option("--on", help="name=source of a domain, repeated")],
    outside: Pairs = None,
    split: Annotated[str, typer.Option(help="which split to measure on")] = "test",
    max_bytes: Annotated[int, typer.Option("--bytes", help="bytes of each domain to read")] = 150_000,
    tasks: Annotated[str, typer.Option(help="lm-eval tasks by name, comma-separated (extra: lmeval)")] = "",
    limit: Annotated[int | None, typer.Option(help="items per lm-eval task")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure models on domains: bits per byte and tasks, with intervals and paired differences."""
    from ..measure import evaluate as measure

    data = measure(models, pairs(on, "--on"), outside=pairs(outside, "--outside"), split=split, most=max_bytes, out=out)
    if tasks:
        from ..engines.lm_eval import lm_eval

        data["lm_eval"] = {name: lm_eval(name, tasks.split(","), limit) for name in models}
    if as_json:
        emit(data)
    else:
        _table(data)
        for name, found in data.get("lm_eval", {}).items():
            typer.echo(f"{name}: {json.dumps(found)}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="run directories, each with a report.json")],
    force: Annotated[bool, typer.Option(help="compare even where the measured text differs")] = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Put several runs into one report: gain against forgetting against cost."""
    from .. import report

    data = report.compare(runs, out, force=force)
    if out:
        typer.echo(f"report: {out / 'report.html'}", err=True)
    if as_json:
        emit(data)
    else:
        _table(data)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="a recipe file, or the name of one of the package's own")],
    out: Out = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run a recipe; what is already made in --out is not made again."""
    from ..recipe import Recipe

    checked = Recipe.read(recipe)
    if dry_run:
        _plan(checked, as_json)
        return
    from ..execute import run as execute

    _finish(execute(checked, out), as_json)


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="a recipe file, or the name of one of the package's own")], as_json: Json = False
) -> None:
    """Predict memory and time of a recipe's steps with a short probe, and run nothing."""
    from ..recipe import Recipe

    _plan(Recipe.read(recipe), as_json)


def _plan(recipe: Any, as_json: bool) -> None:
    from ..forecast import forecast

    found = forecast(recipe)
    if as_json:
        emit(found)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "trains", "tokens", "memory", "time", title="what would run")
    for row in found["steps"]:
        table.add_row(row["name"], row["trains"], f"{row['tokens']:,}", f"{row['memory_bytes'] / 2**30:.2f} GiB", f"{row['seconds']:.0f} s")
    Console().print(table)
    typer.echo(recipe.text())


@app.command()
def validate(
    path: Annotated[str, typer.Argument(help="file, folder, named dataset or Hugging Face dataset id")],
    encoding: Annotated[str, typer.Option(help="how text files are encoded; utf-8 if not given")] = "",
    as_json: Json = False,
) -> None:
    """Say what a data source holds: form, rows, splits, duplicates, and every bad row with the mend."""
    from ..domain.validation import validate as look

    found = look(path, **({"encoding": encoding} if encoding else {}))
    if as_json:
        emit(found)
    else:
        for key, value in found.items():
            if key != "bad":
                typer.echo(f"{key:12} {value}")
        for bad in found.get("bad", []):
            typer.echo(f"bad row      {bad}")
    raise typer.Exit(1 if found.get("bad") else 0)


@app.command()
def methods(room: Annotated[str, typer.Option(help="one room only")] = "", as_json: Json = False) -> None:
    """List every method with what it does."""
    from ..errors import nearest
    from ..kinds import ROOMS
    from ..method import names

    if room and room not in ROOMS:
        raise AcclimateError(f"no room {room!r}{nearest(room, ROOMS)}")
    found = names(room)
    if as_json:
        emit([{"name": name, "what": line} for name, line in found.items()])
        return
    width = max(map(len, found), default=0)
    for name, line in found.items():
        typer.echo(f"{name:{width}}  {line}")


ENGINES = {  # settings of engines, by the name that show knows them by
    "training": ("engines.settings", "Training"),
    "shift_training": ("engines.shift", "Training"),
    "stream": ("shifts.arms", "Stream"),
    "rounds": ("engines.active", "Rounds"),
    "memory": ("engines.continual", "Memory"),
}


@app.command()
def show(
    method: Annotated[str, typer.Argument(help="a method's name; or training, shift_training, stream, rounds, memory")],
    as_json: Json = False,
) -> None:
    """Show one method: what it does, its paper, its needs and its settings with defaults and ranges."""
    import sys
    from importlib import import_module

    from ..method import Method, find

    if method in ENGINES:
        module, name = ENGINES[method]
        owner: Any = getattr(import_module(f"acclimate.{module}"), name)
    else:
        owner = find(method)
    doc = (sys.modules[owner.__module__].__doc__ if issubclass(owner, Method) else owner.__doc__) or ""
    rows = [
        {
            "setting": name,
            "default": field.default,
            "low": field.setting.low,
            "high": field.setting.high,
            "choices": list(field.setting.choices),
            "meaning": field.setting.meaning,
        }
        for name, field in owner.settings().items()
    ]
    words = {"needs": owner.needs(), "wishes": owner.wishes()} if issubclass(owner, Method) else {}
    if papers_own := {key: value for key in ("training", "online") if isinstance(value := getattr(owner, key, None), dict) and value}:
        words |= {key: [f"{name} = {each!r}" for name, each in value.items()] for key, value in papers_own.items()}
    if as_json:
        emit({"name": method, "doc": doc, **words, "settings": rows})
        return
    typer.echo(f"{method}\n\n{doc.strip()}\n")
    for key, value in words.items():
        typer.echo(f"{key}: {', '.join(value) or 'none'}")
    for row in rows:
        limits = f" in [{row['low'] if row['low'] is not None else '...'}, {row['high'] if row['high'] is not None else '...'}]"
        span = f" one of {row['choices']}" if row["choices"] else limits if (row["low"], row["high"]) != (None, None) else ""
        typer.echo(f"  {row['setting']} = {row['default']!r}{span}: {row['meaning']}")


@app.command()
def papers(
    room: Annotated[str, typer.Option(help="one room only")] = "",
    verdict: Annotated[str, typer.Option(help="holds, does_not_hold, not_testable, not_run")] = "",
    as_json: Json = False,
) -> None:
    """List the papers with their methods and what re-testing them found."""
    from ..catalogue import papers as all_papers
    from ..catalogue import state

    found = [p for p in all_papers() if room in ("", p["room"]) and verdict in ("", p["verdict"])]
    if as_json:
        emit(found)
        return
    for paper in found:
        typer.echo(f"{paper['n']:>3}  {paper['room']:<22} {paper['id']:<34} {state(paper):<18} {paper['title']}")


@app.command()
def reproduce(
    paper: Annotated[str, typer.Argument(help="a paper's id, see: acclimate papers")],
    tiny: Annotated[
        bool, typer.Option("--tiny", help="seconds instead of minutes: shows that the code runs, and nothing about the claim")
    ] = False,
    seeds: Annotated[str, typer.Option(help="comma-separated; default: the experiment's own")] = "",
    record: Annotated[bool, typer.Option(help="write the result into the package's evidence (for developers)")] = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Re-test a paper's claim: the claim, the criterion written before the run, what was measured, the verdict."""
    from ..experiments import reproduce as again

    if seeds and not all(seed.strip().isdigit() for seed in seeds.split(",")):
        raise AcclimateError(f"--seeds {seeds} must be whole numbers with commas between them, e.g. --seeds 0,1,2")
    chosen = [int(seed) for seed in seeds.split(",")] if seeds else None
    found = again(paper, tiny=tiny, seeds=chosen, out=out, record=record)
    if as_json:
        emit(found)
        return
    typer.echo(f"{found['id']}\nclaim      {found['claim']}\ncriterion  {found['criterion']}\nmetric     {found['metric']}")
    for row in found["rows"]:
        spread = "" if row["ci95"] is None else f" ± {row['ci95']:.4f}"
        typer.echo(f"  {row['name']:<28} {row['mean']:.4f}{spread}   {row['seeds']}")
    typer.echo(f"verdict    {found['verdict']}   ({found['seconds']:.0f} s on {found['device']})")
    for key in ("why", "note"):
        if found.get(key):
            typer.echo(f"{key:10} {found[key]}")


@app.command()
def check(file: Annotated[str, typer.Argument(help="a method's file, or a registered name")], as_json: Json = False) -> None:
    """Run the public checks on a method file: manners, maths, speed."""
    from ..checks import run as run_checks

    outcomes = run_checks(file)
    if as_json:
        emit([dataclasses.asdict(outcome) for outcome in outcomes])
    else:
        for outcome in outcomes:
            mark = "ok" if outcome.ok else "excused" if outcome.excused else "FAILED"
            typer.echo(f"{mark:8} {outcome.check:<32} {outcome.message}")
    raise typer.Exit(0 if all(outcome.ok or outcome.excused for outcome in outcomes) else 1)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, device, cache and disk, the embedded model, and that the loss does not depend on batching."""
    from .doctor import examine

    found = examine()
    if as_json:
        emit(found)
    else:
        for row in found:
            typer.echo(
                f"{'ok' if row['ok'] else 'BAD':4} {row['what']:<24} {row['found']}" + ("" if row["ok"] else f"   mend: {row['mend']}")
            )
    raise typer.Exit(0 if all(row["ok"] for row in found) else 1)
