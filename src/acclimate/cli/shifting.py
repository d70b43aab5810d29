"""Commands for domains that differ: training on some, measuring on another. Heavy modules are imported inside them, as in commands.py."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import AcclimateError
from .common import Json, Out, app, emit, pairs


@app.command()
def shift(
    method: Annotated[
        str, typer.Option(help="methods of domain_adaptation and domain_generalization, with commas between: erm,coral,dann")
    ],
    sources: Annotated[str, typer.Option(help="labelled domains, with commas between: dataset/domain, folders, or bare names")],
    target: Annotated[str, typer.Option(help="the domain without labels; left out: each source is left out in turn")] = "",
    data: Annotated[str, typer.Option(help="the dataset that bare names are domains of: fdu_mtl, blitzer, pacs ...")] = "",
    settings: Annotated[list[str] | None, typer.Option("--set", help="any setting of the method as name=value, repeated")] = None,
    training: Annotated[
        list[str] | None, typer.Option("--train", help="steps, batch, optimizer, lr, choose ... as name=value, repeated")
    ] = None,
    backbone: Annotated[str, typer.Option(help="mlp, series, convnet; by the shape of the rows if empty")] = "",
    encoder: Annotated[str, typer.Option(help="frozen encoder that makes vectors of text")] = "minilm",
    scale: Annotated[str, typer.Option(help="auto, none, source or each: what columns are standardised by")] = "auto",
    head: Annotated[str, typer.Option(help="linear, cosine or weight_norm")] = "linear",
    seeds: Annotated[str, typer.Option(help="seeds with commas between")] = "0",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Train on some domains, measure on another: shift --method dann --sources books,dvd --target kitchen."""
    from ..shifts import shift as run_shift

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError as error:
        raise AcclimateError(f"--seeds {seeds!r} must be whole numbers with commas between") from error
    found = run_shift(
        method.split(","), sources.split(","), target, data=data, settings=dict(pairs(settings, "--set")),
        training=dict(pairs(training, "--train")), backbone=backbone, encoder=encoder, scale=scale, head=head, seeds=numbers, out=out,
    )  # fmt: skip
    if as_json:
        emit(found)
        return
    typer.echo(f"{'method':36} {'accuracy':>8}  {'95 %':>13}  {'seconds':>7}")
    for row in found["leaderboard"]:
        alone = [each for each in found["rows"] if each["method"] == row["method"]]
        if row["ci95"] is not None:
            span = f"{row['mean'] - row['ci95']:.3f} {row['mean'] + row['ci95']:.3f}"
        else:
            span = f"{alone[0]['low']:.3f} {alone[0]['high']:.3f}"
        typer.echo(f"{row['method']:36} {row['mean']:8.3f}  {span:>13}  {row['seconds']:7.1f}")
    if oracle := [row["method"] for row in found["rows"] if row["choice"] == "oracle"]:
        typer.echo(f"chosen by the target's labels (oracle): {', '.join(dict.fromkeys(oracle))}")
    if out:
        typer.echo(f"all rows: {Path(out) / 'shift.json'}")
