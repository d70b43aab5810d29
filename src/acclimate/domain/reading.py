"""Files to raw rows: plain text, Markdown, HTML, PDF, JSON, tables. Each row knows its file and line; what is broken does too."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, TextIO

from ..errors import AcclimateError, nearest
from ..files import digest

CUTS = (r"\n[ \t]*\n\s*", r"\n+", r"(?<=[.!?;])\s+", r"\s+")  # where a text may be cut: paragraph, line, sentence, word
LONGEST_FIELD = 1 << 30  # characters in one CSV field; Python's own limit of 131,072 is less than a long document


@dataclass(slots=True)
class Raw:
    """One row as it stands in a file. ``document`` is the hash of the whole text where the row is a passage of a plain file."""

    origin: str
    values: dict[str, Any]
    document: str = ""


@dataclass(slots=True)
class Bad:
    """A row or file that cannot be used: where, which field ("" for the whole), what is wrong, how to mend it."""

    origin: str
    field: str
    problem: str
    mend: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.field + ' ' if self.field else ''}{self.problem}; {self.mend}"


class _FileError(Exception):
    """What stops the reading of a file: origin, problem, mend."""


def files(source: Path) -> list[Path]:
    """The file itself, or the readable files of a folder and its folders in the order of their paths; hidden ones are passed over."""
    if source.is_file():
        if source.suffix.lower() not in READERS:
            raise AcclimateError(
                f"{source}: files of type {source.suffix or '(none)'!r} cannot be read{nearest(source.suffix.lower(), READERS)}"
            )
        return [source]
    if not source.is_dir():
        raise AcclimateError(f"{source}: no such file or folder; check the path")
    found = [
        path
        for path in source.rglob("*")
        if path.suffix.lower() in READERS and not any(part.startswith(".") for part in path.relative_to(source).parts) and path.is_file()
    ]
    if not found:
        raise AcclimateError(f"{source}: no readable file in this folder; put files of these types there: {' '.join(READERS)}")
    return sorted(found)


def read(path: Path, *, encoding: str | None = None, passage_chars: int = 4000) -> Iterator[Raw | Bad]:
    """The rows of one file in order. ``encoding`` is UTF-8 unless given; ``passage_chars`` is the longest passage of a plain file."""
    reader = READERS[path.suffix.lower()]
    try:
        yield from reader(path, encoding, passage_chars)
    except _FileError as broken:
        origin, problem, mend = broken.args
        yield Bad(origin, "", problem, mend)
    except OSError as error:
        yield Bad(str(path), "", f"cannot be read: {error.strerror or error}", "check the file and its permissions")


@contextmanager
def _opened(path: Path, encoding: str | None, newline: str | None = None) -> Iterator[TextIO]:
    try:
        with open(path, encoding=encoding or "utf-8-sig", newline=newline) as handle:
            yield handle
    except UnicodeError:
        raise _FileError(str(path), *_misread(path, encoding)) from None
    except LookupError:
        raise _FileError(str(path), f"encoding {encoding!r} is unknown", 'pass one that Python knows, such as encoding="latin-1"') from None


def _misread(path: Path, encoding: str | None) -> tuple[str, str]:
    """What a wrong encoding did, with the offset in the file (a stream's own error counts from its last block)."""
    data = path.read_bytes()
    try:
        data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"byte 0x{data[error.start]:02x} at offset {error.start} (line {line}) is not {encoding or 'UTF-8'}"
    except UnicodeError as error:
        problem = f"is not {encoding}: {error}"
    else:
        problem = f"is not {encoding or 'UTF-8'}"
    guess = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1"
    return problem, f'convert the file to UTF-8, or pass its encoding, for instance encoding="{guess}"'


# plain texts ------------------------------------------------------------------------------------------------------------------


def passages(text: str, longest: int) -> list[tuple[int, str]]:
    """Cut a text to passages of at most ``longest`` characters at paragraph ends (else line, sentence or word ends).

    Returns (line from 1, passage) in order. Nothing but white space at the cuts is lost.

    >>> passages("one.\\n\\ntwo two.\\n\\nthree.", 10)
    [(1, 'one.'), (3, 'two two.'), (5, 'three.')]
    """
    found: list[tuple[int, str]] = []
    now, start = "", 0  # what is being gathered, and its first character's place
    place = 0
    for piece in [*_pieces(text, longest), ""]:
        if now and (not piece or len((now + piece).strip()) > longest):
            if now.strip():
                found.append((start + len(now) - len(now.lstrip()), now.strip()))
            now = ""
        if not now:
            start = place
        now += piece
        place += len(piece)
    lines, last, numbered = 1, 0, []
    for at, passage in found:
        lines += text.count("\n", last, at)
        last = at
        numbered.append((lines, passage))
    return numbered


def _pieces(text: str, longest: int, cuts: tuple[str, ...] = CUTS) -> Iterator[str]:
    """Pieces that join to ``text`` again, none longer than ``longest`` without the space at its ends, cut as coarsely as can be."""
    if len(text.strip()) <= longest:
        if text:
            yield text
    elif not cuts:
        yield from (text[i : i + longest] for i in range(0, len(text), longest))
    else:
        start = 0
        for match in re.finditer(cuts[0], text):
            yield from _pieces(text[start : match.end()], longest, cuts[1:])
            start = match.end()
        yield from _pieces(text[start:], longest, cuts[1:])


def _document(text: str, longest: int, origin: Callable[[int], str]) -> Iterator[Raw]:
    document = digest(" ".join(text.split()).casefold(), 64)
    for line, passage in passages(text, longest):
        yield Raw(origin(line), {"text": passage}, document)


def _plain(path: Path, encoding: str | None, longest: int) -> Iterator[Raw | Bad]:
    with _opened(path, encoding) as handle:
        text = handle.read()
    if text.startswith('{"'):
        try:
            json.loads(text.partition("\n")[0])
        except json.JSONDecodeError:
            pass
        else:  # JSON lines under another name, as many datasets have them
            yield from _jsonl(path, encoding, longest)
            return
    yield from _document(text, longest, lambda line: f"{path}:{line}")


class _Visible(HTMLParser):
    """The text between the tags, a new paragraph per block."""

    hidden = ("script", "style", "head", "noscript", "template")
    inline = ("a", "abbr", "b", "code", "em", "i", "small", "span", "strong", "sub", "sup", "u")

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.depth = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.depth += tag in self.hidden
        self.parts.append("" if tag in self.inline else "\n\n")

    def handle_endtag(self, tag: str) -> None:
        self.depth = max(0, self.depth - (tag in self.hidden))
        self.parts.append("" if tag in self.inline else "\n\n")

    def handle_data(self, data: str) -> None:
        if not self.depth:
            self.parts.append(re.sub(r"\s+", " ", data))


def _html(path: Path, encoding: str | None, longest: int) -> Iterator[Raw | Bad]:
    import logging

    import trafilatura

    with _opened(path, encoding) as handle:
        page = handle.read()
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it reports every page without an article as an error
    text = trafilatura.extract(page, include_comments=False) or ""
    if not text.strip():  # no article in it: a fragment, a table, a page of links
        visible = _Visible()
        visible.feed(page)
        visible.close()
        text = re.sub(r"\s*\n\s*\n\s*", "\n\n", "".join(visible.parts)).strip()
    if not text:
        raise _FileError(str(path), "holds no text", "leave the file out")
    yield from _document(text, longest, lambda line: str(path))


def _pdf(path: Path, encoding: str | None, longest: int) -> Iterator[Raw | Bad]:
    import logging

    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it mends small faults and tells of each
    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise _FileError(str(path), "is encrypted", "save it without its password")
        pages = [page.extract_text() for page in reader.pages]
    except (_FileError, OSError):
        raise
    except Exception as error:  # a broken PDF raises anything: KeyError, RecursionError, pypdf's own
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise _FileError(str(path), f"cannot be read as PDF: {reason}", "open and save it anew, or leave it out") from None
    if not any(page.strip() for page in pages):
        raise _FileError(
            str(path), f"has no text on its {len(pages)} pages (scanned images?)", "run text recognition on it, or leave it out"
        )
    document = digest(" ".join(" ".join(pages).split()).casefold(), 64)
    for number, page in enumerate(pages, 1):
        for _, passage in passages(page, longest):
            yield Raw(f"{path}#{number}", {"text": passage}, document)


# rows -------------------------------------------------------------------------------------------------------------------------


def _row(origin: str, value: Any) -> Raw | Bad:
    if isinstance(value, dict):
        return Raw(origin, value)
    return Bad(origin, "", f"holds {json.dumps(value, ensure_ascii=False)[:40]}, but must hold an object", 'write {"text": "..."}')


def _jsonl(path: Path, encoding: str | None, longest: int) -> Iterator[Raw | Bad]:
    with _opened(path, encoding) as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            origin = f"{path}:{number}"
            try:
                value = json.loads(line.rstrip("\r\n"))
            except json.JSONDecodeError as error:
                yield Bad(
                    origin, "", f"not valid JSON: {error.msg} at column {error.colno}", "mend the line; each line must be one whole object"
                )
                continue
            yield _row(origin, value)


def _json(path: Path, encoding: str | None, longest: int) -> Iterator[Raw | Bad]:
    """An array of objects, or objects one after the other (many files named .json are JSON lines)."""
    with _opened(path, encoding) as handle:
        text = handle.read()
    decoder, space = json.JSONDecoder(), re.compile(r"\s*")

    def skip(at: int) -> int:
        return space.match(text, at).end()  # type: ignore[union-attr]

    lines, counted = 1, 0

    def line(at: int) -> int:
        nonlocal lines, counted
        lines, counted = lines + text.count("\n", counted, at), at
        return lines

    at = skip(0)
    array = text.startswith("[", at)
    at = skip(at + array)
    while at < len(text) and not (array and text[at] == "]"):
        begin = line(at)
        try:
            value, at = decoder.raw_decode(text, at)
            yield _row(f"{path}:{begin}", value)
            at = skip(at)
            if text.startswith(",", at):
                at = skip(at + 1)
            elif array and at < len(text) and text[at] != "]":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        except json.JSONDecodeError as error:
            raise _FileError(
                f"{path}:{error.lineno}", f"not valid JSON: {error.msg} at column {error.colno}", "mend the file there"
            ) from None
    if array and at >= len(text):
        raise _FileError(f"{path}:{line(len(text))}", "not valid JSON: the array is never closed", "add the missing ] (is the file whole?)")


def _table(path: Path, encoding: str | None, longest: int) -> Iterator[Raw | Bad]:
    csv.field_size_limit(LONGEST_FIELD)
    with _opened(path, encoding, newline="") as handle:
        first = handle.readline()
        handle.seek(0)
        mark = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
        reader = csv.reader(handle, delimiter=mark, strict=True)
        header: list[str] = []
        number = 1
        try:
            for fields in reader:
                begin, number = number, reader.line_num + 1  # a quoted field may hold line breaks
                if not fields:
                    continue
                if not header:
                    header = [field.strip() for field in fields]
                    if len(set(header)) < len(header) or "" in header:
                        raise _FileError(
                            f"{path}:{begin}", f"the header {header} has empty or repeated names", "give each column a name of its own"
                        )
                elif len(fields) != len(header):
                    mend = f"give it the header's {len(header)}; a field that holds the separator {mark!r} needs quotes"
                    yield Bad(f"{path}:{begin}", "", f"has {len(fields)} fields", mend)
                else:
                    yield Raw(f"{path}:{begin}", dict(zip(header, fields, strict=True)))
        except csv.Error as error:
            raise _FileError(f"{path}:{number}", f"not a valid table: {error}", "look for an unclosed quote from this line on") from None


def _parquet(path: Path, encoding: str | None, longest: int) -> Iterator[Raw | Bad]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield Raw(f"{path}:{number}", row)
    except pyarrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise _FileError(str(path), f"cannot be read as Parquet: {reason}", "write the file anew, or leave it out") from None


READERS: dict[str, Callable[[Path, str | None, int], Iterator[Raw | Bad]]] = {
    ".txt": _plain,
    ".md": _plain,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}
