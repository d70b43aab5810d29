"""Scientific text classification: ChemProt, SciCite and MAG, the sets SciBERT was measured on.

Files of github.com/allenai/scibert (Beltagy et al. 2019, https://arxiv.org/abs/1903.10676), Apache-2.0; the terms of the upstream sets
are not stated there. Columns ``text``, ``label``. Each domain holds its task: choose the label, on the test split.

- chemprot: how a drug (``<< >>``) acts on a protein (``[[ ]]``) in a sentence of a PubMed abstract; 13 classes; scored by accuracy
  (micro F1) in the papers.
- sci_cite: what a citation is for (background, method, result); macro F1.
- mag: the field of a paper by its title, 7 fields; macro F1. Its training file is not at hand: the published development file
  is divided by a hash of the text into train (80 %) and validation, and test is the first 5,000 rows of the published test file.

What for: classification in a domain, domain- and task-adaptive pretraining, shift of labels.

Traps. A training row whose text stands in validation or test too is left out (7 of them), as is a header row of mag. Equal
sentences with other marks are other rows in chemprot. Three classes of chemprot have fewer than 20 training rows.
"""

import json
from typing import Any

from ..domain import Domain, Task
from ..files import digest
from . import known_domain, locate
from ._texts import table

# folder, question of the task, metric
SETS = {
    "chemprot": ("chemprot", "How does the first act on the second?", "accuracy"),
    "sci_cite": ("sci-cite", "What is the citation for?", "macro_f1"),
    "mag": ("mag", "Which field is this title from?", "macro_f1"),
}
CARD: dict[str, Any] = {
    "source": "github.com/allenai/scibert, data/text_classification",
    "licence": "Apache-2.0 (repository); upstream not stated",
    "size": "chemprot 10,065 rows, sci_cite 10,097, mag 10,599; 7 MB",
    "columns": {"text": "a sentence, a passage or a title", "label": "its class"},
    "hub": None,
}


def domains() -> list[str]:
    """The three sets."""
    return list(SETS)


def _read(folder: str, name: str) -> list[tuple[str, dict[str, Any]]]:
    place = f"scibert/text_classification/{folder}/{name}.txt"
    rows = []
    for number, line in enumerate(locate(place).read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            row = json.loads(line)
            if row["label"] != "category":  # the header row of mag
                rows.append((f"{place}:{number}", {"text": row["text"], "label": row["label"]}))
    return rows


def load(domain: str) -> Domain:
    """One of the sets as labelled text with its task."""
    known_domain("scibert", domain, SETS)
    folder, question, metric = SETS[domain]
    train, validation, test = [] if domain == "mag" else _read(folder, "train"), _read(folder, "dev"), _read(folder, "test")
    if not train:
        held = [int(digest(values["text"]), 16) % 5 == 0 for _, values in validation]
        train = [row for row, out in zip(validation, held, strict=True) if not out]
        validation = [row for row, out in zip(validation, held, strict=True) if out]
    measured = {values["text"] for _, values in test}
    validation = [row for row in validation if row[1]["text"] not in measured]
    measured |= {values["text"] for _, values in validation}
    train = [row for row in train if row[1]["text"] not in measured]
    options = [f" {label}" for label in sorted({values["label"] for _, values in [*train, *validation, *test]})]
    rows = [
        {"prompt": f"{values['text']}\n{question}", "options": options, "answer": f" {values['label']}", "origin": origin}
        for origin, values in test
    ]
    return Domain(
        name=f"scibert/{domain}",
        form="labelled",
        splits={"train": table(train), "validation": table(validation), "test": table(test)},
        source=CARD["source"],
        licence=CARD["licence"],
        parent="science",
        tasks={domain: Task(domain, "classification", rows, metric)},
    )
