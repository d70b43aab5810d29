"""What is to be tested on and stands in the training text already: spans of 13 words, as GPT-3's authors counted them.

Brown et al. 2020, appendix C, https://arxiv.org/abs/2005.14165. Unlike there, nothing is cut out of a document: one with a hit goes
as a whole, and no span is forgiven for being frequent.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from .splits import WORD, words

BLOCK = 200_000  # words looked up at once
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64


class Grams:
    """The word n-grams of the evaluation texts as 64-bit hashes; memory is bounded by those texts, whatever is searched in them."""

    def __init__(self, texts: Mapping[str, Iterable[str]], ngram: int, shortest: int):
        self.names = list(texts)
        self.ids: dict[str, int] = {}  # word -> number from 1; 0 is every word that no evaluation text has
        by_length: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}  # length in words -> hashes, owners
        self.whole: dict[tuple[int, ...], int] = {}  # texts too short to be searched for inside others -> owner
        for owner, name in enumerate(self.names):
            for text in texts[name]:
                ids = [self.ids.setdefault(word, len(self.ids) + 1) for word in words(text)]
                if not ids:
                    continue
                if len(ids) < shortest:
                    self.whole.setdefault(tuple(ids), owner)
                    continue
                length = min(ngram, len(ids))
                hashes = _hashes(np.array(ids), [length])[length]
                by_length.setdefault(length, []).append((hashes, np.full(len(hashes), owner)))
        self.tables: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for length, found in sorted(by_length.items()):
            hashes, first = np.unique(np.concatenate([each for each, _ in found]), return_index=True)
            self.tables[length] = hashes, np.concatenate([each for _, each in found])[first]

    def hits(self, ids: np.ndarray) -> list[tuple[int, int, int]]:
        """(first word, word after the last, owner) of the stretches of the stream whose n-grams evaluation texts have."""
        if not len(ids):
            return []
        known = np.concatenate([[0], np.cumsum(ids > 0)])
        found: list[tuple[int, int, int]] = []
        for length, hashes in _hashes(ids, list(self.tables)).items():
            table, owners = self.tables[length]
            # only where all words occur in the evaluation texts need the hash be looked up
            places = np.flatnonzero(known[length:] - known[:-length] == length)
            wanted = hashes[places]
            order = np.argsort(wanted)  # neighbours are then found near each other, which is far faster in a large table
            wanted, places = wanted[order], places[order]
            at = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
            hit = table[at] == wanted
            order = np.argsort(places[hit])
            begins, owner = places[hit][order], owners[at[hit]][order]
            if len(begins):
                # a stretch ends where the next match does not touch it or belongs to another set
                cut = np.flatnonzero((begins[1:] > begins[:-1] + length) | (owner[1:] != owner[:-1]))
                first, last = np.append(0, cut + 1), np.append(cut, len(begins) - 1)
                found += zip(begins[first].tolist(), (begins[last] + length).tolist(), owner[first].tolist(), strict=True)
        return sorted(found)


def _hashes(ids: np.ndarray, lengths: list[int]) -> dict[int, np.ndarray]:
    """The hash of every window of each length, from one running sum: sum of value[i] * BASE**i, moved back to the window's start.

    Values are well mixed 64-bit numbers, so two different windows agree with a probability of about 2**-64.
    """
    with np.errstate(over="ignore"):
        values = ids.astype(np.uint64) * np.uint64(0xBF58476D1CE4E5B9)
        values ^= values >> np.uint64(29)
        values *= np.uint64(0x94D049BB133111EB)
        values ^= values >> np.uint64(32)
        powers = np.full(len(ids), BASE, np.uint64)
        powers[:1] = 1
        powers = np.cumprod(powers)
        back = np.full(len(ids), pow(BASE, -1, 2**64), np.uint64)
        back[:1] = 1
        back = np.cumprod(back)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values * powers)])
        return {n: (sums[n:] - sums[:-n]) * back[: len(ids) - n + 1] for n in lengths if n <= len(ids)}


def contamination(
    train: Iterable[tuple[str, str]],
    evaluation: Mapping[str, Iterable[str]],
    *,
    ngram: int = 13,
    shortest: int = 5,
    domain: str = "",
) -> dict[str, Any]:
    """Find evaluation text in training documents.

    ``train`` gives (origin, text) in order, ``evaluation`` the texts to be tested on by name. A document is hit if ``ngram`` words
    in a row (case and punctuation aside) also stand in an evaluation text; an evaluation text with fewer words must occur as a
    whole, and one with fewer than ``shortest`` words must be the whole document, for "Yes, please." occurs everywhere. A text that
    stands in several evaluation sets is reported for the first.

    Returns ``checked`` and ``removed`` (documents), ``spans`` (overlapping matches merged: domain, origin, text, found_in) and
    ``clean``, the indices of the documents without a hit.

    >>> found = contamination([("a:1", "It says: to be or not to be."), ("a:2", "Not so.")], {"plays": ["To be, or not to be!"]})
    >>> found["spans"], found["clean"]
    ([{'domain': '', 'origin': 'a:1', 'text': 'to be or not to be', 'found_in': 'plays'}], [1])
    """
    grams = Grams(evaluation, ngram, shortest)
    spans: list[dict[str, str]] = []
    clean: list[int] = []
    checked = 0
    for block in _blocks(train, grams):
        stream = np.concatenate([np.append(ids, 0) for _, _, ids in block])  # a 0 between two documents: no match spans them
        ends = np.cumsum([len(ids) + 1 for _, _, ids in block])
        matches: list[list[tuple[int, int, int]]] = [[] for _ in block]
        for begin, end, owner in grams.hits(stream):
            number = int(np.searchsorted(ends, begin, "right"))
            start = int(ends[number - 1]) if number else 0
            matches[number].append((begin - start, end - start, owner))
        for (origin, text, ids), found in zip(block, matches, strict=True):
            if len(ids) < shortest and (owner := grams.whole.get(tuple(ids.tolist()), -1)) >= 0:
                found = [(0, len(ids), owner)]
            if not found:
                clean.append(checked)
            else:
                at = [match.span() for match in WORD.finditer(text)]
                for begin, end, owner in _merged(found):
                    excerpt = text[at[begin][0] : at[end - 1][1]]
                    spans.append({"domain": domain, "origin": origin, "text": excerpt, "found_in": grams.names[owner]})
            checked += 1
    return {"checked": checked, "removed": checked - len(clean), "spans": spans, "clean": clean}


def _blocks(train: Iterable[tuple[str, str]], grams: Grams) -> Iterator[list[tuple[str, str, np.ndarray]]]:
    """Documents with their words as numbers, gathered until there are enough to be worth a look."""
    block: list[tuple[str, str, np.ndarray]] = []
    gathered = 0
    get = grams.ids.get
    for origin, text in train:
        ids = np.array([get(word, 0) for word in words(text)], np.int64)
        block.append((origin, text, ids))
        gathered += len(ids)
        if gathered >= BLOCK:
            yield block
            block, gathered = [], 0
    if block:
        yield block


def _merged(found: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Overlapping or touching matches in one evaluation set as one span each."""
    merged: list[tuple[int, int, int]] = []
    for begin, end, owner in sorted(found, key=lambda match: (match[2], match[0])):
        if merged and merged[-1][2] == owner and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]), owner)
        else:
            merged.append((begin, end, owner))
    return sorted(merged)
