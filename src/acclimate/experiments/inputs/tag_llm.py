"""Do tags match prompts and LoRA where they are trained, and win where a domain and a task meet for the first time?

``seedling-xs``, frozen. Domains: SMILES strings (ChEBI-20), software documentation, law. Functions: ATOMS, the number of oxygen atoms of a
SMILES string (single domain, read as a number), and LENGTH, the number of characters of a passage (read as a number), trained on SMILES and
software and asked of law. Arms: tags in three stages (domain tags of 20 vectors from plain text, function tags of 10); a prompt of as many
vectors (30) behind the text, trained on the functions alone; LoRA of rank 4 on queries and values with one vector to read at. A function's
steps are the same in all arms. An error is the mean absolute error over that of always saying the training mean, so 1 is worthless.

What differs from the paper, and why: a million weights instead of 7 billion, 3 domains and numbers that can be counted instead of
proteins and drugs, for time. Such a model cannot follow a label in words, so LENGTH is a number too. Domain tags read training text cut
to 48 tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import datasets
from ...domain import Domain
from ...engines.overlay import library, number_term, predict
from ...engines.staged import Stage, fit
from ...files import digest
from ...method import load
from ...model import Injected, Model
from ...model.overlay import Overlay
from ...model.tags import Tags, norm_matched
from ..fixture import documents
from ..workbench import base_model

CRITERION = """
    Relative error, lower is better. (1) On ATOMS tags are at most 0.05 above the prompt on the mean over seeds; (2) LENGTH of law, which
    no arm was trained on: tags are below the prompt by 0.03 or more on the mean, and below it in at least two of three seeds; (3) there
    tags are below LoRA on the mean. The claim holds if all three do. It is not testable if no arm gets ATOMS below 0.9 on the mean.
"""
METRIC = "mean absolute error over that of the training mean: ATOMS of SMILES, LENGTH of seen domains, LENGTH of law (unseen)"
SEEDS = (0, 1, 2)
NEAR, BELOW, USE = 0.05, 0.03, 0.9
SEEN, UNSEEN = ("smiles", "software"), "legal"
ARMS = ("tags", "prompt", "LoRA")
TASKS = (("ATOMS", "ATOMS", ("smiles",)), ("LENGTH seen", "LENGTH", SEEN), ("LENGTH unseen", "LENGTH", (UNSEEN,)))


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    domain_steps: int = 200
    steps: int = 300
    batch: int = 16
    rows: int = 1500  # of each domain
    test: int = 200
    p_domain: int = 20
    p_function: int = 10
    tokens: int = 48


FULL, TINY = Size(), Size(2, 2, 4, 16, 8, 3, 2, 16)


def run(seed: int, tiny: bool, work: Path) -> dict[str, Any]:
    """The error of every arm on every task."""
    size = TINY if tiny else FULL
    base = base_model(tiny, work)
    texts = {name: _texts(name, size, tiny, seed) for name in (*SEEN, UNSEEN)}
    rows = {"LENGTH": {name: _lengths(split, seed) for name, split in texts.items()}, "ATOMS": {"smiles": _atoms(texts["smiles"])}}
    found = {}
    for arm in ARMS:
        torch.manual_seed(seed)
        asked = _tags(base, texts, rows, size, seed) if arm == "tags" else _direct(arm, base, rows, size, seed)
        for task, function, domains in TASKS:
            learned = [row["label"] for name in ("smiles",) * (function == "ATOMS") or SEEN for row in rows[function][name]["train"]]
            tested = {name: rows[function][name]["test"] for name in domains}
            found[f"{task}: {arm}"] = float(np.mean([_error(asked(function, name, some), some, learned) for name, some in tested.items()]))
    return found


def _texts(name: str, size: Size, tiny: bool, seed: int) -> dict[str, list[str]]:
    """Passages of at most 120 characters by split."""
    if tiny:
        made = documents("software" if name == "smiles" else name, size.rows + size.test)
        return {"train": made[: size.rows], "test": made[size.rows :]}
    domain = datasets.load("chebi20/smiles" if name == "smiles" else f"lm/{name}")
    draw = np.random.default_rng([seed, *name.encode()])
    found = {}
    for split, most in (("train", size.rows), ("test", size.test)):
        whole = domain.texts(split)
        passages: list[str] = []
        while len(passages) < most:
            text = whole[int(draw.integers(len(whole)))]
            start = 0 if name == "smiles" else int(draw.integers(max(1, len(text) - 120)))
            passage = " ".join(text[start : start + 120].split())
            passages += [passage] if len(passage) >= 8 else []
        found[split] = passages
    return found


def _lengths(texts: dict[str, list[str]], seed: int) -> dict[str, list[dict[str, Any]]]:
    """Each passage cut to a length drawn anew, which is its label."""
    draw = np.random.default_rng([seed, 3])
    made = {}
    for split, some in texts.items():
        cut = [text[: int(draw.integers(8, len(text) + 1))].strip() for text in some]
        made[split] = [{"text": text, "label": float(len(text))} for text in cut]
    return made


def _atoms(texts: dict[str, list[str]]) -> dict[str, list[dict[str, Any]]]:
    return {split: [{"text": text, "label": float(text.count("O") + text.count("o"))} for text in some] for split, some in texts.items()}


def _tags(base: Model, texts: dict, rows: dict, size: Size, seed: int) -> Any:
    """Domain tags from text, then function tags on top of them."""
    settings = {"p_domain": size.p_domain, "p_function": size.p_function, "batch": size.batch, "most": size.tokens, "lr": 1e-2}
    plain = {name: Domain.from_texts(name, some["train"], splits=False) for name, some in texts.items()}
    overlay = load("inputs.tag_llm", **settings, steps=size.domain_steps).learn(base, plain, seed=seed)
    functions = {
        "ATOMS": {"smiles": _labelled("smiles", rows["ATOMS"]["smiles"]["train"])},
        "LENGTH": {name: _labelled(name, rows["LENGTH"][name]["train"]) for name in SEEN},
    }
    method = load("inputs.tag_llm", **settings, steps=size.steps, numeric=["ATOMS", "LENGTH"])
    overlay = method.learn(base, tags=library(overlay), functions=functions, seed=seed)
    return lambda function, name, some: predict(overlay, function, method.template(function, name), some, base.tokenizer, most=size.tokens)


def _direct(arm: str, base: Model, rows: dict, size: Size, seed: int) -> Any:
    """One function after the other, without domain tags; LoRA's weights are one adapter for each."""
    made = {}
    for function in ("ATOMS", "LENGTH"):
        net: Any = base.copy(share=True).net
        if arm == "LoRA":
            net = Injected(net).add("a", load("adapters.lora", r=4, target=["attn.q", "attn.v"]), seed=seed)
        tags, table = Tags.of(net), net.get_input_embeddings().weight
        count = 1 if arm == "LoRA" else size.p_domain + size.p_function
        tags.add(function, "function", count, norm_matched(table), numeric=True, head=table.float().mean(0))
        overlay = Overlay(net, tags)
        template = f"{{text}}<{function}>"
        terms = {}
        learned = ["smiles"] if function == "ATOMS" else list(SEEN)
        every = np.array([row["label"] for name in learned for row in rows[function][name]["train"]])
        tags.scales[function] = (float(every.mean()), float(every.std()) or 1.0)
        for name in learned:
            some = rows[function][name]["train"]
            read = [tags.encode(template, row, base.tokenizer, end=False, most=size.tokens) for row in some]
            labels = [row["label"] for row in some]
            terms[name] = number_term(overlay, function, read, labels, weight=100 / len(learned), size=size.batch, seed=seed)
        rates = {tags.weights(function): 1e-2} | ({r"\.adapters\.": 3e-3} if arm == "LoRA" else {})
        fit(overlay, terms, rates, Stage(steps=size.steps, weight_decay=0.0, seed=seed))
        made[function] = (overlay, template)
    return lambda function, name, some: predict(made[function][0], function, made[function][1], some, base.tokenizer, most=size.tokens)


