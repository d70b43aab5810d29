"""All merge methods side by side on the same four experts: bits per byte in their domains and on general text, and the time of a merge.

The experts are those of the shared fixture (``seedling-xs`` tuned on law, medicine, finance, software). Every method has its default
settings, which are the papers'; random ones are merged with three seeds. Run it with ``python -m acclimate.experiments.merging_methods``;
``--record`` keeps the result in bench/results, from which ``make docs`` writes docs/merging.md.
"""

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import catalogue, datasets
from ..domain import Domain
from ..engines.candidates import merged
from ..engines.score import bits_per_byte
from ..errors import AcclimateError
from ..files import write_json
from ..kinds import Merge
from ..measure import limited
from ..method import find, load, names
from ..runs import provenance
from .fixture import documents, fixture

if TYPE_CHECKING:
    from ..model import Model

DOMAINS, GENERAL = ("legal", "biomedical", "finance", "software"), "wikipedia"
SEEDS = (0, 1, 2)


def side_by_side(tiny: bool = False, record: bool = False) -> dict[str, Any]:
    """Merge, measure, and put in order of the mean over the domains, best first."""
    root = catalogue.checkout()
    if record and (tiny or root is None):
        raise AcclimateError("a result is recorded from a full run in a checkout of the project; leave out --record")
    shared = fixture(tiny)
    experts = [shared["experts"][name] for name in DOMAINS]
    texts = {name: limited(_domain(name, tiny), "test", 300 if tiny else 40_000) for name in (*DOMAINS, GENERAL)}
    rows = [_row("(base)", [shared["base"]], texts, []), _own(experts, texts)]
    for name in names("merging"):
        method = load(name)
        if not isinstance(method, Merge) or not method.takes[0] <= len(experts) <= method.takes[1]:
            continue
        base = shared["base"] if "base" in find(name).asked() else None
        models, seconds = [], []
        for seed in SEEDS if "generator" in method.needs() else SEEDS[:1]:
            begun = time.perf_counter()
            models.append(merged(method, base, experts, seed=seed))
            seconds.append(time.perf_counter() - begun)
        rows.append(_row(name, models, texts, seconds))
    rows[2:] = sorted(rows[2:], key=lambda row: row["domains"])
    found = {"rows": rows, "experts": list(DOMAINS), "general": GENERAL, "provenance": provenance(0)}
    if record and root is not None:
        write_json(root / "bench" / "results" / "merging_methods.json", found)
    return found


def _row(name: str, models: "list[Model]", texts: dict[str, list[str]], seconds: list[float]) -> dict[str, Any]:
    bits = [{key: float(bits_per_byte(model, some).value) for key, some in texts.items()} for model in models]
    each = {key: float(np.mean([row[key] for row in bits])) for key in texts}
    domains = [float(np.mean([row[key] for key in DOMAINS])) for row in bits]
    return {
        "name": name,
        "domains": float(np.mean(domains)),
        "spread": float(np.ptp(domains)),
        "general": each[GENERAL],
        "each": each,
        "seconds": float(np.mean(seconds)) if seconds else None,
        "merges": len(models),
    }


def _own(experts: "list[Model]", texts: dict[str, list[str]]) -> dict[str, Any]:
    """Each expert on its own domain, and the mean of all experts on general text."""
    each = {name: float(bits_per_byte(model, texts[name]).value) for name, model in zip(DOMAINS, experts, strict=True)}
    general = float(np.mean([bits_per_byte(model, texts[GENERAL]).value for model in experts]))
    mean = float(np.mean(list(each.values())))
    own = {"name": "(each expert on its own domain)", "domains": mean, "spread": 0.0, "general": general, "each": each}
    return {**own, "seconds": None, "merges": len(experts)}


def _domain(name: str, tiny: bool) -> Domain:
    return Domain.from_texts(name, documents(name, 60)) if tiny else datasets.load(f"lm/{name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a run of seconds that proves only that the code runs")
    parser.add_argument("--record", action="store_true", help="write bench/results/merging_methods.json")
    print(json.dumps(side_by_side(**vars(parser.parse_args())), indent=2))
