"""Which method was best: means over targets with intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..parts.statistics import over_seeds


def leaderboard(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Methods by mean accuracy over targets, best first; the interval is over targets where there are several, over seeds otherwise.

    >>> rows = [{"method": "a", "target": t, "seed": 0, "accuracy": v, "seconds": 1.0} for t, v in (("x", 0.5), ("y", 0.7))]
    >>> [(row["method"], round(row["mean"], 2), row["targets"]) for row in leaderboard(rows)]
    [('a', 0.6, 2)]
    """
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        targets = list(dict.fromkeys(row["target"] for row in own))
        by_target = {t: float(np.mean([row["accuracy"] for row in own if row["target"] == t])) for t in targets}
        values = list(by_target.values()) if len(by_target) > 1 else [row["accuracy"] for row in own]
        mean, half = over_seeds(values)
        seconds = float(np.mean([row["seconds"] for row in own]))
        found.append({"method": method, "mean": mean, "ci95": half, "seconds": seconds, "targets": len(by_target), "by_target": by_target})
        if scores := [row["h_score"] for row in own if "h_score" in row]:  # of targets with classes that no source has
            found[-1]["h_score"] = float(np.mean(scores))
    return sorted(found, key=lambda row: -row["mean"])
