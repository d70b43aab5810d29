"""A domain: named text or examples with splits, where they come from, and the tasks that measure them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import AcclimateError
from ..files import digest
from . import forms

if TYPE_CHECKING:
    import datasets


@dataclass
class Task:
    """Questions with known answers.

    ``kind`` is "multiple_choice", "classification" or "generation"; rows hold ``prompt`` and ``answer``, and ``options`` where
    one of several is chosen.
    """

    name: str
    kind: str
    rows: list[dict[str, Any]]
    metric: str = "accuracy"


@dataclass
class Domain:
    """Rows of one form by split ("train", "validation", "test"; any may be absent).

    Beside ``id`` (content hash) and ``origin`` ("file:line") the columns are, by form: text: ``text``; messages: ``messages`` (a list of
    role and content); labelled: ``text``, ``label``; preference: ``prompt`` (messages), ``chosen``, ``rejected``; pairs: ``anchor``,
    ``positive`` and perhaps ``negative``; facts: ``head``, ``relation``, ``tail``, all in train. Text may have ``mentions`` of entities
    (start, end, entity), and ``words`` with their ``tags``.

    >>> short = Domain.from_texts("short", ["One.", "Two."], splits=False)
    >>> short.texts("train")
    ['One.', 'Two.']
    >>> short.texts("test")
    Traceback (most recent call last):
    acclimate.errors.AcclimateError: domain 'short' has no split 'test'; it has: train
    """

    name: str
    form: str
    splits: "dict[str, datasets.Dataset]"
    source: str = ""
    licence: str = ""
    parent: str = ""
    time: str = ""
    access: str = "public"
    tasks: dict[str, Task] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)  # why -> how many rows were left out: "exact", "near", "bad"

    def __post_init__(self):
        if self.form not in forms.COLUMNS:
            raise AcclimateError(f"domain {self.name!r} has form {self.form!r}, but must have one of: {', '.join(forms.COLUMNS)}")

    def rows(self, split: str = "train") -> "datasets.Dataset":
        """The rows of one split, Arrow-backed."""
        if split not in self.splits:
            raise AcclimateError(f"domain {self.name!r} has no split {split!r}; it has: {', '.join(self.splits) or 'none'}")
        return self.splits[split]

    def texts(self, split: str = "train") -> list[str]:
        """Each row as plain text: messages joined by newlines, a prompt with its preferred answer, both texts of a pair."""
        rows = self.rows(split)
        if self.form in ("text", "labelled"):
            return list(rows["text"])
        return [forms.plain(self.form, row) for row in rows]

    @property
    def fingerprint(self) -> str:
        """A digest of the form and of the ids in each split, in order."""
        return digest([self.form, {split: list(rows["id"]) for split, rows in sorted(self.splits.items())}])

    @classmethod
    def load(cls, name: str, source: str, **options: Any) -> "Domain":
        """Load from a file or folder (txt, md, html, pdf, jsonl, json, csv, tsv, parquet), a named dataset, or a Hugging Face dataset.

        ``source`` is the path, ``"lm/legal"``, or ``"owner/name"``; an existing path wins. ``options`` are those of
        :class:`acclimate.domain.loading.Options`. The form is recognised from the rows (forms.py).

        Rows are divided by a hash of their content (see :func:`acclimate.domain.splits.place`), so a document stays in its split
        whatever else comes or goes. Plain files longer than ``passage_chars`` are cut to passages at paragraph ends; with ten plain
        files or more, all passages of one file stand in one split, with fewer each passage is divided by itself. Splits that are
        given (files named train, validation, test; several splits of a Hugging Face dataset) are kept.

        Exact duplicates are dropped, and from train also what is nearly the same as a row to be tested on; ``dropped`` counts both.
        Raises AcclimateError with one line for a missing source, a bad row, mixed forms, and a domain too small to split.
        """
        from .loading import load

        return load(name, source, **options)

    @classmethod
    def from_texts(cls, name: str, texts: Iterable[str], *, splits: bool = True, source: str = "") -> "Domain":
        """Documents in memory; divided like files are, or all in train as they stand (``splits=False``)."""
        from .loading import build

        rows = [forms.Row("text", {"text": text}, f"{source or name}:{i}") for i, text in enumerate(texts, 1)]
        for row in rows:
            if not isinstance(row.values["text"], str) or not row.values["text"].strip():
                raise AcclimateError(f"{row.origin}: {row.values['text']!r} is no text; leave it out")
        return build(name, rows, whole=not splits, source=source)
