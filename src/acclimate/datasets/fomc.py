"""FOMC stance: sentences of the US central bank from 1996 to 2015, hawkish, dovish or neutral, with the day they were published.

Shah, Paturi & Chava 2023, https://arxiv.org/abs/2305.07972; github.com/gtfintechlab/fomc-hawkish-dovish, CC BY-NC 4.0 (no commercial
use), the texts are works of the US government. Minutes, speeches and press conferences. Columns ``text``, ``label``, ``date`` (ISO).
Sub-domains are periods of four years, ``1996-1999`` to ``2012-2015``, with ``Domain.time`` as "1996/1999", and ``all`` of them. Rows
stand in order of date. A fifth of the texts, by a hash, are for testing and a tenth for validation. The task asks for the stance, on
the test split.

What for: drift over time with real dates; classifiers that must follow.

Traps. The dates are not the release's: its year agrees with the dated source text for few sentences, so the sentence was looked up in
the dated texts and the earliest hit taken. A phrase that recurs in later minutes therefore counts for its first year. Sixteen sentences
that were not found are left out. Sentences of one document may stand in several splits; to measure the future, test on a later period
instead. Half the rows are neutral (791 of 1,565). The source numbers stances 0 dovish, 1 hawkish, 2 neutral.
"""

import csv
import io
from typing import Any

from ..domain import Domain, Task
from ..domain.splits import place
from . import known_domain, locate
from ._texts import table

STANCES = ("dovish", "hawkish", "neutral")
PERIODS = ("1996-1999", "2000-2003", "2004-2007", "2008-2011", "2012-2015")
CARD: dict[str, Any] = {
    "source": "github.com/gtfintechlab/fomc-hawkish-dovish, training_data, with dates from its raw_data",
    "licence": "CC BY-NC 4.0; texts of the US government",
    "size": "1,565 sentences, 0.35 MB",
    "columns": {"text": "a sentence", "label": "dovish, hawkish or neutral", "date": "day of publication, ISO"},
    "hub": None,
}


def domains() -> list[str]:
    """The periods, and all of them as one."""
    return [*PERIODS, "all"]


def load(domain: str) -> Domain:
    """One period as labelled text with its task."""
    known_domain("fomc", domain, domains())
    first, last = (PERIODS[0][:4], PERIODS[-1][-4:]) if domain == "all" else domain.split("-")
    where = "finance/fomc_stance/labelled_1996_2015.csv"
    given = csv.DictReader(io.StringIO(locate(where).read_text(encoding="utf-8"), newline=""))
    dated = [
        (day := row["matched_date"], f"{where}:{number}", row["sentence"].strip(), f"{day[:4]}-{day[4:6]}-{day[6:]}", int(row["label"]))
        for number, row in enumerate(given, 1)
    ]
    splits: dict[str, list[tuple[str, dict[str, Any]]]] = {"train": [], "validation": [], "test": []}
    for day, origin, text, date, stance in sorted(dated, key=lambda each: each[0]):
        if first <= day[:4] <= last:
            splits[place(text, (0.7, 0.1, 0.2))].append((origin, {"text": text, "label": STANCES[stance], "date": date}))
    tests = [
        {
            "prompt": f"{values['text']}\nStance:",
            "options": [f" {stance}" for stance in STANCES],
            "answer": f" {values['label']}",
            "origin": origin,
        }
        for origin, values in splits["test"]
    ]
    return Domain(
        name=f"fomc/{domain}",
        form="labelled",
        splits={split: table(rows) for split, rows in splits.items()},
        source=CARD["source"],
        licence=CARD["licence"],
        parent="finance",
        time=f"{first}/{last}",
        tasks={domain: Task(domain, "classification", tests, metric="macro_f1")},
    )
