"""What experiments in active learning share: pairs of source and target by benchmark, and figures over them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .shift_sets import Cut, digits, made_up, objects, reviews

Curves = dict[str, list[float]]
ROWS = {"amazon": 958, "caltech": 1123, "dslr": 157, "webcam": 295}  # of Office-Caltech
OBJECTS = (("webcam", "amazon"), ("dslr", "caltech"), ("caltech", "webcam"), ("amazon", "dslr"))


@dataclass(frozen=True)
class Bench:
    """Pairs of source and target, and how to make a domain (name, whether it is the source, seed) that plays one of the parts."""

    pairs: Sequence[tuple[str, str]]
    make: Callable[[str, bool, int], Cut]


def _digits(name: str, source: bool, seed: int) -> Cut:
    return digits(name, (1000, 1, 1) if source else (1000, 1, 799), seed, channels=1)


def _objects(name: str, source: bool, seed: int) -> Cut:
    return objects(name, (-1, 1, 1) if source else (-1, 1, ROWS[name] // 3), seed)


def _reviews(name: str, source: bool, seed: int) -> Cut:
    return reviews(name, (998, 1, 1) if source else (666, 1, 333), seed)


BENCHES = {
    "digits": Bench([("MNIST", "USPS")], _digits),
    "objects": Bench(OBJECTS, _objects),
    "reviews": Bench([("books", "kitchen_housewares")], _reviews),
}
SHAPES = {"digits": (1, 16, 16), "objects": (20,), "reviews": (12,)}  # of made-up rows


def _tiny(key: str) -> Bench:
    """One pair of made-up rows of the same kind."""

    def make(name: str, source: bool, seed: int) -> Cut:
        return made_up(name, SHAPES[key], 3, ord(name) - ord("a"))

    return Bench([("a", "b")], make)


def measured(
    names: Sequence[str], pair: Callable[[Cut, Cut], Curves], seed: int, tiny: bool, stages: Callable[[Curves], dict[str, float]]
) -> dict[str, Any]:
    """Arms and details of an experiment: ``pair`` gives curves of a source and a target, ``stages`` figures of them; means over pairs."""
    figures: dict[str, float] = {}
    told: dict[str, Any] = {}
    for key in names:
        bench = _tiny(key) if tiny else BENCHES[key]
        found: dict[str, list[float]] = {}
        for source, target in bench.pairs:
            curves = pair(bench.make(source, True, seed), bench.make(target, False, seed))
            told[f"{key}: {source} to {target}"] = curves
            for arm, figure in stages(curves).items():
                found.setdefault(arm, []).append(figure)
        figures |= {f"{key}: {arm}": float(np.mean(values)) for arm, values in found.items()}
    return {"arms": figures, "details": told}


def last(curves: Curves) -> dict[str, float]:
    """Each arm's figure after its last round."""
    return {arm: curve[-1] for arm, curve in curves.items()}
