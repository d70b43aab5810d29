"""Blitzer reviews: raw reviews of books, DVDs, electronics and kitchen goods, good or bad.

Blitzer, Dredze & Pereira 2007; the first 500 good and 500 bad reviews per kind of goods of the copy in github.com/hsqmlzno1/HATN (MIT);
terms of the reviews themselves are not stated. Columns ``text`` (raw: case, marks and all), ``label``. A fifth of the texts, by a hash,
are for testing and a tenth for validation. The task asks whether a review is good or bad, on the test split.

What for: the twelve classic pairs for sentiment across domains, on raw text.

Traps. Half of the 2,000 labelled rows per domain of the papers, and splits of our own: figures do not compare. Up to 12 reviews of a
kind stand in its files twice and are kept once. Some texts hold HTML entities (``&amp;``), left as they are; some have 18,000
characters. Reviews are as in ``fdu_mtl`` and ``amazon_reviews``: never use one to test what was trained on another.
"""

from typing import Any

from ..domain import Domain, Task
from ..domain.splits import normalise, place
from . import known_domain, locate
from ._texts import table

KINDS = ("books", "dvd", "electronics", "kitchen")
LABELS = {"positive": "good", "negative": "bad"}
CARD: dict[str, Any] = {
    "source": "github.com/hsqmlzno1/HATN, raw_data",
    "licence": "MIT (repository); upstream not stated",
    "size": "4 x 1,000 reviews, 3 MB",
    "columns": {"text": "a review", "label": "good or bad"},
    "hub": None,
}


def domains() -> list[str]:
    """The kinds of goods."""
    return list(KINDS)


def load(domain: str) -> Domain:
    """One kind of goods as labelled text with its task."""
    known_domain("blitzer", domain, KINDS)
    splits: dict[str, list[tuple[str, dict[str, Any]]]] = {"train": [], "validation": [], "test": []}
    seen: set[str] = set()
    repeated = 0
    for stem, label in LABELS.items():
        where = f"blitzer_hatn/{domain}/review_{stem}.txt"
        for number, line in enumerate(locate(where).read_text(encoding="utf-8").split("\n"), 1):
            text, key = line.strip(), normalise(line)
            if key and key not in seen:
                splits[place(text, (0.7, 0.1, 0.2))].append((f"{where}:{number}", {"text": text, "label": label}))
                seen.add(key)
            elif key:
                repeated += 1
    tests = [
        {
            "prompt": f"{values['text']}\nThis review is",
            "options": [" bad", " good"],
            "answer": f" {values['label']}",
            "origin": origin,
        }
        for origin, values in splits["test"]
    ]
    return Domain(
        name=f"blitzer/{domain}",
        form="labelled",
        splits={split: table(rows) for split, rows in splits.items()},
        source=CARD["source"],
        licence=CARD["licence"],
        parent="reviews",
        tasks={domain: Task(domain, "classification", tests)},
        dropped={"exact": repeated},
    )
