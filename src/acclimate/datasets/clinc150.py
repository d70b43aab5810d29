"""CLINC150: short requests to an assistant, 150 intents in 10 domains, and requests that belong to none.

Larson et al. 2019, https://arxiv.org/abs/1909.02027; github.com/clinc/oos-eval, CC BY 3.0. Columns ``text``, ``label``. Splits as
published: 100, 20 and 30 rows of each intent. Sub-domains: the ten domains of 15 intents each, ``all`` of them, and ``out_of_scope``
(label ``oos``, no intent at all). Each domain holds its task: choose the intent, on the test split.

What for: intents in several domains, sentence embeddings (same intent = belongs together), open-set recognition.

Traps. A training row whose text stands in validation or test too is left out. Texts are in lower case without marks.
"""

import json
from typing import Any

from ..domain import Domain, Task
from ..domain.splits import normalise
from . import known_domain, locate
from ._texts import table

DOMAINS = (
    "banking", "credit_cards", "kitchen_and_dining", "home", "auto_and_commute", "travel", "utility", "work", "small_talk", "meta",
)  # fmt: skip
PUBLISHED = {"train": "train", "validation": "val", "test": "test"}
CARD: dict[str, Any] = {
    "source": "github.com/clinc/oos-eval, data/data_full.json",
    "licence": "CC BY 3.0",
    "size": "22,500 requests and 1,200 out of scope, 2.5 MB",
    "columns": {"text": "a request", "label": "its intent"},
    "hub": None,
}


def domains() -> list[str]:
    """The ten domains, all of them as one, and what is out of scope."""
    return [*DOMAINS, "all", "out_of_scope"]


def load(domain: str) -> Domain:
    """One of the domains as labelled text with its task."""
    known_domain("clinc150", domain, domains())
    place = "intents/clinc_oos/data_full.json"
    given = json.loads(locate(place).read_text(encoding="utf-8"))
    intents = {
        key.replace(" ", "_"): set(of) for key, of in json.loads(locate("intents/clinc_oos/domains.json").read_text("utf-8")).items()
    }
    wanted = set().union(*intents.values()) if domain == "all" else {"oos"} if domain == "out_of_scope" else intents[domain]
    splits: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for split, key in PUBLISHED.items():
        key = f"oos_{key}" if domain == "out_of_scope" else key
        rows = [(f"{place}:{key}:{i}", {"text": text, "label": label}) for i, (text, label) in enumerate(given[key], 1)]
        splits[split] = [row for row in rows if row[1]["label"] in wanted]
    seen: set[str] = set()
    for split in ("test", "validation", "train"):
        splits[split] = [row for row in splits[split] if normalise(row[1]["text"]) not in seen]
        seen |= {normalise(row[1]["text"]) for row in splits[split]}
    options = [f" {label}" for label in sorted(wanted)]
    tests = [
        {"prompt": f"{values['text']}\nIntent:", "options": options, "answer": f" {values['label']}", "origin": origin}
        for origin, values in splits["test"]
    ]
    return Domain(
        name=f"clinc150/{domain}",
        form="labelled",
        splits={split: table(each) for split, each in splits.items()},
        source=CARD["source"],
        licence=CARD["licence"],
        parent="assistants",
        tasks={} if domain == "out_of_scope" else {domain: Task(domain, "classification", tests)},
    )
