"""Heart disease: patients of three hospitals, with or without narrowed arteries, ten findings each.

Detrano et al. 1989 (UCI heart disease); processed files in github.com/RenHongJia/ProbabilisticGraphModels, licence not stated there.
Cleveland 303 patients, Budapest (hungarian) 294, Long Beach (va) 200. Each hospital loads as ``acclimate.domain.arrays.Arrays``: x
[row, 10] in fp32, y [row], classes healthy (diameter narrowed by less than half) and diseased (degrees 1 to 4 of the files). Features
in order: age (years), sex (1 male), cp (chest pain, 1 typical angina, 2 atypical, 3 other, 4 none), trestbps (resting blood pressure,
mmHg), chol (cholesterol, mg/dl), fbs (blood sugar over 120 mg/dl), restecg (0 normal, 1 ST-T, 2 hypertrophy), thalach (highest heart
rate), exang (angina by exercise), oldpeak (ST depression).

What for: tables of medicine across hospitals; label shift (46, 36 and 74 % diseased).

Missing values. The last three findings of the files (slope, ca, thal) are left out everywhere: outside Cleveland 51 to 99 % of them are
missing. What else is missing is filled within its hospital, from inputs alone: by the median of numbers (age, trestbps, chol, thalach,
oldpeak) and the commonest value of categories (the others; the smaller on a tie). A cholesterol or blood pressure of 0 counts as
missing. ``missing(domain)`` says where values were filled: none in Cleveland, 35 in Budapest, 282 in Long Beach.

Traps. In Long Beach a quarter of the rows lack several findings at once, and the pattern itself tells something of the patient. cp and
restecg are categories written as numbers. One patient each of Budapest and Long Beach stands twice. Scales differ by a factor of
hundreds: standardise.
"""

from typing import Any

import numpy as np

from ..domain.arrays import Arrays
from . import known_domain, locate

HOSPITALS = ("cleveland", "hungarian", "va")
FEATURES = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak")
NUMBERS = ("age", "trestbps", "chol", "thalach", "oldpeak")
NEVER_ZERO = ("trestbps", "chol")
CARD: dict[str, Any] = {
    "source": "github.com/RenHongJia/ProbabilisticGraphModels; UCI heart disease",
    "licence": "not stated",
    "size": "3 hospitals of 303, 294 and 200 patients, 10 features, 2 classes; 0.04 MB",
    "columns": {"x": ", ".join(FEATURES), "y": "healthy or diseased"},
    "form": "arrays",
    "hub": None,
}


def domains() -> list[str]:
    """The hospitals."""
    return list(HOSPITALS)


def load(domain: str) -> Arrays:
    """The patients of one hospital, missing values filled as the card says."""
    x, y = _read(domain)
    for column, name in enumerate(FEATURES):
        known = x[~np.isnan(x[:, column]), column]
        values, counts = np.unique(known, return_counts=True)
        x[np.isnan(x[:, column]), column] = np.median(known) if name in NUMBERS else values[counts.argmax()]
    return Arrays(f"heart/{domain}", x.astype(np.float32), y, ["healthy", "diseased"], CARD["source"], CARD["licence"])


def missing(domain: str) -> np.ndarray:
    """[row, 10] of the hospital: True where nothing was measured."""
    return np.isnan(_read(domain)[0])


def _read(domain: str) -> tuple[np.ndarray, np.ndarray]:
    """Findings [row, 10] with NaN where missing, and classes."""
    known_domain("heart", domain, HOSPITALS)
    text = locate(f"other/heart_hospitals/processed.{domain}.data").read_text(encoding="utf-8")
    rows = [[float("nan") if part in ("?", "") else float(part) for part in line.split(",")] for line in text.split()]
    table = np.array(rows)
    x, y = table[:, : len(FEATURES)].copy(), (table[:, -1] > 0).astype(np.int64)
    for name in NEVER_ZERO:
        column = FEATURES.index(name)
        x[x[:, column] == 0, column] = np.nan
    return x, y
