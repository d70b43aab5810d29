"""Does pretraining on domains in turn beat learning each apart, and what do the order of domains and the size of the model change?

``seedling-xs`` (1M weights) and ``seedling`` (4.6M), both pretrained on the same text, go on with ten domains that neither has read: law,
minutes of a central bank, PubMed and computer science abstracts, Python's documentation, products, recipes, news, docstrings of scipy,
licences. Orders: drawn by the seed, and a chain in which each domain is the nearest to the one before it by mean MiniLM vectors of 20
texts, from a first one that the seed draws. Each domain is also learned alone (DAPT). After each domain every one of them is measured,
and Wikipedia, which both models were pretrained on. The details give the whole tables, transfer to the three domains before, forward
transfer, ranks and the orders.

What differs from the paper, and why: 20,000 bytes of a domain instead of 40 million tokens on average, some 4,000 bytes to test on, ten
domains instead of 159, two sizes from 1M to 4.6M instead of six from 0.1B to 7B, a higher rate (1e-3) and smaller steps (512 tokens), for
time. A third model of 15M weights does not fit: none is at hand, and to pretrain one takes hours. Nats per token instead of perplexity in
the criterion, so that the one domain with the highest perplexity does not decide. No downstream tasks, which models of this size cannot
answer. About four and a half minutes per seed on one core, after the texts were encoded once (half a minute).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import datasets
from ...domain import Domain
from ...method import load
from ..fixture import documents, tiny_model
from ..workbench import Workbench, base_model, kept_from_collection

CRITERION = """
    Nats per token on test text, mean over the ten domains and the seeds; learned: right after a domain, last: after all ten. (1) Learned in
    turn is below DAPT in both sizes, mean of both orders; (2) the larger model is below the smaller one, learned and last, in both
    orders; (3) the smaller model learns more (start - learned) and forgets more (mean rise above 0 from learned to last, over all domains
    but the last), mean of both orders; (4) last is lower with the random order than with the similar one, mean of both sizes; (5) learned
    is lower with the similar order, mean of both sizes. The claim holds if all five do. It is not testable if DAPT is less than 0.1 below
    the start in either size.
"""
METRIC = "nats per token on test text, mean over ten domains, lower is better; forgotten: mean rise above 0"
SEEDS = (0, 1, 2)
ENOUGH = 0.1  # the number of the criterion
SIZES = {"1M": "seedling-xs", "5M": "seedling"}
ORDERS = ("random", "similar")
SETS = (
    "lm/legal", "lm/finance", "lm/biomedical", "lm/cs_abstracts", "lm/software", "lm/ecommerce", "lm/cooking", "lm/news",
    "python_docs/scipy", "legal_notices",
)  # fmt: skip
GENERAL = "lm/wikipedia"


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    domain_bytes: int = 20_000
    test_bytes: int = 4000
    embed_samples: int = 20
    batch_tokens: int = 512
    row_tokens: int = 256
    recent: int = 3
    lr: float = 1e-3


FULL, TINY = Size(), Size(300, 200, 2, 64, 32, 1)


def run(seed: int, tiny: bool, work: Path) -> dict[str, Any]:
    """Both orders with both sizes."""
    from ...model import Model

    size = TINY if tiny else FULL
    domains, general = _domains(tiny)
    first = list(domains)[int(np.random.default_rng([seed, 5]).integers(len(domains)))]
    given = {**vars(size), "first": first, "encoder": _encoder(tiny, work)}
    arms: dict[str, float] = {}
    details: dict[str, Any] = {}
    for name, ref in SIZES.items():
        start = base_model(tiny, work) if tiny else Model.load(ref)
        bench = Workbench("cpt_benchmark", seed, work / name)
        for order in ORDERS:
            method = load("continual.cpt_benchmark", **given, order=order, alone=order == ORDERS[0])
            with kept_from_collection(tiny):
                method.run(bench.named(order), start=start, domains=domains, general=general)
            told = bench.notes[f"{order}.matrix"]
            arms |= figures_of(told, name, order, size.recent)
            details[f"{name}, {order}"] = told
    return {"arms": arms, "details": details}


def figures_of(told: Mapping[str, Any], name: str, order: str, recent: int) -> dict[str, float]:
    """The arms of one run of the benchmark, from its table of perplexities."""
    from ...parts.pretraining import transfers

    nats = np.log(told["perplexity"])
    count = len(told["order"])
    found = transfers(nats[:, :count], recent)
    figures = {part: float(np.mean(found[part])) for part in ("learned", "last", "forward", "recent")}
    figures |= {"forgotten": found["forgetting"], "general text, last": float(nats[-1, count])}
    own = {f"{name}, {order}: {part}": value for part, value in figures.items()}
    if "alone" in told:
        start = {"start": float(np.mean(found["start"])), "general text, start": float(nats[0, count])}
        own |= {f"{name}: {part}": value for part, value in start.items()}
        own[f"{name}: DAPT"] = float(np.mean(np.log(told["alone"])))
    return own


def clauses(figures: dict[str, list[float]]) -> list[tuple[str, bool]]:
    """What the figures say to each clause of the criterion, and whether it is met."""
    mean = {arm: float(np.mean(values)) for arm, values in figures.items()}

    def over(part: str, sizes: Any = tuple(SIZES), orders: Any = ORDERS) -> float:
        return float(np.mean([mean[f"{size}, {order}: {part}"] for size in sizes for order in orders]))

    small, large = SIZES
    turn = {size: over("learned", [size]) - mean[f"{size}: DAPT"] for size in SIZES}
    larger = [over(part, [large], [order]) - over(part, [small], [order]) for part in ("learned", "last") for order in ORDERS]
    learned = {size: mean[f"{size}: start"] - over("learned", [size]) for size in SIZES}
    lost = {size: over("forgotten", [size]) for size in SIZES}
    last, right_after = (over(part, orders=["random"]) - over(part, orders=["similar"]) for part in ("last", "learned"))
    return [
        ("learned in turn - DAPT " + ", ".join(f"{value:+.3f} ({size})" for size, value in turn.items()), max(turn.values()) < 0),
        (f"larger - smaller from {min(larger):+.3f} to {max(larger):+.3f}", max(larger) < 0),
        (
            f"smaller - larger {learned[small] - learned[large]:+.3f} learned, {lost[small] - lost[large]:+.3f} forgotten",
            learned[small] > learned[large] and lost[small] > lost[large],
        ),
        (f"random - similar {last:+.3f} at the end", last < 0),
        (f"random - similar {right_after:+.3f} right after learning", right_after > 0),
    ]


def testable(figures: dict[str, list[float]]) -> bool:
    """Whether the domains teach both models anything."""
    return all(float(np.mean(figures[f"{size}: start"]) - np.mean(figures[f"{size}: DAPT"])) >= ENOUGH for size in SIZES)


def _domains(tiny: bool) -> tuple[dict[str, Domain], Domain]:
    if tiny:
        made = {name: Domain.from_texts(name, documents(name, 60)) for name in ("legal", "finance", "wikipedia")}
        general = made.pop("wikipedia")
        return made, general
    return {name: datasets.load(name) for name in SETS}, datasets.load(GENERAL)


def _encoder(tiny: bool, work: Path) -> str:
    if not tiny:
        return "minilm"
    from transformers import BertModel

    from ...model import Model

    if not (work / "encoder" / "config.json").is_file():
        like = tiny_model("masked")
        Model("encoder", BertModel(like.net.config).eval(), like.tokenizer, "encoder", "encoder").save(work / "encoder")
    return str(work / "encoder")
