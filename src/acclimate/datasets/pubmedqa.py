"""PubMedQA: yes, no or maybe, a research question answered from its abstract.

Jin et al. 2019, https://arxiv.org/abs/1909.06146; github.com/pubmedqa/pubmedqa, MIT. The 1,000 questions labelled by people: the
published 500 for test, and the other 500 divided by a hash of the question into train (80 %) and validation. Columns ``text`` (the
abstract without its conclusion, then the question) and ``label``. The task ``pubmedqa`` asks for the label on the test split.

What for: answering in a domain with the evidence at hand; classification by likelihood. 55 % of the answers are yes.

Trap: lm/biomedical is made of these abstracts, conclusions included, and most of them stand in its train split: a model adapted to
it has read the answers. The abstract and its question take up to 800 tokens: a short context cuts its beginning.
"""

import json
from typing import Any

from ..domain import Domain, Task
from ..files import digest
from . import locate
from ._texts import table

OPTIONS = [" yes", " no", " maybe"]
CARD: dict[str, Any] = {
    "source": "github.com/pubmedqa/pubmedqa",
    "licence": "MIT",
    "size": "1,000 questions, 1.5 MB",
    "columns": {"text": "abstract without its conclusion, then the question", "label": "yes, no or maybe"},
    "hub": None,
}


def domains() -> list[str]:
    """None: the dataset is one domain."""
    return []


def load() -> Domain:
    """The questions as labelled text with their task; test as published."""
    questions = json.loads(locate("qa/pubmedqa/ori_pqal.json").read_text(encoding="utf-8"))
    published = json.loads(locate("qa/pubmedqa/test_ground_truth.json").read_text(encoding="utf-8"))
    splits: dict[str, list[tuple[str, dict[str, Any]]]] = {"train": [], "validation": [], "test": []}
    for key, row in questions.items():
        split = "test" if key in published else "validation" if int(digest(row["QUESTION"]), 16) % 5 == 0 else "train"
        text = "\n".join([*row["CONTEXTS"], f"Question: {row['QUESTION']}"])
        splits[split].append((f"qa/pubmedqa/ori_pqal.json:{key}", {"text": text, "label": row["final_decision"]}))
    rows = [
        {"prompt": f"{values['text']}\nAnswer:", "options": OPTIONS, "answer": f" {values['label']}", "origin": origin}
        for origin, values in splits["test"]
    ]
    return Domain(
        name="pubmedqa",
        form="labelled",
        splits={split: table(each) for split, each in splits.items()},
        source=CARD["source"],
        licence="MIT",
        parent="science",
        tasks={"pubmedqa": Task("pubmedqa", "classification", rows)},
    )
