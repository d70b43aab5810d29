"""Are merge coefficients learned per column as good as hand-set merges and an evolutionary search, and cheaper than the search?

Three experts that the experiments share (law, medicine, software; tuned from ``seedling-xs``) become one model: by plain average, TIES,
DARE-TIES (both at their papers' defaults), CMA-ES over weights and shares per layer group (100 trials), and DAM. DAM learns on about
0.15M tokens of each domain's training text, drawn anew per seed, 300 steps of 2 rows per domain; the search scores its trials on
validation text; all are measured on test text. Seconds of DAM are of everything, its teachers' view of the text included; those of the
search are of scoring its trials alone.

What differs from the paper, and why: models of one million weights instead of 7B, raw text instead of instructions, loss instead of
benchmarks, for time. The rate is 5e-3 instead of 1e-3, so that rate times steps is what the authors' 1,729 steps come to. The teachers'
50 likeliest tokens are kept instead of their whole distribution. The experts are the same for all seeds; what the seed draws is text,
order, and what DARE and the search draw.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import datasets
from ...domain import Domain
from ...engines.candidates import merged
from ...files import read_json, write_json
from ...method import load
from ..fixture import documents, fixture, tiny_model
from ..workbench import Workbench, nats_per_token

if TYPE_CHECKING:
    from ...model import Model

CRITERION = """
    Loss is the mean over the three domains, in nats per token. (1) DAM is below the best of average, TIES, DARE-TIES and evolution by
    0.02 or more on the mean over seeds, and below it in every seed; (2) in every seed DAM takes less time than evolution's 100 trials;
    (3) the average is at most 0.1 above the best of TIES, DARE-TIES and evolution on the mean. The claim holds if all three do.
"""
METRIC = "nats per token on test text, mean over three domains, lower is better; seconds of DAM and of evolution"
SEEDS = (0, 1, 2)
DOMAINS = ("legal", "biomedical", "software")
OTHERS = ("average", "TIES", "DARE-TIES", "evolution")
BELOW, STRONG = 0.02, 0.1  # nats: the numbers of the criterion


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    train_bytes: int = 550_000  # of each domain
    steps: int = 300
    batch: int = 2  # rows per step and domain
    row_tokens: int = 256
    trials: int = 100
    search_bytes: int = 30_000  # of each domain's validation text, per trial
    test_bytes: int = 60_000


FULL, TINY = Size(), Size(4_000, 2, 1, 32, 3, 300, 500)


def run(seed: int, tiny: bool, work: Path) -> dict[str, Any]:
    """Every arm's loss, and what DAM and the search took; arms that lie in ``work`` already are not made again."""
    size = TINY if tiny else FULL
    base, experts = _models(tiny)
    domains = {name: _domain(name, tiny) for name in DOMAINS}
    tools = Workbench("dam", seed, work)
    taught = {name: _some(domain, size.train_bytes, seed) for name, domain in domains.items()}

    def plain(method: str, **settings: Any) -> "Callable[[], Model]":
        made = load(f"merging.{method}", **settings)
        return lambda: merged(made, base if "base" in made.asked() else None, experts, seed=seed)

    def searched() -> "Model":
        method = load("merging.evolutionary", space="ps", trials=size.trials, search_bytes=size.search_bytes)
        return method.run(tools, start=base, tuned=experts, **domains)["ps"]

    def learned() -> "Model":
        given = {"steps": size.steps, "batch": size.batch, "row_tokens": size.row_tokens, "lr": 5e-3}
        return load("merging.dam", **given).run(tools, start=base, tuned=experts, **taught)["merged"]

    made: dict[str, Callable[[], Model]] = {
        "base": lambda: base,
        "average": plain("linear"),
        "TIES": plain("ties"),
        "DARE-TIES": plain("dare"),
        "evolution": searched,
        "DAM": learned,
    }
    found = {arm: _arm(work / f"{arm}.json", tools, make, domains, size) for arm, make in made.items()}
    own = {name: nats_per_token(expert, domains[name], size.test_bytes) for name, expert in zip(DOMAINS, experts, strict=True)}
    arms = {arm: float(np.mean(list(row["loss"].values()))) for arm, row in found.items()}
    arms |= {"each expert on its own": float(np.mean(list(own.values())))}
    arms |= {"seconds of DAM": found["DAM"]["seconds"], "seconds of evolution": tools.notes["dam.ps"]["seconds"]}
    return {"arms": arms, "details": {"by domain": {arm: row["loss"] for arm, row in found.items()} | {"own": own}, "notes": tools.notes}}


def _models(tiny: bool) -> "tuple[Model, list[Model]]":
    if not tiny:
        shared = fixture()
        return shared["base"], [shared["experts"][name] for name in DOMAINS]
    import torch

    base, experts = tiny_model("causal"), []
    for seed, name in enumerate(DOMAINS):
        expert = base.copy(name)
        with torch.no_grad():
            for weight in expert.net.parameters():
                weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
        experts.append(expert)
    return base, experts


def _domain(name: str, tiny: bool) -> Domain:
    return Domain.from_texts(name, documents(name, 60)) if tiny else datasets.load(f"lm/{name}")


def _some(domain: Domain, most: int, seed: int) -> Domain:
    """Training documents drawn by the seed, up to ``most`` bytes."""
    texts, taken = domain.texts("train"), []
    for i in np.random.default_rng([seed, 1]).permutation(len(texts)):
        taken.append(texts[i])
        most -= len(texts[i].encode())
        if most <= 0:
            break
    return Domain.from_texts(domain.name, taken, splits=False)


def _arm(path: Path, tools: Workbench, make: "Callable[[], Model]", domains: dict[str, Domain], size: Size) -> dict[str, Any]:
    """Loss by domain and seconds of one arm, kept in ``path``."""
    if not path.is_file():
        shutil.rmtree(tools.tools.run.folder, ignore_errors=True)  # what was begun is begun anew, so that seconds are of the whole
        tools.tools.run.made.clear()
        begun = time.perf_counter()
        model = make()
        seconds = time.perf_counter() - begun
        loss = {name: nats_per_token(model, domain, size.test_bytes) for name, domain in domains.items()}
        write_json(path, {"loss": loss, "seconds": seconds, "notes": tools.notes})
    found = read_json(path)
    tools.notes |= found["notes"]
    return found


def clauses(figures: dict[str, list[float]]) -> list[tuple[str, bool]]:
    """What the figures say to each clause of the criterion, and whether it is met."""
    best = np.min([figures[arm] for arm in OTHERS], axis=0)  # [seed]
    gap = best - np.array(figures["DAM"])
    faster = np.divide(figures["seconds of evolution"], figures["seconds of DAM"])
    behind = np.mean(np.array(figures["average"]) - np.min([figures[arm] for arm in OTHERS[1:]], axis=0))
    return [
        (f"DAM is {gap.mean():+.3f} nats below the best other, at least {gap.min():+.3f}", bool(gap.mean() >= BELOW and (gap > 0).all())),
        (f"evolution takes {faster.min():.2f} to {faster.max():.2f} times as long as DAM", bool((faster > 1).all())),
        (f"the average is {behind:+.3f} nats above the best of TIES, DARE-TIES and evolution", bool(behind <= STRONG)),
    ]


def verdict(figures: dict[str, list[float]]) -> str:
    """Whether all clauses of the criterion are met."""
    return "holds" if all(met for _, met in clauses(figures)) else "does_not_hold"


def why(figures: dict[str, list[float]]) -> str:
    """The figure behind each clause."""
    return "; ".join(f"({number}) {said}: {'met' if met else 'not met'}" for number, (said, met) in enumerate(clauses(figures), 1))
