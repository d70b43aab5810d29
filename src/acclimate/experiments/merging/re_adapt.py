"""Can a base be trained on raw domain text and given its instructions back, without the harm of training the instructed model itself?

``seedling-xs`` is the base; its instruct sibling is tuned (all weights) on prompts and answers of many tasks (T0 templates), the answers
counting alone. The domain is law (acts of Canada), raw text. Arms: the base; the instruct model untouched; the instruct model trained on
law with DoRA; RE-Adapt, whose alpha and beta are chosen from 0.25, 0.5, 0.75 and 1 by validation text of both kinds; LoRE-Adapt (tau 0.5)
at the same scales; and RE-Adapt at the paper's 0.5 and 0.5 and at 1 and 1. The domain adapter is the same for all of them.

What differs from the paper, and why: a million weights instead of 7 billion, and loss instead of closed-book answers, which such a model
cannot give. Rank 16 instead of 64 for a width of 128. Of T0's prompts the last 600 characters are
read, of its answers the first 300, without the end mark that the collection writes as text.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import datasets
from ...domain import Domain
from ...files import digest
from ...measure import limited
from ...method import load
from ..fixture import documents
from ..workbench import Workbench, base_model

if TYPE_CHECKING:
    from ...model import Model

CRITERION = """
    Nats per token on held-out text; "trained" is the instruct model trained on law. Law: gain is how far the loss falls below the instruct
    model's. Answers: rise is how far it is above the instruct model's. (1) RE-Adapt has a lower loss on answers than trained, on the mean
    and in every seed; (2) it keeps at least half of trained's gain on law, on the mean; (3) its rise on answers is at most 0.1 on the
    mean; (4) LoRE-Adapt is at most 0.1 above RE-Adapt on law and on answers, on the mean. The claim holds if all four do. It is not
    testable if trained's rise on answers is below 0.02 on the mean, or the instruct model is not 0.1 better on answers than the base.
