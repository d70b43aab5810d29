"""CrossNER and SciBERT's NER sets: sentences with named entities from seven domains, word by word.

Columns ``text`` (the words with spaces between them), ``words`` and ``tags``: B-type at an entity's first word, I-type inside, O outside.

- ai, literature, music, politics: CrossNER (Liu et al. 2021, https://arxiv.org/abs/2012.04373), github.com/zliucr/CrossNER, MIT. Few
  training sentences (100, politics 200) and many types (9 to 14 of the domain's own), for tagging across domains.
- bc5cdr (chemicals and diseases as one type), ncbi_disease, sciie (computer science, six types): as in SciBERT (Beltagy et al. 2019,
  https://arxiv.org/abs/1903.10676), github.com/allenai/scibert, Apache-2.0; the terms of the upstream sets are not stated there.

What for: tagging (engines/tagging.py), shift of domain and of types; without the tags raw text.

Traps. A training or development sentence that stands in a later split too is left out. The files of bc5cdr and sciie write I where an
entity begins if none stands right before it; here it is B, as everywhere. Two entities of one type side by side that the files do not tell
apart are one. Figures of the papers are F1 of whole entities.
"""

from pathlib import Path
from typing import Any

from ..domain import Domain
from ..errors import AcclimateError
from ..parts.entities import begun
from . import known_domain, locate
from ._texts import table

CROSSNER, SCIBERT = "MIT", "Apache-2.0 (repository); upstream not stated"
SETS = {  # folder, licence, the wider domain
    "ai": ("crossner/ai", CROSSNER, "science"),
    "literature": ("crossner/literature", CROSSNER, ""),
    "music": ("crossner/music", CROSSNER, ""),
    "politics": ("crossner/politics", CROSSNER, ""),
    "bc5cdr": ("scibert/ner/bc5cdr", SCIBERT, "biomedicine"),
    "ncbi_disease": ("scibert/ner/NCBI-disease", SCIBERT, "biomedicine"),
    "sciie": ("scibert/ner/sciie", SCIBERT, "science"),
}
FILES = {"train": "train", "validation": "dev", "test": "test"}
CARD: dict[str, Any] = {
    "source": "github.com/zliucr/CrossNER, ner_data; github.com/allenai/scibert, data/ner",
    "licence": "MIT; Apache-2.0 (repository, upstream not stated) for bc5cdr, ncbi_disease, sciie",
    "size": "431 to 651 test sentences of each CrossNER domain, 551 to 4,139 of the others; 10 MB",
    "columns": {"text": "a sentence", "words": "its words", "tags": "the tag of each word: O, B-type, I-type"},
    "hub": None,
}


def domains() -> list[str]:
    """The seven domains."""
    return list(SETS)


def _read(place: str) -> list[tuple[str, dict[str, Any]]]:
    """Sentences of a file with a word a line, its tag last. Raises AcclimateError for a line without both, and a tag of another kind."""
    rows: list[tuple[str, dict[str, Any]]] = []
    words: list[str] = []
    tags: list[str] = []
    first = 1
    path: Path = locate(place)
    for number, line in enumerate([*path.read_text(encoding="utf-8").split("\n"), ""], 1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if words:
                rows.append((f"{place}:{first}", {"text": " ".join(words), "words": words, "tags": begun(tags)}))
            words, tags, first = [], [], number + 1
            continue
        cells = line.split("\t") if "\t" in line else line.split()
        if len(cells) < 2 or not (cells[-1] == "O" or cells[-1][:2] in ("B-", "I-")):
            raise AcclimateError(f"{path}:{number}: {line!r} is no word with a tag (O, B-type, I-type) at its end; take the published file")
        words.append(cells[0])
        tags.append(cells[-1])
    return rows


def load(domain: str) -> Domain:
    """One of the domains as text with its words and their tags."""
    known_domain("crossner", domain, SETS)
    folder, licence, parent = SETS[domain]
    splits: dict[str, Any] = {}
    seen: set[str] = set()
    for split in reversed(FILES):  # what is measured on keeps its rows
        rows = [row for row in _read(f"{folder}/{FILES[split]}.txt") if row[1]["text"] not in seen]
        splits[split] = table(rows)
        seen |= {values["text"] for _, values in rows}
    return Domain(
        name=f"crossner/{domain}",
        form="text",
        splits={split: splits[split] for split in FILES},
        source=CARD["source"].split("; ")["scibert" in folder],
        licence=licence,
        parent=parent,
    )
