"""Commands for domains that differ: training on some, measuring on another. Heavy modules are imported inside them, as in commands.py."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import AcclimateError
from .common import Json, Out, app, emit, pairs


def _numbers(seeds: str) -> list[int]:
    try:
        return [int(seed) for seed in seeds.split(",")]
    except ValueError as error:
        raise AcclimateError(f"--seeds {seeds!r} must be whole numbers with commas between") from error


@app.command()
def shift(
    method: Annotated[
        str, typer.Option(help="methods of adaptation, generalization, test time, active learning, with commas between: erm,dann,tent")
    ],
    sources: Annotated[
        str,
        typer.Option(
            help="labelled domains, with commas between: dataset/domain, folders, or bare names; graphs, whose nodes are classified, "
            "also as npz files of x, edges and y; many small graphs as npz with member, or folders of text files like the TU datasets'"
        ),
    ],
    target: Annotated[str, typer.Option(help="the domain without labels; left out: each source is left out in turn")] = "",
    data: Annotated[str, typer.Option(help="the dataset that bare names are domains of: fdu_mtl, blitzer, pacs ...")] = "",
    settings: Annotated[list[str] | None, typer.Option("--set", help="any setting of the method as name=value, repeated")] = None,
    training: Annotated[
        list[str] | None, typer.Option("--train", help="steps, batch, optimizer, lr, choose ... as name=value, repeated")
    ] = None,
    plan: Annotated[
        list[str] | None, typer.Option("--plan", help="test time: rows, lr, optimizer of the stream; active learning: rounds, share")
    ] = None,
    backbone: Annotated[str, typer.Option(help="mlp, series, convnet, text ...; by the shape of the rows if empty")] = "",
    options: Annotated[list[str] | None, typer.Option("--backbone-set", help="settings of the backbone as name=value, repeated")] = None,
    encoder: Annotated[str, typer.Option(help="encoder of text: frozen, or with --backbone text trained too")] = "minilm",
    scale: Annotated[str, typer.Option(help="auto, none, source or each: what columns are standardised by")] = "auto",
    head: Annotated[str, typer.Option(help="linear, cosine or weight_norm")] = "linear",
    about: Annotated[
        str, typer.Option(help="facts of the domains for methods that use them: names, or a JSON file {domain: numbers}")
    ] = "",
    seeds: Annotated[str, typer.Option(help="seeds with commas between")] = "0",
    workers: Annotated[int, typer.Option(min=1, help="processes that run side by side")] = 1,
    keep: Annotated[bool, typer.Option("--keep", help="save every learner in OUT/models")] = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Train on some domains, measure on another: shift --method dann --sources books,dvd --target kitchen."""
    from ..files import read_json
    from ..shifts import shift as run_shift

    facts = read_json(Path(about)) if about and about != "names" else about
    found = run_shift(
        method.split(","), sources.split(","), target, data=data, settings=dict(pairs(settings, "--set")),
        training=dict(pairs(training, "--train")), plan=dict(pairs(plan, "--plan")), backbone=backbone,
        options=dict(pairs(options, "--backbone-set")), encoder=encoder, scale=scale, head=head, about=facts, seeds=_numbers(seeds),
        out=out, keep=keep, workers=workers,
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
        opened = f"  H-score {row['h_score']:.3f}" if "h_score" in row else ""
        typer.echo(f"{row['method']:36} {row['mean']:8.3f}  {span:>13}  {row['seconds']:7.1f}{opened}")
    for row in found["failed"]:
        typer.echo(f"{row['method']} on {row['target']} has no figure: {row['error']}")
    if oracle := [row["method"] for row in found["rows"] if row["choice"] == "oracle"]:
        typer.echo(f"chosen by the target's labels (oracle): {', '.join(dict.fromkeys(oracle))}")
    if out:
        typer.echo(f"all rows: {Path(out) / 'shift.json'}")


@app.command()
def continual(
    method: Annotated[str, typer.Option(help="methods of continual, with commas between: fine_tuning,ewc,replay")],
    domains: Annotated[str, typer.Option(help="labelled domains in the order in which they are learned; or a single one, see --classes")],
    data: Annotated[str, typer.Option(help="the dataset that bare names are domains of")] = "",
    classes: Annotated[int, typer.Option(help="of a single domain: new classes per task")] = 0,
    first: Annotated[int, typer.Option(help="classes of the first task; 0 = as many as of the others")] = 0,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="classes or domains in an order drawn by the seed")] = False,
    memory: Annotated[int, typer.Option(help="rows of earlier tasks that are kept in all, for replay")] = 0,
    per_class: Annotated[int, typer.Option(help="rows kept of each class of each task, instead")] = 0,
    choose: Annotated[str, typer.Option(help="random or herding: which rows are kept")] = "random",
    borderless: Annotated[bool, typer.Option("--borderless", help="tasks pass over into each other, nobody says where")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", help="any setting of the method as name=value, repeated")] = None,
    training: Annotated[list[str] | None, typer.Option("--train", help="steps, batch, lr ... of each task, name=value")] = None,
    backbone: Annotated[str, typer.Option(help="mlp, series, convnet, text ...; by the shape of the rows if empty")] = "",
    options: Annotated[list[str] | None, typer.Option("--backbone-set", help="settings of the backbone as name=value, repeated")] = None,
    encoder: Annotated[str, typer.Option(help="encoder of text: frozen, or with --backbone text trained too")] = "minilm",
    scale: Annotated[str, typer.Option(help="auto or none: whether columns are standardised by the first domain")] = "auto",
    head: Annotated[str, typer.Option(help="linear, cosine or weight_norm")] = "linear",
    seeds: Annotated[str, typer.Option(help="seeds with commas between")] = "0",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Learn one domain after another: continual --method ewc,replay --domains books,dvd,kitchen --memory 100."""
    from ..shifts import continual as run_continual

    kept = {"rows": memory, "per_class": per_class, "choose": choose}
    order = {"classes": classes, "first": first, "shuffle": shuffle}
    found = run_continual(
        method.split(","), domains.split(","), data=data, settings=dict(pairs(settings, "--set")),
        training=dict(pairs(training, "--train")), memory=kept, order=order, borderless=borderless, backbone=backbone,
        options=dict(pairs(options, "--backbone-set")), encoder=encoder, scale=scale, head=head, seeds=_numbers(seeds), out=out,
    )  # fmt: skip
    if as_json:
        emit(found)
        return
    typer.echo(f"{'method':36} {'at the end':>10}  {'95 %':>13}  {'forgotten':>9}  {'learned':>7}")
    for row in found["leaderboard"]:
        half = row.get("final_ci95")
        span = "" if half is None else f"{row['final'] - half:.3f} {row['final'] + half:.3f}"
        parts = [f"{row[key]:.3f}" if key in row else "" for key in ("forgetting", "learned")]
        typer.echo(f"{row['method']:36} {row['final']:10.3f}  {span:>13}  {parts[0]:>9}  {parts[1]:>7}")
    if out:
        typer.echo(f"all rows and matrices: {Path(out) / 'continual.json'}")
