"""Commands that combine models and adapters. Heavy modules are imported inside them, as in commands.py."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import AcclimateError
from .common import Json, app, emit, pairs


@app.command()
def merge(
    models: Annotated[list[str] | None, typer.Argument(help="models or peft adapters to merge; or one mergekit YAML file")] = None,
    method: Annotated[str, typer.Option(help="a method of the merging room: linear, slerp, ties, dare, della ...")] = "linear",
    base: Annotated[str, typer.Option(help="what the models were tuned from, for methods that work on changes")] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="any setting of the method as name=value, repeated; one per model: keep=0.2,0.5")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16; default: as the base or the first model")] = "",
    tokenizer: Annotated[str, typer.Option(help="base or union, where the models' tokenizers differ")] = "",
    seed: Annotated[int, typer.Option(help="seed of random methods")] = 0,
    workers: Annotated[int, typer.Option(help="threads; 0 = one a core")] = 0,
    shard: Annotated[float, typer.Option(help="largest output file in GB")] = 5.0,
    check: Annotated[bool, typer.Option(help="hash the parents, load the merged model and run a probe through it")] = True,
    resume: Annotated[bool, typer.Option(help="go on with a merge of the same inputs that was killed")] = True,
    out: Annotated[Path | None, typer.Option("--out", help="folder of the merged model")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be merged and in how much memory, and write nothing")] = False,
    as_json: Json = False,
) -> None:
    """Merge models of one architecture, streamed: merge A B --method ties --base C --out D, or merge CONFIG.yaml --out D."""
    from ..merges import merge as run_merge

    given = list(models or [])
    files = [model for model in given if model.endswith((".yaml", ".yml"))]
    if not given or (files and len(given) > 1):
        raise AcclimateError("name the models to merge, or one mergekit YAML file")
    if files and (settings or base or method != "linear"):
        raise AcclimateError("a mergekit YAML names its method, base and parameters itself; leave out --method, --base and --set")
    found = run_merge(
        files[0] if files else method, [] if files else given, base=base, out=out, settings=dict(pairs(settings, "--set")), dtype=dtype,
        tokenizer=tokenizer, seed=seed, workers=workers, shard=int(shard * 1e9), check=check, resume=resume, dry_run=dry_run,
    )  # fmt: skip
    if as_json:
        emit(found)
    elif dry_run:
        for key, value in found.items():
            typer.echo(f"{key:20} {value}")
    else:
        typer.echo(f"{found['weights']:,} weights, {found['changed']:.1%} changed; per tensor: {Path(found['folder']) / 'merge.json'}")
        typer.echo(f"model: {found['folder']}")


@app.command()
def extract(
    tuned: Annotated[str, typer.Argument(help="the tuned model")],
    base: Annotated[str, typer.Option(help="what it was tuned from")],
    out: Annotated[Path, typer.Option("--out", help="folder of the adapter")],
    rank: Annotated[int, typer.Option(help="ranks kept of each layer; 0 = as many as --energy asks for")] = 0,
    energy: Annotated[float, typer.Option(help="share of each layer's change that is kept")] = 0.0,
    as_json: Json = False,
) -> None:
    """Turn what a tuned model changed into a LoRA adapter in peft's format: extract TUNED --base BASE --rank 16 --out ADAPTER."""
    from ..merges import extract as run_extract

    found = run_extract(tuned, base, out, rank=rank, energy=energy)
    if as_json:
        emit(found)
    else:
        ranks = list(found["ranks"].values())
        typer.echo(f"{len(ranks)} layers of rank {min(ranks)} to {max(ranks)} hold {found['energy_kept']:.1%} of the change")
        typer.echo(f"adapter: {found['folder']}")


@app.command()
def combine(
    adapters: Annotated[list[str], typer.Argument(help="peft LoRA adapters of one base")],
    out: Annotated[Path, typer.Option("--out", help="folder of the combined adapter")],
    weights: Annotated[str, typer.Option(help="one number per adapter with commas between them; 1 each if not given")] = "",
    rank: Annotated[int, typer.Option(help="most ranks kept of each layer; 0 = all, or as many as --energy asks for")] = 0,
    energy: Annotated[float, typer.Option(help="share of each layer's change that is kept")] = 0.0,
    method: Annotated[str, typer.Option(help="sum, or a method that merges changes: ties, dare, della, breadcrumbs ...")] = "sum",
    settings: Annotated[list[str] | None, typer.Option("--set", help="any setting of the method as name=value, repeated")] = None,
    seed: Annotated[int, typer.Option(help="seed of random methods")] = 0,
    as_json: Json = False,
) -> None:
    """Combine LoRA adapters of one base into one: combine A B --weights 0.7,0.3 --out D; exact unless --rank or --energy shorten it."""
    from ..merges import combine as run_combine

    try:
        each = [float(weight) for weight in weights.split(",")] if weights else None
    except ValueError as error:
        raise AcclimateError(f"--weights {weights} must be numbers with commas between them, e.g. --weights 0.7,0.3") from error
    found = run_combine(
        adapters, out, weights=each, rank=rank, energy=energy, method=method, settings=dict(pairs(settings, "--set")), seed=seed
    )
    if as_json:
        emit(found)
        return
    ranks = list(found["ranks"].values())
    typer.echo(f"{len(ranks)} layers of rank {min(ranks)} to {max(ranks)} hold {found['energy_kept']:.1%} of the combined change")
    for name, cosine in found["cosine"].items():
        typer.echo(f"cosine {cosine:.3f}   {name.partition(':')[2]}")
    typer.echo(f"adapter: {found['folder']}")
