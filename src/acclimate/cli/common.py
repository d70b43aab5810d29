"""What all files of commands share: the program, options that several commands have, and how results are printed."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import AcclimateError

app = typer.Typer(
    name="acclimate",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Turn a general model into a domain expert, and prove it: what was gained in the domain, what was lost outside it.",
)

Json = Annotated[bool, typer.Option("--json", help="print JSON and nothing else on stdout")]
Out = Annotated[Path | None, typer.Option("--out", help="folder for everything this run makes; name it again to go on after a stop")]
Seed = Annotated[int, typer.Option(help="seed of data order, masks and dropout")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="show the resolved recipe with predicted memory and time, and run nothing")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="any training setting as name=value, repeated; see: acclimate show training")
]
Pairs = Annotated[list[str] | None, typer.Option("--outside", help="name=source of general text to measure forgetting on, repeated")]


def emit(data: Any) -> None:
    """JSON on stdout."""
    typer.echo(json.dumps(data, ensure_ascii=False, default=str))


def pairs(given: list[str] | None, what: str) -> dict[str, str]:
    """``name=value`` as given on the command line, by name. Raises AcclimateError."""
    found = {}
    for item in given or []:
        name, equals, value = item.partition("=")
        if not equals or not name or not value:
            raise AcclimateError(f"{what} {item!r} must be written name=value")
        found[name] = value
    return found
