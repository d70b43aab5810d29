"""Banking77: what customers of a bank ask online, with 77 intents.

Casanueva et al. 2020, https://arxiv.org/abs/2003.04807; github.com/PolyAI-LDN/task-specific-datasets, CC BY 4.0. Columns ``text``,
``label``. The test split is as published; a tenth of the published training rows, by a hash of the text, are for validation. The task
``banking77`` asks for the intent on the test split.

What for: intents in a domain, sentence embeddings (same intent = belongs together), few-shot classification.

Traps. A training row whose text stands in validation or test too is left out. Some intents differ by little, and some labels are wrong
(Ying & Thomas 2022); the file is sorted by intent, so its first rows are no sample.
"""

import csv
import io
from typing import Any

from ..domain import Domain, Task
from ..domain.splits import normalise, place
from . import locate
from ._texts import table

CARD: dict[str, Any] = {
    "source": "github.com/PolyAI-LDN/task-specific-datasets, banking_data",
    "licence": "CC BY 4.0",
    "size": "13,083 questions, 1.1 MB",
    "columns": {"text": "a question", "label": "its intent, one of 77"},
    "hub": None,
}


def domains() -> list[str]:
    """None: the dataset is one domain."""
    return []


def load() -> Domain:
    """The questions as labelled text with their task."""
    test, published = _read("test"), _read("train")
    seen = {normalise(values["text"]) for _, values in test}
    splits: dict[str, list[tuple[str, dict[str, Any]]]] = {"validation": [], "train": []}
    for wanted in splits:
        for origin, values in published:
            key = normalise(values["text"])
            if (place(values["text"], (0.9, 0.1, 0.0)) == wanted) and key not in seen:
                splits[wanted].append((origin, values))
                seen.add(key)
    options = [f" {label}" for label in sorted({values["label"] for _, values in test})]
    rows = [
        {"prompt": f"{values['text']}\nIntent:", "options": options, "answer": f" {values['label']}", "origin": origin}
        for origin, values in test
    ]
    return Domain(
        name="banking77",
        form="labelled",
        splits={"train": table(splits["train"]), "validation": table(splits["validation"]), "test": table(test)},
        source=CARD["source"],
        licence=CARD["licence"],
        parent="finance",
        tasks={"banking77": Task("banking77", "classification", rows)},
    )


def _read(name: str) -> list[tuple[str, dict[str, Any]]]:
    where = f"intents/banking77/{name}.csv"
    text = locate(where).read_text(encoding="utf-8")
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return [(f"{where}:{i}", {"text": row["text"].strip(), "label": row["category"]}) for i, row in enumerate(rows, 1)]
