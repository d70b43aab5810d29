"""What a source holds and what is wrong with it: all of it, not only the first fault."""

from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import AcclimateError
from . import forms, reading, splits
from .forms import Row
from .loading import Options, from_path
from .reading import Bad

SHOWN = 20  # bad rows


def validate(source: str | Path, **options: Any) -> dict[str, Any]:
    """Read a file or folder as :meth:`acclimate.domain.Domain.load` would, and report everything found (plain data, ready for JSON).

    Keys: ``source``, ``ok``, ``files`` (path, bytes, rows, bad), ``form``, ``rows``, ``bytes`` (of text, UTF-8), ``splits`` (rows in
    each), ``dropped`` (exact and near duplicates), ``shortest`` and ``longest`` (origin, characters), ``sample`` (the first row),
    ``bad`` (origin, field, problem, mend: the first 20), ``bad_rows`` (how many), ``problem`` (why the source as a whole cannot be
    loaded, or ""). Raises AcclimateError only where there is nothing to read.
    """
    chosen = Options(**options)
    path = Path(source).expanduser()
    rows: list[Row] = []
    bad: list[Bad] = []
    sizes = {str(file): file.stat().st_size for file in reading.files(path)}
    good_in: Counter[str] = Counter()
    bad_in: Counter[str] = Counter()
    for row in from_path(path, chosen):
        file = row.origin if row.origin in sizes else row.origin.rpartition("#" if ".pdf#" in row.origin.lower() else ":")[0]
        if isinstance(row, Bad):
            bad.append(row)
            bad_in[file] += 1
        else:
            rows.append(row)
            good_in[file] += 1
    problem = ""
    parts: dict[str, list[Row]] = {}
    dropped: dict[str, int] = {}
    if not rows:
        problem = f"{source}: no usable row"
    else:
        try:
            if rows[0].form == "facts":
                parts = {"train": rows}
            else:
                parts, dropped = splits.divide(rows, chosen.shares, chosen.near_duplicates, path.stem)
        except AcclimateError as error:
            problem = str(error)
    texts = [forms.plain(row.form, row.values) for row in rows]
    by_length = sorted(range(len(rows)), key=lambda i: len(texts[i]))
    ends = [{"origin": rows[i].origin, "characters": len(texts[i])} for i in (by_length[:1] + by_length[-1:])]
    return {
        "source": str(source),
        "ok": not bad and not problem,
        "files": [{"path": file, "bytes": size, "rows": good_in[file], "bad": bad_in[file]} for file, size in sizes.items()],
        "form": rows[0].form if rows else "",
        "rows": len(rows),
        "bytes": sum(len(text.encode()) for text in texts),
        "splits": {split: len(these) for split, these in parts.items()},
        "dropped": dropped,
        "shortest": ends[0] if ends else None,
        "longest": ends[1] if ends else None,
        "sample": {"origin": rows[0].origin, **rows[0].values} if rows else None,
        "bad": [{"origin": each.origin, "field": each.field, "problem": each.problem, "mend": each.mend} for each in bad[:SHOWN]],
        "bad_rows": len(bad),
        "problem": problem,
    }
