"""The report for a terminal: the headline, the results and the costs as rich tables."""

from typing import Any

from .data import check
from .summary import summarise
from .tables import columns_of, cost_rows, result_groups

COLUMNS = {"model": "model", "value": "value", "ends": "95 %", "gain": "gain", "gain_ends": "95 %", "p": "p", "n": "n", "flips": "flips"}
COSTS = {
    "model": "model",
    "time": "time",
    "tokens": "tokens",
    "flops": "compute",
    "memory": "peak memory",
    "trained": "trained",
    "total": "of all",
}


def table(data: dict[str, Any]) -> Any:
    """What ``rich.print`` shows of a report: headline, a block per set and metric with a row per model, then the costs."""
    from rich.console import Group
    from rich.text import Text

    data = check(data)
    summary = summarise(data)
    parts: list[Any] = [Text(line, style=style) for line, style in ((summary.headline, "bold"), (summary.remark, "dim")) if line]
    parts += [Text(note, style="dim") for note in data["notes"]]
    groups = result_groups(data)
    present = columns_of(data)
    columns = {key: title for key, title in COLUMNS.items() if present.get(key, True)}
    every = [row for group in groups for row in group["rows"]]
    for group in groups:
        parts += [Text(""), Text.assemble((group["domain"], "bold"), (f"  {group['role']}, {group['unit']}, {group['better']}", "dim"))]
        parts.append(_table(columns, group["rows"], every))
    costs = cost_rows(data)
    if costs:
        parts += [Text(""), Text("cost", style="bold"), _table(COSTS, costs, costs)]
    return Group(*parts)


def _table(columns: dict[str, str], rows: list[dict[str, Any]], every: list[dict[str, Any]]) -> Any:
    """Some rows as a table whose columns are as wide as ``every`` row needs, so that tables below each other line up."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="dim")
    for key, title in columns.items():
        width = max(len(title), *(len(row[key]) for row in every))
        if key == "model":
            shown.add_column(title, overflow="fold", min_width=min(width, 16))
        else:
            ends = key.endswith("ends")
            shown.add_column(title, justify="left" if ends else "right", style="dim" if ends else "", no_wrap=True, min_width=width)
    for row in rows:
        styles = {"gain": {"better": "blue", "worse": "red"}.get(row.get("tone", ""), ""), "value": "bold" if row.get("best") else ""}
        shown.add_row(*(Text(row[key], style=styles.get(key, "")) for key in columns))
    return shown
