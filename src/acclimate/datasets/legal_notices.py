"""Legal notices: the licences and notices of the installed packages, as English legal prose; always there, no network.

The files LICENSE, NOTICE, COPYING and their kin in the ``*.dist-info`` folders of the installed distributions, and Python's own.
Column ``text``: a passage of 600 to 2,000 characters, hard-wrapped lines joined; ``origin`` is ``folder/file:passage n``. A
paragraph is kept where it is new: one whose runs of eight words were mostly seen before is dropped, so that the Apache licence
stands here once and not a hundred times. About 80 % of the passages are train, 10 % validation and 10 % test, by a hash of the text.

What for: a set outside the domain (or a small legal domain) for people who have no data at hand.

Traps. Small (some 100 to 500 KB), and it depends on what is installed. Paragraphs with an e-mail address and lists of authors are
left out, names of copyright holders are not. A licence text is itself rarely free to change: fit for measuring, not for publishing.
"""

import importlib.metadata
import re
import sysconfig
from pathlib import Path
from typing import Any

from ..domain import Domain
from ..errors import AcclimateError
from ._texts import divided, new_paragraphs, passages, read

CARD: dict[str, Any] = {
    "source": "licence and notice files of the installed distributions",
    "licence": "each text's own",
    "size": "some 100 to 500 KB, by what is installed",
    "columns": {"text": "one passage"},
    "hub": None,
}
NAMES = re.compile(r"licen[cs]e|notice|copying|copyright|third.?party|eula", re.IGNORECASE)
PEOPLE = re.compile(r"author|contributor|credit|maintainer", re.IGNORECASE)
CODE = {".py", ".pyc", ".pyi", ".json", ".html", ".xml", ".png"}
SHORTEST = 200  # characters of a passage; what is left of a known licence is often one line of copyright


def domains() -> list[str]:
    """None: the dataset is one domain."""
    return []


def _files() -> list[Path]:
    found = set()
    for folder in {Path(str(each.locate_file(""))) for each in importlib.metadata.distributions()}:
        for path in folder.glob("*.dist-info/**/*"):
            named = NAMES.search(path.name) or "licenses" in path.parts
            if named and not PEOPLE.search(path.name) and path.suffix.lower() not in CODE and path.is_file():
                found.add(path)
    python = Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt"
    return sorted(found) + ([python] if python.is_file() else [])


def _cut(paths: list[Path]) -> list[tuple[str, str]]:
    rows = []
    seen: set[int] = set()
    for path in paths:
        paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n[^\w\n]*\n", read(path))]
        text = "\n\n".join(new_paragraphs([paragraph for paragraph in paragraphs if _prose(paragraph)], seen))
        place = path.as_posix().rpartition("site-packages/")[2]
        for number, (_, passage) in enumerate(passages(text, low=600, high=2000), 1):
            if len(passage) >= SHORTEST:
                rows.append((f"{place}:passage {number}", passage))
    return rows


def _prose(paragraph: str) -> bool:
    """Whether a paragraph reads as English sentences: no table, no rule, no list of people with their addresses."""
    letters = sum(letter.isascii() and (letter.isalpha() or letter == " ") for letter in paragraph)
    return len(paragraph) >= 60 and letters > 0.75 * len(paragraph) and not re.search(r"\w@\w", paragraph)


def load() -> Domain:
    """The licence and notice files of this installation as a domain of texts."""
    paths = _files()
    if not paths:
        raise AcclimateError("no licence file in any *.dist-info folder on the path; legal_notices needs an ordinary installation")
    return Domain(
        name="legal_notices",
        form="text",
        **divided("legal_notices", paths, __file__, lambda: _cut(paths)),
        source="licence and notice files of the installed packages",
        licence="each text's own",
        parent="institutions",
    )
