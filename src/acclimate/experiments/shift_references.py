"""Numbers of published tables that the same data allow to make again: shallow adaptation between the four domains of Office-Caltech.

800 visual words, rows that sum to 1, columns standardised in each domain; all source rows teach, all target rows are tested. The nearest
neighbour as in Long et al. 2013 (joint distribution adaptation); a linear support vector machine without adaptation (NA), after subspace
alignment (SA, 20 directions) and after CORAL as in Sun, Feng & Saenko 2016 (https://arxiv.org/abs/1511.05547), its penalty C of 0.001 to 1
chosen by five folds of the source. How the latter drew rows and chose C was not at hand: this protocol is our reading. The maps are
those of ``domain_adaptation.subspace_alignment`` and ``domain_adaptation.correlation_alignment``. Run it with
``python -m acclimate.experiments.shift_references``; ``--record`` keeps the result in bench/results, from which docs/shift.md shows it.
"""

import argparse
import json
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import catalogue, datasets
from ..datasets.office_caltech import standardised
from ..errors import AcclimateError
from ..files import write_json
from ..method import load
from ..progress import bar
from ..runs import provenance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.float64]

LETTERS = {"C": "caltech", "A": "amazon", "W": "webcam", "D": "dslr"}
PUBLISHED = {  # percent; NN: Long et al. 2013, table 2; CORAL: Sun et al. 2016, table 1
    "NN": {"CA": 23.70, "CW": 25.76, "CD": 25.48, "AC": 26.00, "AW": 29.83, "AD": 25.48, "WC": 19.86, "WA": 22.96, "WD": 59.24,
           "DC": 26.27, "DA": 28.50, "DW": 63.39},
    "CORAL": {"CA": 52.1, "CW": 46.4, "CD": 45.9, "AC": 45.1, "AW": 44.4, "AD": 39.5, "WC": 33.7, "WA": 36.0, "WD": 86.6,
              "DC": 33.8, "DA": 37.7, "DW": 84.7},
}  # fmt: skip


def measured(pairs: int = 12) -> dict[str, Any]:
    """Accuracies in percent {column: {pair: accuracy}}, and the published ones."""
    domains = {}
    for letter, name in LETTERS.items():
        given = datasets.load(f"office_caltech/{name}")
        domains[letter] = (standardised(given.x).astype(np.float64), given.y)
    found: dict[str, dict[str, float]] = {column: {} for column in ("NN", "NA", "SA", "CORAL")}
    for source, target in bar(list(permutations(LETTERS, 2))[:pairs], "pairs", unit="pair"):
        (x, y), (tested, wanted), pair = domains[source], domains[target], source + target
        found["NN"][pair] = _nearest(x, y, tested, wanted)
        for column in ("NA", "SA", "CORAL"):
            found[column][pair] = _machine(*_mapped(column, x, tested), y, wanted)
    return {"measured": found, "published": PUBLISHED, "provenance": provenance(0)}


def _mapped(column: str, source: "Rows", target: "Rows") -> "tuple[Rows, Rows]":
    """Source and target rows in one space."""
    if column == "NA":
        return source, target
    import torch
    from torch import nn

    from ..engines.shift import Batch, Learner

    name, given = ("subspace_alignment", {"dimension": 20}) if column == "SA" else ("correlation_alignment", {})
    method: Any = load(f"domain_adaptation.{name}", **given)
    learner = Learner(nn.Identity(), 2, width=source.shape[1]).double()
    sides = [Batch(torch.from_numpy(x), None, torch.zeros(len(x)).long(), torch.arange(len(x)), [len(x)]) for x in (source, target)]
    method.begin(learner, *sides)
    if column == "CORAL":
        return source @ learner.memory["map"].numpy(), target
    moved = []
    for x, side in ((source, "source"), (target, "target")):
        mean, turn = learner.memory[side]
        moved.append((x - mean.numpy()) @ turn.numpy())
    return moved[0], moved[1]


def _machine(x: "Rows", tested: "Rows", y: "Rows", wanted: "Rows") -> float:
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.svm import SVC

    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    chosen = GridSearchCV(SVC(kernel="linear"), {"C": [0.001, 0.01, 0.1, 1.0]}, cv=folds).fit(x, y)
    return 100 * float((chosen.predict(tested) == wanted).mean())


def _nearest(x: "Rows", y: "Rows", tested: "Rows", wanted: "Rows") -> float:
    from sklearn.neighbors import KNeighborsClassifier

    return 100 * float((KNeighborsClassifier(1).fit(x, y).predict(tested) == wanted).mean())


def table(found: dict[str, Any]) -> list[str]:
    """The page's lines."""
    pairs = list(found["measured"]["NN"])
    lines = ["## Published tables, made again", "", *(__doc__ or "").split("\n\n", 1)[1].split(" Run it with")[0].splitlines(), ""]
    lines += [f"| | {' | '.join(f'{a} to {b}' for a, b in pairs)} | mean |", "| --- " * (len(pairs) + 2) + "|"]
    for column, values in found["measured"].items():
        lines.append(_line(f"{column}, here", values, pairs))
        if column in found["published"]:
            lines.append(_line(f"{column}, published", found["published"][column], pairs))
    return [*lines, ""]


def _line(name: str, values: dict[str, float], pairs: list[str]) -> str:
    return f"| {name} | {' | '.join(f'{values[pair]:.1f}' for pair in pairs)} | {np.mean([values[pair] for pair in pairs]):.1f} |"


def main() -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description="Published tables of shallow adaptation, made again.")
    parser.add_argument("--record", action="store_true")
    record, root = parser.parse_args().record, catalogue.checkout()
    if record and root is None:
        raise AcclimateError("a result is recorded in a checkout of the project; leave out --record")
    found = measured()
    if record and root is not None:
        write_json(root / "bench" / "results" / "shift" / "references.json", found)
    print(json.dumps(found["measured"], indent=1))


if __name__ == "__main__":
    main()
