"""From a source to a domain: a path, a named dataset, or a dataset of the Hugging Face hub."""

import importlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .. import progress
from ..errors import AcclimateError, nearest
from ..method import Setting, Settings
from . import forms, reading, splits
from .forms import Row
from .reading import Bad, Raw

if TYPE_CHECKING:
    from . import Domain

DATASETS = Path(__file__).parent.parent / "datasets"  # a floor above: known by its files, imported by name at run time
GIVEN = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


ABOUT = ("licence", "parent", "time", "access")


class Options(Settings):
    """What :meth:`acclimate.domain.Domain.load` takes beside name and source."""

    field: Annotated[
        str | dict | None, Setting('the field that holds the text, or a map {"text": field, "label": field} to canonical columns')
    ] = None
    shares: Annotated[tuple | list, Setting("shares of train, validation and test; 0 leaves a split out", 0, 1)] = (0.8, 0.1, 0.1)
    near_duplicates: Annotated[
        float | None, Setting("Jaccard similarity from which a row of train is too close to a tested one; none = off", 0.1, 1)
    ] = 0.8
    limit: Annotated[int | None, Setting("read at most so many rows, the first ones (per split where splits are given)", 1)] = None
    encoding: Annotated[str | None, Setting("encoding of text files; UTF-8 where none is given")] = None
    passage_chars: Annotated[int, Setting("longest passage of a plain file, in characters", 100)] = 4000
    skip_bad: Annotated[bool, Setting("leave out bad rows and files and count them, instead of stopping at the first")] = False
    config: Annotated[str | None, Setting("configuration of a Hugging Face dataset that has several")] = None
    licence: Annotated[str, Setting("licence of the texts")] = ""
    parent: Annotated[str, Setting("the wider domain this one belongs to")] = ""
    time: Annotated[str, Setting("when the texts were written")] = ""
    access: Annotated[str, Setting("who may see the texts")] = "public"

    def __post_init__(self):
        super().__post_init__()
        if len(self.shares) != 3 or abs(sum(self.shares) - 1) > 1e-6 or self.shares[0] == 0:
            raise AcclimateError(
                f"shares = {self.shares!r}, but must be three numbers (train, validation, test) that sum to 1, train above 0"
            )

    @property
    def columns(self) -> dict[str, str] | None:
        """The source's field per canonical column, where fields are named."""
        return {"text": self.field} if isinstance(self.field, str) else self.field


def load(name: str, source: str, **given: Any) -> "Domain":
    """See :meth:`acclimate.domain.Domain.load`."""
    options = Options(**given)
    source = str(source)
    if not source.strip():
        raise AcclimateError(f"domain {name!r} has an empty source; name a file, a folder or a dataset")
    path = Path(source).expanduser()
    if path.exists():
        return build(name, gather(from_path(path, options), options), options, source=source)
    stem = source.partition("/")[0]
    if stem.isidentifier() and not stem.startswith("_") and (DATASETS / f"{stem}.py").is_file():
        return _named(name, source, options)
    if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source) and path.suffix.lower() not in reading.READERS:
        rows = gather(_hub(source, options), options)
        return build(name, rows, options, source=f"https://huggingface.co/datasets/{source}")
    raise AcclimateError(_unknown(source))


def _unknown(source: str) -> str:
    named = sorted(path.stem for path in DATASETS.glob("[!_]*.py"))
    return f"no file or folder {source!r} exists, and no dataset has that name{nearest(source.partition('/')[0], named)}"


def build(name: str, rows: Sequence[Row | Bad], options: Options | None = None, *, whole: bool = False, source: str = "") -> "Domain":
    """Divide rows and put them into Arrow tables; ``whole`` leaves them all in train as they stand, and so do facts: a graph is one."""
    from datasets import Dataset

    from . import Domain

    options = options or Options()
    good = [row for row in rows if isinstance(row, Row)]
    if not good:
        first = f" ({len(rows)} bad ones were left out, the first {rows[0]})" if rows else ""
        raise AcclimateError(f"{source or name}: no rows{first}; give it at least {splits.FEWEST} documents")
    parts: dict[str, list[Row]] = {"train": good}
    dropped: dict[str, int] = {}
    if not whole and good[0].form != "facts":
        parts, dropped = splits.divide(good, options.shares, options.near_duplicates, name)
    if options.skip_bad:
        dropped["bad"] = len(rows) - len(good)
    form = good[0].form
    tables = {}
    for split, these in parts.items():
        columns: dict[str, list] = {"id": [row.id for row in these], "origin": [row.origin for row in these]}
        for column in good[0].values:
            columns[column] = [row.values[column] for row in these]
        tables[split] = Dataset.from_dict(columns)
    about = {key: getattr(options, key) for key in ABOUT}
    return Domain(name, form, tables, source=source, dropped=dropped, **about)