"""
METRIC = "nats per token, lower is better: law, and answers given their prompts (T0 templates)"
SEEDS = (0, 1, 2)
DOMAIN, INSTRUCTIONS = "lm/legal", "instruction/t0_templates"
GRID = [0.25, 0.5, 0.75, 1.0]
SHARE, RISE, APART, HARM, USE = 0.5, 0.1, 0.1, 0.02, 0.1  # the numbers of the criterion, in its order


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    sft_steps: int = 120
    steps: int = 100  # on law
    batch_tokens: int = 4096
    row_tokens: int = 256
    r: int = 16
    test_bytes: int = 60_000
    answers: int = 200
    search_bytes: int = 20_000


FULL, TINY = Size(), Size(2, 2, 128, 32, 2, 500, 4, 300)


class _Bench(Workbench):
    """Scores text and answers alike in nats per token, as the experiment does."""

    size = FULL

    def bits(self, model: "Model", domain: Domain, split: str = "validation", most: int = 0) -> float:
        if domain.form == "messages":
            return answers(model, domain, split, self.size.answers // 2)
        return _loss(model, domain, split, self.size.search_bytes)


def run(seed: int, tiny: bool, work: Path) -> dict[str, Any]:
    """Loss on law and on answers of every arm."""
    size = TINY if tiny else FULL
    base = base_model(tiny, work)
    law = Domain.from_texts("law", documents("legal", 60)) if tiny else datasets.load(DOMAIN)
    chats = _chats(tiny)
    bench = _Bench("re_adapt", seed, work, batch_tokens=size.batch_tokens, row_tokens=size.row_tokens)
    bench.size = size
    models = {"base": base, "instruct": bench.train("instruct", base, load("objectives.sft"), chats, steps=size.sft_steps, lr=1e-3)}
    bench.named("law", steps=size.steps)
    shared = {"r": size.r, "lora_alpha": 2.0 * size.r, "lr": 3e-3}
    adapter = load("adapters.dora", r=size.r, alpha=shared["lora_alpha"])
    models["trained"] = bench.train("trained", models["instruct"], load("objectives.causal_lm"), law, adapter=adapter, lr=shared["lr"])
    told = {}

    def readapted(arm: str, scoring: dict[str, Domain], **settings: Any) -> dict[str, float]:
        method = load("merging.re_adapt", **shared, **settings)
        models[arm] = method.run(bench, start=base, tuned=[models["instruct"]], corpus=law, **scoring)["readapted"]
        told[arm], bench.notes = bench.notes, {}
        return told[arm]["law.scales"]

    chosen = readapted("RE-Adapt", {"law": law, "answers": chats}, grid=GRID)
    readapted("LoRE-Adapt", {}, lore=True, tau=0.5, **chosen)
    readapted("RE-Adapt 0.5", {}, alpha=0.5, beta=0.5)
    readapted("RE-Adapt 1", {}, alpha=1.0, beta=1.0)
    arms = {}
    for arm, model in models.items():
        arms[f"law: {arm}"] = _loss(model, law, "test", size.test_bytes)
        arms[f"answers: {arm}"] = answers(model, chats, "test", size.answers)
    return {"arms": arms, "details": told}


def _chats(tiny: bool) -> Domain:
    """Prompts with their answers, without the end mark; prompts that would fill the rows are cut from the left."""
    if tiny:
        texts = documents("fiction", 40)
        rows = [{"messages": [{"role": "user", "content": text[:50]}, {"role": "assistant", "content": text[50:]}]} for text in texts]
        return _domain("chats", rows[:24], rows[24:32], rows[32:])
    domain = Domain.load("instructions", str(datasets.locate(INSTRUCTIONS)))
    return _domain("instructions", *([_short(row["messages"]) for row in domain.rows(split)] for split in ("train", "validation", "test")))


def _short(messages: list[dict]) -> dict[str, Any]:
    prompt, answer = messages[0]["content"][-600:], messages[1]["content"].removesuffix("<|endoftext|>").strip()[:300]
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def _domain(name: str, *splits: list[dict]) -> Domain:
    from datasets import Dataset

    made = {}
    for split, rows in zip(("train", "validation", "test"), splits, strict=True):
        rows = [row for row in rows if row["messages"][1]["content"]]
        made[split] = Dataset.from_list([{"id": digest(row), "origin": f"{name}/{split}:{i}", **row} for i, row in enumerate(rows, 1)])
    return Domain(name, "messages", made)


def _loss(model: "Model", domain: Domain, split: str, most: int) -> float:
    from ...engines.score import bits_per_byte

    found = bits_per_byte(model, limited(domain, split, most))
    return float(found.nats.sum() / found.tokens.sum())


def answers(model: "Model", chats: Domain, split: str, most: int) -> float:
    """Nats per token of the answers, given their prompts."""
    from ...engines.score import option_logps, prompt_of

    rows = [row["messages"] for row in chats.rows(split).select(range(min(most, len(chats.rows(split)))))]
    said = [row[-1]["content"] for row in rows]
    logps = option_logps(model, [prompt_of(row[:-1], model) for row in rows], [[text] for text in said])
    tokens = sum(len(model.tokenizer(text, add_special_tokens=False).input_ids) for text in said)
    return -float(sum(found[0] for found in logps)) / tokens


def clauses(figures: dict[str, list[float]]) -> list[tuple[str, bool]]:
    """What the figures say to each clause of the criterion, and whether it is met."""

    def less(what: str, arm: str, than: str) -> np.ndarray:
        return np.array(figures[f"{what}: {than}"]) - np.array(figures[f"{what}: {arm}"])

    better = less("answers", "RE-Adapt", "trained")
    kept = less("law", "RE-Adapt", "instruct").mean() / less("law", "trained", "instruct").mean()
    rise = less("answers", "instruct", "RE-Adapt").mean()
    low = [less(what, "RE-Adapt", "LoRE-Adapt").mean() for what in ("law", "answers")]
    return [
        (
            f"RE-Adapt's answers are {better.mean():.3f} nats below trained's, better in {(better > 0).sum()} of {len(better)} seeds",
            bool((better > 0).all()),
        ),
        (f"it keeps {100 * kept:.0f} % of trained's gain on law", bool(kept >= SHARE)),
        (f"its answers are {rise:+.3f} nats from the instruct model's", bool(rise <= RISE)),
        (f"LoRE-Adapt is {low[0]:+.3f} nats from RE-Adapt on law and {low[1]:+.3f} on answers", bool(max(low) <= APART)),
    ]


def verdict(figures: dict[str, list[float]]) -> str:
    """Whether all clauses are met, where training the instruct model does harm and instructions are of use."""
    mean = {arm: np.mean(values) for arm, values in figures.items()}
    harm, use = mean["answers: trained"] - mean["answers: instruct"], mean["answers: base"] - mean["answers: instruct"]
    if harm < HARM or use < USE:
        return "not_testable"
    return "holds" if all(met for _, met in clauses(figures)) else "does_not_hold"


def why(figures: dict[str, list[float]]) -> str:
    """The figure behind each clause."""
    return "; ".join(f"({number}) {said}: {'met' if met else 'not met'}" for number, (said, met) in enumerate(clauses(figures), 1))
