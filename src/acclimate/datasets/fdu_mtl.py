"""FDU-MTL: reviews of 12 kinds of goods and films, good or bad; and which kind a review is of.

Liu, Qiu & Huang 2017, https://arxiv.org/abs/1704.05742, as kept by github.com/ccsasuke/man (MIT); terms of the reviews themselves are not
stated. Columns ``text`` (tokenised, lower case), ``label``. Twelve sub-domains with the label good or bad, and ``categories``, whose label
is the kind. Test as published; a fifth of the published training rows, by a hash of the text, are for validation.

What for: adaptation between domains, sentiment, sentence embeddings (same kind = belongs together).

Traps. Many test rows stand in train too (video 99, camera 72 of 400): they are left out of train. Reviews are as in Blitzer's sets of the
same names: never use one to test what was trained on the other. ``imdb`` reviews are long.
"""

from typing import Any

from ..domain import Domain, Task
from ..domain.splits import normalise, place
from . import known_domain, locate
from ._texts import table

KINDS = (
    "apparel", "baby", "books", "camera_photo", "dvd", "electronics", "health_personal_care", "imdb", "kitchen_housewares", "music",
    "toys_games", "video",
)  # fmt: skip
LABELS = {"0": "bad", "1": "good"}
CARD: dict[str, Any] = {
    "source": "github.com/ccsasuke/man, data/fdu-mtl",
    "licence": "MIT (repository); upstream not stated",
    "size": "12 x 2,000 reviews, 19 MB",
    "columns": {"text": "a review", "label": "good or bad; of categories: the kind of goods"},
    "hub": None,
}


def domains() -> list[str]:
    """The kinds of goods, and ``categories``."""
    return [*KINDS, "categories"]


def load(domain: str) -> Domain:
    """One kind of goods, or all with the kind as the label, as labelled text with its task."""
    known_domain("fdu_mtl", domain, domains())
    kinds = KINDS if domain == "categories" else (domain,)
    test = _unlike([row for kind in kinds for row in _read(kind, "test", domain == "categories")], set())
    published = [row for kind in kinds for row in _read(kind, "train", domain == "categories")]
    seen = {normalise(values["text"]) for _, values in test}
    parts: dict[str, list[tuple[str, dict[str, Any]]]] = {"validation": [], "train": []}
    for row in _unlike(published, seen):
        parts[place(row[1]["text"], (0.8, 0.2, 0.0))].append(row)
    options = [f" {label}" for label in sorted({values["label"] for _, values in test})]
    question = "Kind:" if domain == "categories" else "This review is"
    tests = [
        {"prompt": f"{values['text']}\n{question}", "options": options, "answer": f" {values['label']}", "origin": origin}
        for origin, values in test
    ]
    return Domain(
        name=f"fdu_mtl/{domain}",
        form="labelled",
        splits={"train": table(parts["train"]), "validation": table(parts["validation"]), "test": table(test)},
        source=CARD["source"],
        licence=CARD["licence"],
        parent="reviews",
        tasks={domain: Task(domain, "classification", tests)},
    )


def _read(kind: str, split: str, by_kind: bool) -> list[tuple[str, dict[str, Any]]]:
    where = f"fdu_mtl/{kind}.task.{split}"
    rows = []
    for number, line in enumerate(locate(where).read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        label, _, text = line.partition("\t")
        if text.strip():
            rows.append((f"{where}:{number}", {"text": text.strip(), "label": kind if by_kind else LABELS[label]}))
    return rows


def _unlike(rows: list[tuple[str, dict[str, Any]]], seen: set[str]) -> list[tuple[str, dict[str, Any]]]:
    """Rows whose text is neither in ``seen`` nor in an earlier row."""
    found, known = [], set(seen)
    for row in rows:
        key = normalise(row[1]["text"])
        if key not in known:
            known.add(key)
            found.append(row)
    return found
