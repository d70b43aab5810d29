"""Two tokenizers on one text: which tokens belong together, which ids mean the same, and distributions carried from one to the other.

The way of FuseLLM (Wan et al. 2024, section 3.2, https://arxiv.org/abs/2401.10491): dynamic programming over the edit distances between
tokens gives a warping path, so one token may meet one, several may meet one, and one may meet several. All is pure; tokens are text.
"""

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np

TINY = -60.0  # log-probability that stands for nothing, finite in half precision
Distribution = tuple[np.ndarray, np.ndarray]  # ids [position, K], no id twice in a row; log-probabilities [position, K] that sum to 1


@cache
def _bytes() -> dict[str, int]:
    """The character that byte-level tokenizers print for each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def spellings(tokens: Sequence[str]) -> list[str]:
    """The text that each token of a vocabulary stands for, as UTF-8 with one character per byte: tokens may end inside a character.

    >>> spellings(["Ġthe", "Ċ", "Ã©"]) == [" the", "\\n", "é".encode().decode("latin-1")]
    True
    >>> spellings(["▁the", "<0x0A>", "é"]) == [" the", "\\n", "é".encode().decode("latin-1")]
    True
    """
    byte_level = any("Ġ" in token for token in tokens)
    found = []
    for token in tokens:
        if byte_level and all(char in _bytes() for char in token):
            found.append("".join(chr(_bytes()[char]) for char in token))
        elif token.startswith("<0x") and token.endswith(">") and len(token) == 6:
            found.append(chr(int(token[3:5], 16)))
        else:
            found.append(token.replace("▁", " ").encode().decode("latin-1"))
    return found


@lru_cache(maxsize=200_000)
def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and substitutions from one word to the other.

    >>> edit_distance("kitten", "sitting")
    3
    """
    row = list(range(len(b) + 1))
    for i, char in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (char != other))
    return row[-1]


def warp(source: Sequence[str], target: Sequence[str]) -> list[tuple[int, int]]:
    """The cheapest path that pairs every source token with a target token and the reverse, in order: (source, target) places.

    The cost is the sum of the edit distances of the pairs.

    >>> warp(["of", "play", "ing"], ["of", "playing"]), warp(["on"], ["o", "n"])
    ([(0, 0), (1, 1), (2, 1)], [(0, 0), (0, 1)])
    """
    if not source or not target:
        return []
    cost = np.array([[edit_distance(a, b) for b in target] for a in source], float)
    total = np.full(cost.shape, np.inf)
    for i in range(len(source)):
        for j in range(len(target)):
            before = [total[i - 1, j - 1] if i and j else np.inf, total[i - 1, j] if i else np.inf, total[i, j - 1] if j else np.inf]
            total[i, j] = cost[i, j] + (min(before) if i or j else 0.0)
    i, j = len(source) - 1, len(target) - 1
    path = [(i, j)]
    while i or j:
        steps = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        i, j = min((step for step in steps if min(step) >= 0), key=lambda step: total[step])
        path.append((i, j))
    return path[::-1]


def align(source: Sequence[str], target: Sequence[str]) -> list[tuple[int, int]]:
    """``warp`` in linear time for two cuts of one text: tokens between two borders that both cuts share belong together.

    >>> align(["a", " bc", " def"], ["a", " b", "c", " def"])
    [(0, 0), (1, 1), (1, 2), (2, 3)]
    """
    source, target = list(source), list(target)
    if source and target and source[0][:1] != target[0][:1]:  # some tokenizers put a space before the text
        source[0], target[0] = source[0].lstrip(), target[0].lstrip()
    if "".join(source) != "".join(target):
        return warp(source, target)
    here, there = (np.cumsum([len(token) for token in side]) for side in (source, target))
    path, i, j = [], 0, 0
    for border in np.intersect1d(here, there):
        k, m = (int(np.searchsorted(ends, border, side="right")) for ends in (here, there))
        some = [(i, j)] if k - i == m - j == 1 else warp(source[i:k], target[j:m])
        path += some if (k - i, m - j) == (1, 1) else [(a + i, b + j) for a, b in some]
        i, j = k, m
    return path


