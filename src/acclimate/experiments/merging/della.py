"""Does dropping by magnitude (DELLA) merge experts better than dropping at random (DARE) or keeping the largest (TIES)?

Four experts of ``seedling-xs`` (law, medicine, finance, software; whole weights, 150 steps each: the shared fixture) are merged by a plain
average, task arithmetic without pruning, and, for shares dropped p of 0.3, 0.5, 0.7 and 0.9, by TIES, DARE with TIES' signs, and DELLA.
All elect signs by the sum and take the disjoint mean at scale 1, so they differ in what they drop alone. The seed draws what is dropped,
so TIES and both baselines give the same figure for every seed.

What differs from the paper, and why: language modelling on four domains instead of three tasks of 13B models, because a small model can be
measured on nothing else; scale 1 for all instead of a scale tuned for each; TIES ranks each tensor by itself, as DELLA does each row.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import datasets
from ...domain import Domain
from ...engines.candidates import merged
from ...engines.score import bits_per_byte
from ...measure import limited
from ...method import load
from ..fixture import documents, fixture

if TYPE_CHECKING:
    from ...kinds import Merge
    from ...model import Model

CRITERION = """
    On the mean over four domains, lower is better: (1) at p = 0.3 the three pruning methods lie within 2 % of one another; (2) at p = 0.9
    DELLA is below DARE in every seed; (3) DELLA's best p is at or below the best p of DARE and of TIES, each on the mean over seeds;
    (4) DELLA's best p is below the average and below task arithmetic without pruning. The claim holds if all four do.
"""
METRIC = "bits per byte on held-out text, mean over the four domains of the experts, lower is better"
SEEDS = (0, 1, 2)
DOMAINS, GENERAL = ("legal", "biomedical", "finance", "software"), "wikipedia"
DROPS = (0.3, 0.5, 0.7, 0.9)
PRUNED = ("TIES", "DARE", "DELLA")


def run(seed: int, tiny: bool, work: Path) -> dict[str, Any]:
    """Mean bits per byte of every merge; each domain and the general text in the details."""
    shared = fixture(tiny)
    models = [shared["experts"][name] for name in DOMAINS]
    texts = {name: limited(_domain(name, tiny), "test", 300 if tiny else 40_000) for name in (*DOMAINS, GENERAL)}
    found: dict[str, dict[str, float]] = {"base": _bits(shared["base"], texts)}
    for name, method in _methods((DROPS[0], DROPS[-1]) if tiny else DROPS).items():
        base = shared["base"] if "base" in method.asked() else None
        found[name] = _bits(merged(method, base, models, seed=seed), texts)
    arms = {name: float(np.mean([row[domain] for domain in DOMAINS])) for name, row in found.items()}
    return {"arms": arms, "details": found}


def _methods(drops: tuple[float, ...]) -> "dict[str, Merge]":
    made = {"average": load("merging.linear"), "task arithmetic": load("merging.task_arithmetic")}
    for drop in drops:
        made |= {
            f"TIES p={drop}": load("merging.ties", keep=[round(1 - drop, 6)], scope="tensor"),
            f"DARE p={drop}": load("merging.dare", keep=[round(1 - drop, 6)]),
            f"DELLA p={drop}": load("merging.della", drop=[drop], scale=1.0),
        }
    return made


def _domain(name: str, tiny: bool) -> Domain:
    return Domain.from_texts(name, documents(name, 60)) if tiny else datasets.load(f"lm/{name}")


def _bits(model: "Model", texts: dict[str, list[str]]) -> dict[str, float]:
    return {name: float(bits_per_byte(model, some).value) for name, some in texts.items()}


def _best(figures: dict[str, list[float]], method: str) -> float:
    return min(float(np.mean(figures[name])) for name in figures if name.startswith(f"{method} p="))


def verdict(figures: dict[str, list[float]]) -> str:
    """The four clauses of the criterion."""
    low = [float(np.mean(figures[f"{method} p=0.3"])) for method in PRUNED]
    close = max(low) <= 1.02 * min(low)
    strong = all(d < r for d, r in zip(figures["DELLA p=0.9"], figures["DARE p=0.9"], strict=True))
    best = _best(figures, "DELLA")
    leads = best <= min(_best(figures, "DARE"), _best(figures, "TIES"))
    pays = best < min(float(np.mean(figures[name])) for name in ("average", "task arithmetic"))
    return "holds" if close and strong and leads and pays else "does_not_hold"


def why(figures: dict[str, list[float]]) -> str:
    """The figures behind each clause."""
    best = ", ".join(f"{method} {_best(figures, method):.3f}" for method in PRUNED)
    plain = ", ".join(f"{name} {float(np.mean(figures[name])):.3f}" for name in ("average", "task arithmetic", "base"))
    high = ", ".join(f"{method} {float(np.mean(figures[f'{method} p=0.9'])):.3f}" for method in PRUNED)
    return f"best over p: {best}; at p = 0.9: {high}; without pruning: {plain}"
