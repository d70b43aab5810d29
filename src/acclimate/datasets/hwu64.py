"""HWU64: what people ask an assistant at home, 64 intents in 18 scenarios.

Liu et al. 2019, https://arxiv.org/abs/1903.05566; github.com/xliuhw/NLU-Evaluation-Data, first fold of its cross-validation, CC BY 4.0.
Columns ``text`` (lower case, marks kept), ``label`` (scenario and intent: ``alarm_set``). Sub-domains: the 18 scenarios, and ``all``.
Test as published (1,076 rows); a tenth of the published training rows (9,960), by a hash of the text, are for validation. Each domain
with two or more intents holds its task: choose the intent, on the test split.

What for: scenario = domain; domain generalization, open-set and partial adaptation, classes that come in turn.

Traps. Scenarios share no label, so a scenario is a domain of other classes, not the same classes elsewhere. cooking, news and weather
have a single intent, hence no task. ``general`` (10 intents: affirm, praise, repeat ...) belongs to no subject. A training row whose
text, but for case and white space, stands in validation or test too is left out. An ``answerid`` names a row only together with its
intent.
"""

import csv
import io
from typing import Any

from ..domain import Domain, Task
from ..domain.splits import normalise, place
from . import known_domain, locate
from ._texts import table

SCENARIOS = (
    "alarm", "audio", "calendar", "cooking", "datetime", "email", "general", "iot", "lists", "music", "news", "play", "qa",
    "recommendation", "social", "takeaway", "transport", "weather",
)  # fmt: skip
CARD: dict[str, Any] = {
    "source": "github.com/xliuhw/NLU-Evaluation-Data, CrossValidation/KFold_1",
    "licence": "CC BY 4.0",
    "size": "11,036 requests, 1.6 MB",
    "columns": {"text": "a request", "label": "scenario_intent, one of 64"},
    "hub": None,
}


def domains() -> list[str]:
    """The scenarios, and all of them as one."""
    return [*SCENARIOS, "all"]


def load(domain: str) -> Domain:
    """One scenario, or all, as labelled text with its task."""
    known_domain("hwu64", domain, domains())
    test, published = _read("test", domain), _read("train", domain)
    splits: dict[str, list[tuple[str, dict[str, Any]]]] = {"validation": [], "train": []}
    seen = {normalise(values["text"]) for _, values in test}
    for wanted in splits:
        for row in published:
            key = normalise(row[1]["text"])
            if place(row[1]["text"], (0.9, 0.1, 0.0)) == wanted and key not in seen:
                splits[wanted].append(row)
                seen.add(key)
    options = [f" {label}" for label in sorted({values["label"] for _, values in published})]
    tests = [
        {"prompt": f"{values['text']}\nIntent:", "options": options, "answer": f" {values['label']}", "origin": origin}
        for origin, values in test
    ]
    return Domain(
        name=f"hwu64/{domain}",
        form="labelled",
        splits={"train": table(splits["train"]), "validation": table(splits["validation"]), "test": table(test)},
        source=CARD["source"],
        licence=CARD["licence"],
        parent="assistants",
        tasks={domain: Task(domain, "classification", tests)} if len(options) > 1 else {},
    )


def _read(split: str, scenario: str) -> list[tuple[str, dict[str, Any]]]:
    where = f"intents/hwu64/kfold1_{split}.csv"
    rows = csv.DictReader(io.StringIO(locate(where).read_text(encoding="utf-8"), newline=""))
    return [
        (f"{where}:{number}", {"text": row["answer_from_anno"].strip(), "label": row["file_intent"]})
        for number, row in enumerate(rows, 1)
        if scenario in ("all", row["scenario"])
    ]
