"""A whole sweep under shift: ten methods, each of 12 kinds of reviews left out in turn, on vectors of a frozen MiniLM.

    ACCLIMATE_DATA=FOLDER python bench/sweep.py

The reviews' vectors are made first where the cache has none, and are not timed. All cores are used, one run each.
"""

import os
import sys
import tempfile
import time

import common

METHODS = ("erm", "mixup", "irm", "group_dro", "coral", "mmd", "dann", "cdan", "mcd", "shot")
GOAL = 600.0  # seconds, on two cores


def main() -> None:
    """Measure and write bench/results/sweep.json."""
    from acclimate.experiments.shift_leaderboards import BENCHMARKS
    from acclimate.shifts import load_domains, shift

    reviews = BENCHMARKS["reviews"]
    load_domains(reviews.domains, reviews.data)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        found = shift(METHODS, reviews.domains, data=reviews.data, workers=os.cpu_count() or 1, out=folder)
        seconds = time.perf_counter() - started
    by = {row["method"]: {key: row[key] for key in ("mean", "ci95", "seconds")} for row in found["leaderboard"]}
    common.write("sweep", {"seconds": seconds, "goal": GOAL, "runs": len(found["rows"]), "methods": by})
    sys.exit(bool(found["failed"]))


if __name__ == "__main__":
    main()
