"""Dividing rows into train, validation and test so that nothing learned from is tested on.

A row's split depends on its own content alone; exact duplicates are dropped, and rows of train that nearly repeat a row of
validation or test are dropped too (MinHash candidates, Broder 1997, checked by their exact Jaccard similarity).
"""

import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from .. import progress
from ..errors import AcclimateError
from . import forms
from .forms import Row

NAMES = ("train", "validation", "test")
FEWEST = 10  # documents that can be divided
SHINGLE = 5  # words
PERMUTATIONS = 128
MISSED = 0.01  # the share of pairs at the threshold that the search may miss
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese and Japanese set no spaces: a character counts as a word
WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")


def normalise(text: str) -> str:
    """Text without differences of case and white space."""
    return " ".join(text.split()).casefold()


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation.

    >>> words("Section 3(1): the Minister's 法律")
    ['section', '3', '1', 'the', 'minister', 's', '法', '律']
    """
    return [word.lower() for word in WORD.findall(text)]


def place(text: str, shares: Sequence[float] = (0.8, 0.1, 0.1)) -> str:
    """The split of a text by its own hash; ``shares`` are those of train, validation, test.

    The test split lies at the low end, so other shares of train and validation leave it as it is.

    >>> place("The Act."), place(" the  act. ")
    ('train', 'train')
    """
    number = int.from_bytes(sha256(normalise(text).encode()).digest()[:8], "big") / 2**64  # [0, 1)
    _, validation, test = shares
    return "test" if number < test else "validation" if number < test + validation else "train"


def divide(rows: list[Row], shares: Sequence[float], near: float | None, name: str) -> tuple[dict[str, list[Row]], dict[str, int]]:
    """Rows by split, and how many were dropped as exact and as near duplicates.

    Rows whose ``split`` is set keep it, and then only train loses rows. Raises AcclimateError where there is too little to divide.
    """
    given = any(row.split for row in rows)
    splits: dict[str, list[Row]] = {}
    if given:
        for row in rows:
            splits.setdefault(row.split, []).append(row)
    else:
        files = {row.document for row in rows if row.document}
        whole = len(files) >= FEWEST  # then a file stays whole; with fewer files its passages are divided
        keys = [row.document if whole and row.document else forms.stem(row.form, row.values) for row in rows]
        units = len({normalise(key) for key in keys})
        if units < FEWEST:
            raise AcclimateError(
                f"domain {name!r} is too small to split: {units} distinct {_STEMS[rows[0].form]}, at least {FEWEST} are needed; "
                "add some, or give the splits yourself in files named train, validation and test"
            )
        splits = {split: [] for split, share in zip(NAMES, shares, strict=True) if share > 0}
        for row, key in zip(rows, keys, strict=True):
            splits[place(key, shares)].append(row)
    exact = _drop_exact(splits, given)
    _check_filled(splits, name, given, "")
    dropped = {"exact": exact, "near": 0}
    if near is not None and "train" in splits:
        tested = [row for split, these in splits.items() if split != "train" for row in these]
        repeats = near_duplicates(_texts(splits["train"]), _texts(tested), near)
        splits["train"] = [row for row, repeat in zip(splits["train"], repeats, strict=True) if not repeat]
        dropped["near"] = sum(repeats)
        _check_filled(splits, name, given, f" after {dropped['near']} near-duplicates were dropped")
    return splits, dropped


_STEMS = {
    "text": "document(s)",
    "messages": "prompt(s)",
    "preference": "prompt(s)",
    "labelled": "text(s)",
    "pairs": "anchor(s)",
}  # facts are not split


def _texts(rows: list[Row]) -> list[str]:
    return [forms.plain(row.form, row.values) for row in rows]


def _content(value: Any) -> str:
    """All text of a canonical row, normalised, its parts kept apart."""
    if isinstance(value, str):
        return normalise(value)
    if isinstance(value, int):
        return str(value)
    return "\x1f".join(map(_content, value.values() if isinstance(value, dict) else value))


def _drop_exact(splits: dict[str, list[Row]], given: bool) -> int:
    """Keep the first of equal rows, a tested one before one of train; splits that were given lose nothing but in train."""
    seen: set[bytes] = set()
    dropped = 0
    for split in sorted(splits, key=lambda split: {"test": 0, "validation": 1, "train": 3}.get(split, 2)):
        kept = []
        for row in splits[split]:
            key = sha256(_content(row.values).encode()).digest()
            if key not in seen or (given and split != "train"):
                kept.append(row)
            seen.add(key)
        dropped += len(splits[split]) - len(kept)
        splits[split] = kept
    return dropped


def _check_filled(splits: dict[str, list[Row]], name: str, given: bool, why: str) -> None:
    empty = [split for split, rows in splits.items() if not rows]
    if empty and given:
        raise AcclimateError(f"domain {name!r}: every row of train also stands in a split to be tested on{why}; train on other rows")
    if empty:
        total = sum(map(len, splits.values()))
        raise AcclimateError(
            f"domain {name!r} is too small to split: {total} rows leave {' and '.join(empty)} empty{why}; "
            "add documents, pass other shares (0 leaves a split out), or give the splits yourself in files named train, validation and test"
        )


def near_duplicates(texts: Sequence[str], against: Sequence[str], threshold: float = 0.8) -> list[bool]:
    """For each text, whether its set of five-word shingles has at least ``threshold`` Jaccard similarity with one of ``against``.

    Candidates come from MinHash (128 permutations) and locality-sensitive hashing, so a pair at the very threshold is missed with
    a probability of at most 1 %; what is reported was computed exactly.

    >>> near_duplicates(["a b c d e f g h i j k l", "z"], ["A, b, c, d, e, f, g, h, i, j, k, m!"], 0.7)
    [True, False]
    """
    if not against or not texts:
        return [False] * len(texts)
    import numpy as np
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, num_bands=_bands(threshold))
    tested: list[np.ndarray] = []  # hashes of each text's shingles, sorted
    for block in _blocks(against):
        shingles = [_shingles(text) for text in block]
        index.insert_many(RMinHash.from_token_sets(shingles, num_perm=PERMUTATIONS, seed=1), start_key=len(tested))
        tested += [np.unique(np.array(hashes, np.uint64)) for hashes in RMinHash.hash_token_sets(shingles)]
    found = []
    for block in progress.bar(list(_blocks(texts)), "near-duplicates", unit="k rows"):
        shingles = [_shingles(text) for text in block]
        candidates = index.query_all(RMinHash.from_token_sets(shingles, num_perm=PERMUTATIONS, seed=1))
        for own, keys in zip(shingles, candidates, strict=True):
            mine = np.unique(np.array(RMinHash.hash_token_sets([own])[0], np.uint64)) if keys else None
            found.append(mine is not None and any(_jaccard(mine, tested[key], threshold) >= threshold for key in keys))
    return found


def _shingles(text: str) -> list[str]:
    found = words(text)
    if not found:
        return []
    return [" ".join(found[i : i + SHINGLE]) for i in range(max(1, len(found) - SHINGLE + 1))]


def _jaccard(first: Any, second: Any, least: float) -> float:
    """The similarity of two sorted arrays, or 0 where it must lie below ``least``."""
    import numpy as np

    small, large = sorted((len(first), len(second)))
    if small < least * large or large == 0:
        return 0.0  # sets so unequal in size cannot be alike enough; and no words at all: nothing to compare
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (small + large - common)


def _bands(threshold: float) -> int:
    """The fewest bands that find a pair at the threshold with probability 1 - MISSED: it is found if any band agrees in all its rows."""
    for bands in (1, 2, 4, 8, 16, 32, 64):
        if (1 - threshold ** (PERMUTATIONS // bands)) ** bands <= MISSED:
            return bands
    return PERMUTATIONS


def _blocks(texts: Sequence[str], size: int = 1000) -> Iterable[Sequence[str]]:
    return (texts[i : i + size] for i in range(0, len(texts), size))