def partners(path: list[tuple[int, int]], targets: int) -> list[list[int]]:
    """The source places that belong to each target place.

    >>> partners([(0, 0), (1, 0), (2, 1), (2, 2)], 4)
    [[0, 1], [2], [2], []]
    """
    found: list[list[int]] = [[] for _ in range(targets)]
    for i, j in path:
        found[j].append(i)
    return found


def relations(path: list[tuple[int, int]], source: Sequence[str], target: Sequence[str]) -> dict[str, int]:
    """How many target tokens are met in which way: ``exact`` (one by one, equal), ``1-1``, ``1-n``, ``n-1`` (source-target), ``n-n``.

    >>> relations([(0, 0), (1, 0), (2, 1), (2, 2)], ["play", "ing", " on"], ["playing", " o", "n"])
    {'exact': 0, '1-1': 0, '1-n': 2, 'n-1': 1, 'n-n': 0}
    """
    many = np.bincount([i for i, _ in path], minlength=len(source))
    found = dict.fromkeys(("exact", "1-1", "1-n", "n-1", "n-n"), 0)
    for j, places in enumerate(partners(path, len(target))):
        if not places:
            continue
        shared = max(many[i] for i in places) > 1
        if len(places) == 1 and not shared:
            found["exact" if source[places[0]] == target[j] else "1-1"] += 1
        else:
            found["n-n" if len(places) > 1 and shared else "n-1" if len(places) > 1 else "1-n"] += 1
    return found


class Vocabulary:
    """Source ids to target ids: the equal string, else the nearest by edit distance if it is similar enough, else -1.

    Similarity is 1 - distance / length of the longer string. ``special`` pairs ids that no string matches (begin, end).

    >>> Vocabulary([" cat", "dogs", "xyz"], ["dog", " cat"], 0.7).of(np.array([0, 1, 2])).tolist()
    [1, 0, -1]
    """

    def __init__(self, source: Sequence[str], target: Sequence[str], threshold: float, special: dict[int, int] | None = None):
        self.source, self.target, self.threshold = list(source), list(target), threshold
        ids: dict[str, int] = {}
        for i, token in enumerate(self.target):
            ids.setdefault(token, i)
        self.lengths = np.array([len(token) for token in self.target])
        codes = np.full((len(self.target), int(self.lengths.max(initial=1))), -1)
        for i, token in enumerate(self.target):
            codes[i, : len(token)] = [ord(char) for char in token]
        self.codes = codes
        self.found = np.array([ids.get(token, -2) for token in self.source])  # -2: not looked for yet
        for i, j in (special or {}).items():
            self.found[i] = j

    def of(self, ids: np.ndarray) -> np.ndarray:
        """Target ids of some source ids, -1 for none."""
        for i in np.unique(ids[self.found[ids] == -2]):
            self.found[i] = self._nearest(self.source[i])
        return self.found[ids]

    def _nearest(self, word: str) -> int:
        longest = np.maximum(self.lengths, len(word))
        near = np.flatnonzero(np.abs(self.lengths - len(word)) <= (1 - self.threshold) * longest)
        if not len(near) or not word:
            return -1
        codes = self.codes[near]
        row = np.tile(np.arange(codes.shape[1] + 1), (len(near), 1))
        for i, char in enumerate(word, 1):
            before = row.copy()
            row[:, 0] = i
            for j in range(1, row.shape[1]):
                row[:, j] = np.minimum(np.minimum(before[:, j], row[:, j - 1]) + 1, before[:, j - 1] + (codes[:, j - 1] != ord(char)))
        similar = 1 - row[np.arange(len(near)), self.lengths[near]] / longest[near]
        best = int(similar.argmax())
        return int(near[best]) if similar[best] >= self.threshold else -1


