"""What a run found: report.json, one self-contained HTML page, and a table for the terminal.

The data is plain JSON, every part optional::

    {"title": str, "created": iso time, "base": name, "command": str, "recipe": yaml text, "notes": [str],
     "models": {name: {"how": str, "trained_parameters": int, "total_parameters": int, "tokens": int, "seconds": float,
                       "flops": float, "peak_memory_bytes": int}},
     "domains": {name: {"role": "in" | "out", "documents": int, "bytes": int, "source": str, "licence": str}},
     "results": [{"model", "domain", "metric", "better": "lower" | "higher", "value", "low", "high", "n",
                  "change", "change_low", "change_high", "p",      # value minus the base's on the same items; null for the base
                  "flips"}],                                       # share of items right before and wrong now, or [share, low, high]
     "curves": {model: [{"step": int, "tokens": int, "seconds": float, "loss": float, domain: bits per byte ...}]},
     "merges": {step: facts of its merge.json (merge_facts.condense)},   # read from the folder where they are not given
     "searches": {name: trials of its log (searches.py)},
     "samples": [{"domain", "prompt", "texts": {model: str}}],
     "contamination": {"checked": int, "removed": int, "spans": [{"domain", "origin", "text", "found_in"}]},
     "provenance": {name: value or mapping, "models": {name: hash}, "domains": {name: hash}}}

>>> from acclimate.report.summary import summarise
>>> data = {"base": "seedling", "domains": {"law": {"role": "in"}}, "results": [
...     {"model": "seedling", "domain": "law", "metric": "bits_per_byte", "value": 2.31},
...     {"model": "tuned", "domain": "law", "metric": "bits_per_byte", "value": 1.45,
...      "change": -0.86, "change_low": -0.92, "change_high": -0.80}]}
>>> summarise(check(data)).headline
"'tuned' gains 0.86 bits per byte in law [0.80, 0.92]; what it lost outside was not measured."
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import AcclimateError
from ..files import read_json, write_json, write_text
from .data import check
from .gather import gather
from .merging import merge
from .terminal import table

__all__ = ["check", "compare", "load", "merge", "table", "write"]


def write(data: dict[str, Any], folder: str | Path) -> Path:
    """Write report.json and report.html into the folder; return the page's path. The same data gives the same bytes.

    Where the folder is that of a run, its merges and searches are read from it, unless the data has its own.
    """
    from .page import page

    data = check(data)
    folder = Path(folder)
    if not (data["merges"] or data["searches"]):
        data |= gather(folder, list(data["models"]))
    html = page(data)  # before anything is written: either both files are of this data, or none
    write_json(folder / "report.json", data)
    write_text(folder / "report.html", html)
    return folder / "report.html"


def load(folder: str | Path) -> dict[str, Any]:
    """The data of a run: from its folder, or from a report.json itself."""
    path = Path(folder)
    if path.is_dir():
        path = path / "report.json"
    if not path.is_file():
        raise AcclimateError(f"{folder} holds no report.json; name the folder of a run that has finished")
    return check(read_json(path), str(path))


def compare(runs: Sequence[str | Path], folder: str | Path | None = None, *, force: bool = False) -> dict[str, Any]:
    """Load several runs, merge them, and write the common report if a folder is given; return its data."""
    data = merge([load(run) for run in runs], force=force)
    if folder is not None:
        write(data, folder)
    return data