def _labelled(name: str, rows: Sequence[dict[str, Any]]) -> Domain:
    from datasets import Dataset

    columns = ({"text": row["text"], "label": str(row["label"])} for row in rows)
    made = [{"id": digest([i, row]), "origin": f"{name}:{i}", **row} for i, row in enumerate(columns)]
    return Domain(name, "labelled", {"train": Dataset.from_list(made)})


def _error(found: np.ndarray, rows: Sequence[dict[str, Any]], learned: Sequence[float]) -> float:
    truth = np.array([row["label"] for row in rows])
    return float(np.abs(found - truth).mean() / max(np.abs(truth - np.mean(learned)).mean(), 1e-9))


def verdict(figures: dict[str, list[float]]) -> str:
    """Whether all clauses are met, where the model can learn to count at all."""
    if min(np.mean(figures[f"ATOMS: {arm}"]) for arm in ARMS) > USE:
        return "not_testable"
    return "holds" if all(met for _, met in clauses(figures)) else "does_not_hold"


def clauses(figures: dict[str, list[float]]) -> list[tuple[str, bool]]:
    """What the figures say to each clause of the criterion, and whether it is met."""

    def less(task: str, than: str) -> np.ndarray:
        return np.array(figures[f"{task}: {than}"]) - np.array(figures[f"{task}: tags"])

    atoms, unseen, lora = less("ATOMS", "prompt"), less("LENGTH unseen", "prompt"), less("LENGTH unseen", "LoRA")
    better = int((unseen > 0).sum())
    return [
        (f"on ATOMS tags are {-atoms.mean():+.3f} from the prompt", bool(-atoms.mean() <= NEAR)),
        (
            f"on the unseen domain they are {-unseen.mean():+.3f} from the prompt, below it in {better} of {len(unseen)} seeds",
            bool(unseen.mean() >= BELOW and better >= 2 / 3 * len(unseen)),
        ),
        (f"there they are {-lora.mean():+.3f} from LoRA", bool(lora.mean() > 0)),
    ]


def why(figures: dict[str, list[float]]) -> str:
    """The figure behind each clause."""
    return "; ".join(f"({number}) {said}: {'met' if met else 'not met'}" for number, (said, met) in enumerate(clauses(figures), 1))