def carry(ids: np.ndarray, logprobs: np.ndarray, places: list[list[int]], vocabulary: Vocabulary) -> tuple[Distribution, np.ndarray]:
    """Distributions over source tokens [source place, K] as ones over target tokens, per target place; and what share could be carried.

    A target place with several source places gets their mean. Ids that mean nothing to the target are dropped, the rest is renormalised;
    where nothing is left the share is 0 and the row means nothing. Shares [target place] are of the K tokens' own mass.
    """
    k = ids.shape[1]
    mapped = vocabulary.of(ids)
    probabilities = np.where(mapped >= 0, np.exp(logprobs), 0.0)
    new, found = np.zeros((len(places), k), np.int64), np.full((len(places), k), TINY)
    whole, share_carried = np.exp(logprobs).sum(1), np.zeros(len(places))
    for j, some in enumerate(places):
        totals: dict[int, float] = {}
        for i in some:
            for token, share in zip(mapped[i].tolist(), probabilities[i].tolist(), strict=True):
                if share > 0:
                    totals[token] = totals.get(token, 0.0) + share / len(some)
        share_carried[j] = sum(totals.values()) * len(some) / whole[some].sum() if some else 0.0
        new[j], found[j] = _row(totals, k)
    return (new, found), share_carried


def _row(totals: dict[int, float], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k likeliest of some ids, renormalised; filled up with other ids of no probability."""
    best = sorted(totals.items(), key=lambda item: (-item[1], item[0]))[:k]
    ids = [token for token, _ in best]
    whole = sum(share for _, share in best)
    logprobs = [max(np.log(share / whole), TINY) for _, share in best]
    spare = 0
    while len(ids) < k:
        if spare not in ids:
            ids.append(spare)
            logprobs.append(TINY)
        spare += 1
    return np.array(ids), np.array(logprobs)


def fuse(pivot: Distribution, source: Distribution, share: np.ndarray) -> Distribution:
    """One distribution per position: ``share`` [position] of the source's, the rest of the pivot's (0 and 1 choose one: MinCE).

    >>> both = fuse((np.array([[3, 1]]), np.log([[0.5, 0.5]])), (np.array([[1, 4]]), np.log([[0.8, 0.2]])), np.array([0.5]))
    >>> both[0].tolist(), np.exp(both[1]).round(4).tolist()  # 0.25 + 0.4 for token 1, 0.25 for 3; 4 falls out
    ([[1, 3]], [[0.7222, 0.2778]])
    """
    ids, logprobs = pivot[0].copy(), pivot[1].copy()
    for j in np.flatnonzero(share > 0):
        if share[j] == 1:
            ids[j], logprobs[j] = source[0][j], source[1][j]
            continue
        totals: dict[int, float] = {}
        for (side, values), part in ((pivot, 1 - share[j]), (source, share[j])):
            for token, logprob in zip(side[j].tolist(), values[j].tolist(), strict=True):
                if logprob > TINY:
                    totals[token] = totals.get(token, 0.0) + part * float(np.exp(logprob))
        ids[j], logprobs[j] = _row(totals, ids.shape[1])
    return ids, logprobs


def source_share(pivot: np.ndarray, source: np.ndarray, how: str) -> np.ndarray:
    """The source's share in the fused distribution, from the cross-entropies of both on the gold text (in nats, in one unit).

    >>> source_share(np.array([2.0, 1.0]), np.array([1.0, 2.0]), "min_ce").tolist()
    [1.0, 0.0]
    >>> source_share(np.array([2.0]), np.array([1.0]), "avg_ce").round(4).tolist()  # 1 / (1 + e^-1)
    [0.7311]
    """
    if how == "min_ce":
        return (source < pivot).astype(float)
    return 1 / (1 + np.exp(np.clip(source - pivot, -50, 50)))
