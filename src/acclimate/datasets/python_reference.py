"""Python reference: the prose of Python's language reference that ships with the interpreter; always there, no network.

The topics that ``help()`` shows (``pydoc_data.topics``), PSF licence. Column ``text``: a passage of 1,000 to 3,000 characters,
wrapped at 70 columns as shipped; ``origin`` is ``topic:passage n``. Topics quote one another: a paragraph whose runs of eight words were
mostly seen before is dropped. About 80 % of the passages are train, 10 % validation and 10 % test, by a hash of the text.

What for: a small technical set (about 400 KB) outside a domain, for people who have no data at hand.

Trap: lm/software holds the same reference in another mark-up; never train on one and test on the other.
"""

from pathlib import Path
from typing import Any

from ..domain import Domain
from ..errors import AcclimateError
from ._texts import divided, new_paragraphs, passages

CARD: dict[str, Any] = {
    "source": "pydoc_data.topics of the running Python",
    "licence": "PSF-2.0",
    "size": "about 400 KB",
    "columns": {"text": "one passage"},
    "hub": None,
}


def domains() -> list[str]:
    """None: the dataset is one domain."""
    return []


def _cut(topics: dict[str, str]) -> list[tuple[str, str]]:
    rows = []
    seen: set[int] = set()
    for name, text in sorted(topics.items()):
        fresh = "\n\n".join(new_paragraphs(text.split("\n\n"), seen))
        rows += [(f"{name}:passage {number}", passage) for number, (_, passage) in enumerate(passages(fresh, low=1000, high=3000), 1)]
    return rows


def load() -> Domain:
    """The reference prose of the running Python as a domain of texts."""
    try:
        from pydoc_data import topics
    except ImportError as error:
        raise AcclimateError("this Python ships without the module pydoc_data; install its whole standard library") from error
    return Domain(
        name="python_reference",
        form="text",
        **divided("python_reference", [Path(topics.__file__)], __file__, lambda: _cut(topics.topics)),
        source="pydoc_data.topics",
        licence="PSF-2.0",
        parent="language",
    )
