"""Cutting long texts to passages, dividing them into splits and keeping the rows, shared by the loaders."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..domain import splits as partition
from ..domain.forms import Row
from ..files import atomic_dir, cache_dir, digest, file_digest, read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset

CUTS = (r"\n[ \t]*\n\s*", r"\n", r"(?<=[.!?;])\s+", r"\s+")  # paragraph, line, sentence, word


def _pieces(text: str, high: int, cuts: tuple[str, ...] = CUTS) -> Iterable[str]:
    """Pieces of at most ``high`` characters that join to ``text`` again, cut as coarsely as the length allows."""
    if len(text) <= high:
        yield text
    elif not cuts:
        yield from (text[i : i + high] for i in range(0, len(text), high))
    else:
        start = 0
        for match in re.finditer(cuts[0], text):
            yield from _pieces(text[start : match.end()], high, cuts[1:])
            start = match.end()
        if start < len(text):
            yield from _pieces(text[start:], high, cuts[1:])


def passages(text: str, low: int = 2000, high: int = 4000) -> list[tuple[int, str]]:
    """Cut a text at paragraph ends (else line, sentence or word ends) to passages of about ``low`` to ``high`` characters.

    Returns (line number from 1, passage) in order. Only the last may be shorter than ``low``, or any where a long piece follows.

    >>> passages("one.\\n\\ntwo two.\\n\\nthree.", low=5, high=12)
    [(1, 'one.'), (3, 'two two.'), (5, 'three.')]
    """
    found: list[tuple[int, str]] = []
    now, start, line = "", 1, 1
    for piece in _pieces(text, high):
        if now and (len(now) >= low or len(now) + len(piece) > high):
            found.append((start, now))
            now = ""
        if not now:
            start = line + len(piece) - len(piece.lstrip("\n"))
        now += piece
        line += piece.count("\n")
    if found and len(now) < low // 2 and len(found[-1][1]) + len(now) <= high:
        now, start = found[-1][1] + now, found.pop()[0]
    return [(at, part.strip()) for at, part in [*found, (start, now)] if part.strip()]


def by_order(sizes: list[int], validation: float, test: float) -> list[str]:
    """The split of each unit in order: the last share ``test`` of the bytes, the share ``validation`` before it, the rest train.

    >>> by_order([10] * 10, 0.1, 0.2)[-4:]
    ['train', 'validation', 'test', 'test']
    """
    total, before, splits = sum(sizes), 0, []
    for size in sizes:
        middle = before + size / 2
        splits.append("test" if middle > total * (1 - test) else "validation" if middle > total * (1 - test - validation) else "train")
        before += size
    return splits


def read(path: Path) -> str:
    """A text file with line ends as newlines: UTF-8, or Latin-1 where it is not valid UTF-8."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def table(rows: list[tuple[str, dict[str, Any]]]) -> "Dataset":
    """(origin, values) pairs as Arrow rows: id (the content hash of the values), origin, and one column per value."""
    from datasets import Dataset

    columns = list(rows[0][1]) if rows else []
    return Dataset.from_dict(
        {
            "id": [digest(values) for _, values in rows],
            "origin": [origin for origin, _ in rows],
            **{column: [values[column] for _, values in rows] for column in columns},
        }
    )


def text_rows(rows: list[tuple[str, str]]) -> "Dataset":
    """(origin, text) pairs as Arrow rows with the columns id, origin and text."""
    return table([(origin, {"text": text}) for origin, text in rows])


def divided(name: str, paths: list[Path], code: str, build: Callable[[], list[tuple[str, str]]]) -> dict[str, Any]:
    """The splits, by content, of the (origin, text) rows that ``build`` makes of ``paths``, and how many rows were dropped as repeats.

    Kept in the cache and memory-mapped from there; made anew where one of the files or of the code changed. ``code`` is the path of the
    module that builds (``__file__``). Raises AcclimateError where there are too few rows to divide.
    """
    import pyarrow as pa
    from datasets import Dataset

    makers = (Path(code), Path(__file__), Path(partition.__file__))
    facts: list[Any] = [name, [file_digest(path) for path in makers]]
    facts += [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]
    folder = cache_dir("datasets") / f"{name.replace('/', '-')}-{digest(facts)}"
    if not folder.exists():
        rows = [Row("text", {"text": text}, origin) for origin, text in build()]
        parts, dropped = partition.divide(rows, (0.8, 0.1, 0.1), 0.8, name)
        with atomic_dir(folder) as temporary:
            write_json(temporary / "dropped.json", dropped)
            for split, these in parts.items():
                arrow = text_rows([(row.origin, row.values["text"]) for row in these]).data.table
                with pa.OSFile(str(temporary / f"{split}.arrow"), "wb") as sink, pa.ipc.new_stream(sink, arrow.schema) as writer:
                    writer.write_table(arrow)
    splits = {split: Dataset.from_file(str(folder / f"{split}.arrow")) for split in partition.NAMES}
    return {"splits": splits, "dropped": read_json(folder / "dropped.json")}


def new_paragraphs(paragraphs: list[str], seen: set[int]) -> list[str]:
    """Those paragraphs of which at most half the runs of eight words stand in ``seen``, which learns the runs of all.

    A paragraph of fewer than eight words goes with the one before it.

    >>> new_paragraphs(["a b c d e f g h i j", "Short.", "A b c d e f g h i k", "Short too."], set())
    ['a b c d e f g h i j', 'Short.']
    """
    fresh, keep = [], True
    for paragraph in paragraphs:
        words = re.findall(r"\w+", paragraph.lower())
        runs = {hash(tuple(words[i : i + 8])) for i in range(len(words) - 7)}
        if runs:
            keep = 2 * len(runs & seen) <= len(runs)
            seen |= runs
        if keep:
            fresh.append(paragraph)
    return fresh