def gather(found: Iterable[Row | Bad], options: Options) -> list[Row | Bad]:
    """All rows of a source; the first bad one stops it, unless bad ones are to be skipped."""
    rows: list[Row | Bad] = []
    for row in progress.bar(found, "reading", unit="row"):
        if isinstance(row, Bad) and not options.skip_bad:
            raise AcclimateError(f"{row}; or pass skip_bad=True to go on without it")
        rows.append(row)
    return rows


def from_path(source: Path, options: Options) -> Iterator[Row | Bad]:
    """The rows of a file or folder in order, good and bad; all are of one form."""
    paths = reading.files(source)
    given = {path: GIVEN.get(_split_name(path, source), "") for path in paths}
    if not all(given.values()) or "train" not in given.values() or len(set(given.values())) < 2:
        given = {}
    first: Row | None = None
    taken: Counter[str] = Counter()
    for path in paths:
        split = given.get(path, "")
        if options.limit and taken[split] >= options.limit:
            continue
        raws = reading.read(path, encoding=options.encoding, passage_chars=options.passage_chars)
        for row in forms.rows(raws, options.columns):
            if options.limit and taken[split] >= options.limit:
                break
            if isinstance(row, Row):
                first = first or row
                if row.form != first.form:
                    yield Bad(str(path), "", f"holds {row.form}, but {first.origin} holds {first.form}", "load them as two domains")
                    break
                row.split = split
                taken[split] += 1
            yield row


def _split_name(path: Path, source: Path) -> str:
    """What the file's name, or the folder right under the source, may say of the split: "train" of train-00000-of-00002.parquet."""
    top = path.relative_to(source).parts[0] if path != source else ""
    return re.sub(r"-\d+-of-\d+$", "", top.partition(".")[0]).lower()


def _named(name: str, source: str, options: Options) -> "Domain":
    """A dataset that has a loader; its loader divides it, so only few options apply."""
    usual = Options().values()
    changed = {key: value for key, value in options.values().items() if value != usual[key]}
    idle = sorted(set(changed) - {"limit", *ABOUT})
    if idle:
        raise AcclimateError(f"{source} is a named dataset with splits of its own; leave out {', '.join(idle)}")
    domain = importlib.import_module("acclimate.datasets").load(source)
    if not hasattr(domain, "splits"):
        raise AcclimateError(
            f"{source} is a {type(domain).__name__}, neither text nor arrays; load it with acclimate.datasets.load in Python"
        )
    tables = domain.splits
    if options.limit:
        tables = {split: rows.select(range(min(options.limit, len(rows)))) for split, rows in tables.items()}
    return replace(domain, name=name, splits=tables, **{key: changed[key] for key in ABOUT if key in changed})


def _hub(source: str, options: Options) -> Iterator[Row | Bad]:
    import datasets

    try:
        found = datasets.load_dataset(source, options.config)
    except Exception as error:  # offline, unknown, gated, several configurations: each its own kind of error
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise AcclimateError(f"{_unknown(source)}; the Hugging Face hub says: {reason}") from error
    first: Row | None = None
    for split, table in found.items():
        names = {column: feature.names for column, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)}
        rows = table.select(range(min(options.limit, len(table)))) if options.limit else table
        for row in forms.rows(_hub_rows(f"{source}/{split}", rows, names), options.columns):
            if isinstance(row, Row):
                first = first or row
                if row.form != first.form:
                    yield Bad(
                        row.origin,
                        "",
                        f"holds {row.form}, but {first.origin} holds {first.form}",
                        "choose another configuration with config",
                    )
                    break
                if len(found) > 1:
                    row.split = GIVEN.get(split, split)
            yield row


def _hub_rows(origin: str, table: Any, names: dict[str, list[str]]) -> Iterator[Raw]:
    for number, row in enumerate(table, 1):
        labels = {column: named[row[column]] if row[column] is not None and row[column] >= 0 else None for column, named in names.items()}
        yield Raw(f"{origin}:{number}", {**row, **labels})
