"""ParaRel: facts of Wikidata, each as head, relation and tail, and as a sentence.

Elazar et al. 2021, https://arxiv.org/abs/2102.01017; github.com/yanaiela/pararel, MIT; facts from T-REx as LAMA cut them. One
sub-domain per relation, named by Wikidata's number (P106: occupation). Columns ``text`` (the relation's first pattern, filled),
``label`` (the tail), ``head``, ``relation``, ``pattern``. Divided by a hash of the head: 80 % train, 10 % validation, 10 % test.

What for: a small knowledge graph with sentences, facts to edit, entity typing.

Traps. Most heads stand in one fact alone. Entities are known by their label, so namesakes are one. Tails are single words of a masked
model's vocabulary by the choice of LAMA. Relations without patterns are left out.
"""

import json
from functools import cache
from typing import Any

from ..domain import Domain
from ..files import digest
from . import known_domain, locate
from ._texts import table

RELATIONS = (
    "P19", "P27", "P36", "P39", "P47", "P101", "P103", "P106", "P127", "P131", "P136", "P138", "P140", "P159", "P176", "P178",
    "P190", "P264", "P276", "P279", "P361", "P364", "P407", "P413", "P449", "P495", "P530", "P937", "P1001", "P1303", "P1412",
)  # fmt: skip
CARD: dict[str, Any] = {
    "source": "github.com/yanaiela/pararel, data",
    "licence": "MIT",
    "size": "31 relations, some 23,000 facts, 3 MB",
    "columns": {"text": "a sentence", "label": "the tail", "head": "the head", "relation": "P106", "pattern": "[X] is a [Y] by profession"},
    "hub": None,
}


def domains() -> list[str]:
    """The relations."""
    return list(RELATIONS)


@cache
def _lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in locate(path).read_text(encoding="utf-8").split("\n") if line.strip()]


def load(domain: str) -> Domain:
    """The facts of one relation."""
    known_domain("pararel", domain, RELATIONS)
    pattern = _lines(f"pararel/pattern_data/graphs_json/{domain}.jsonl")[0]["pattern"].strip()
    path = f"pararel/trex_lms_vocab/{domain}.jsonl"
    splits: dict[str, list[tuple[str, dict[str, Any]]]] = {"train": [], "validation": [], "test": []}
    seen = set()
    for number, row in enumerate(_lines(path), 1):
        head, tail = row["sub_label"], row["obj_label"]
        if (head, tail) in seen:
            continue
        seen.add((head, tail))
        place = int(digest(head), 16) % 10
        text = pattern.replace("[X]", head).replace("[Y]", tail)
        values = {"text": text, "label": tail, "head": head, "relation": domain, "pattern": pattern}
        splits["test" if place == 0 else "validation" if place == 1 else "train"].append((f"{path}:{number}", values))
    made = {split: table(rows) for split, rows in splits.items() if rows}
    return Domain(f"pararel/{domain}", "labelled", made, source=CARD["source"], licence=CARD["licence"], parent="general")
