"""Well logs: nine kinds of rock along eight boreholes in Kansas, told from what was measured in the hole.

The Council Grove gas reservoir, as used by Hall 2016 (facies classification using machine learning, The Leading Edge 35) and the SEG
contest of that year; data of the Kansas Geological Survey in github.com/brendonhall/facies_classification, licence not stated. Each
well loads as ``acclimate.domain.arrays.Arrays``: x [row, 7] in fp32, y [row], one row per half foot from the top down; the depth in
feet stands in the origins. Features in order: GR (gamma ray), ILD_log10 (resistivity), DeltaPHI and PHIND (porosity), PE (photoelectric
effect), NM_M (marine or not: 1 nonmarine, 2 marine), RELPOS (relative position in the formation).

What for: adaptation between wells, well = domain; a feature that a domain lacks; label shift.

Missing values: PE was never measured in alexander_d and kimzey_a, and in 12 of 80 rows of recruit_f9. A missing PE is replaced by the
mean of all PE values that were measured in the other wells; no column marks it. A strict protocol, in which nothing of one well may
reach another, leaves the column out: ``x[:, :4]`` and ``x[:, 5:]``. ``missing(domain)`` says which rows were filled.

Traps. recruit_f9 is no real well but 80 rows of a single class (bafflestone) from others, with depths out of order. Neighbouring rows
are nearly alike, so never split a well at random. Two wells of the contest are absent. Wells differ in which classes occur
(cross_h_cattle: a third of its rows are of class sandstone, which most wells lack). Gamma ray has no upper bound and one outlier of
361. Classes are ordered: a wrong neighbour is a small error.
"""

import csv
import io
from typing import Any

import numpy as np

from ..domain.arrays import Arrays
from . import known_domain, locate

WELLS = {
    "alexander_d": "ALEXANDER D", "cross_h_cattle": "CROSS H CATTLE", "kimzey_a": "KIMZEY A", "luke_g_u": "LUKE G U", "newby": "NEWBY",
    "nolan": "NOLAN", "recruit_f9": "Recruit F9", "shrimplin": "SHRIMPLIN",
}  # fmt: skip
FEATURES = ("GR", "ILD_log10", "DeltaPHI", "PHIND", "PE", "NM_M", "RELPOS")
CLASSES = (
    "sandstone", "coarse_siltstone", "fine_siltstone", "marine_siltstone", "mudstone", "wackestone", "dolomite", "packstone", "bafflestone",
)  # fmt: skip
WHERE = "other/well_log_facies/facies_vectors.csv"
CARD: dict[str, Any] = {
    "source": "github.com/brendonhall/facies_classification, facies_vectors.csv",
    "licence": "not stated; Kansas Geological Survey",
    "size": "8 wells, 3,296 rows of 7 features, 9 classes; 0.2 MB",
    "columns": {"x": ", ".join(FEATURES), "y": "facies"},
    "form": "arrays",
    "hub": None,
}


def domains() -> list[str]:
    """The wells."""
    return list(WELLS)


def load(domain: str) -> Arrays:
    """The rows of one well, a missing PE filled as the card says."""
    name = _well(domain)
    wells, lines, x, y, depths = _read()
    here = wells == name
    pe = FEATURES.index("PE")
    measured = x[~here, pe]
    rows = x[here]
    rows[np.isnan(rows[:, pe]), pe] = measured[~np.isnan(measured)].mean()
    origins = [f"{WHERE}:{line}:{depth} ft" for line, depth in zip(lines[here], depths[here], strict=True)]
    return Arrays(f"well_logs/{domain}", rows.astype(np.float32), y[here], list(CLASSES), CARD["source"], CARD["licence"], origins)


def missing(domain: str) -> np.ndarray:
    """[row] of the well: True where PE was not measured."""
    name = _well(domain)
    wells, _, x, _, _ = _read()
    return np.isnan(x[wells == name, FEATURES.index("PE")])


def _well(domain: str) -> str:
    known_domain("well_logs", domain, WELLS)
    return WELLS[domain]


def _read() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Wells, lines of the file, features [row, 7] with NaN where missing, classes and depths of all rows, in the file's order."""
    rows = list(csv.DictReader(io.StringIO(locate(WHERE).read_text(encoding="utf-8"), newline="")))
    x = np.array([[float(row[name] or "nan") for name in FEATURES] for row in rows])
    y = np.array([int(row["Facies"]) - 1 for row in rows], np.int64)
    wells, depths = np.array([row["Well Name"] for row in rows]), np.array([row["Depth"] for row in rows])
    return wells, np.arange(2, len(rows) + 2), x, y, depths
