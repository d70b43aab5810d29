"""N-grams of tokens that pay as tokens of their own: which ones occur, which to take, which tokens to give up for them, their first rows.

Greedy choice by real saving (Nakash et al. 2025, https://arxiv.org/abs/2503.19693): an n-gram of n tokens saves n - 1 tokens wherever it
occurs and no chosen one covers any of it, so counts fall as others are chosen; a lazy heap counts again only what comes to the top.
"""

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Grams:
    """N-grams of one length, ``ids`` [gram, n]; gram g begins at ``places[starts[g]:starts[g + 1]]`` of the corpus."""

    ids: np.ndarray
    starts: np.ndarray
    places: np.ndarray


@dataclass
class Choice:
    """What is swapped, in order: n-grams (tuples of ids) with the tokens each saves, and the tokens given up with what each costs."""

    grams: list[tuple[int, ...]] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    cost: list[int] = field(default_factory=list)


def candidates(ids: np.ndarray, begins: np.ndarray, longest: int, least: int) -> list[Grams]:
    """All n-grams of 2 to ``longest`` tokens that begin and end at borders, at least ``least`` times.

    ids: the corpus [token]; -1 stands where no n-gram may cross (between documents, in the place of special tokens).
    begins: whether a token begins a word [token].

    >>> [found] = candidates(np.array([5, 6, -1, 5, 6]), np.array([1, 0, 1, 1, 0], bool), 3, 2)
    >>> found.ids.tolist(), found.places.tolist()
    ([[5, 6]], [0, 3])
    """
    border = np.append(begins, True)  # a border before each token, and at the end
    border[:-1] |= ids < 0
    base = int(ids.max(initial=0)) + 1
    places = np.flatnonzero(begins & (ids >= 0))
    codes = ids[places].astype(np.int64)
    found = []
    for n in range(2, longest + 1):
        inside = places + n <= len(ids)
        places, codes = places[inside], codes[inside]
        following = ids[places + n - 1]
        places, codes, following = (each[following >= 0] for each in (places, codes, following))
        _, codes, counts = np.unique(codes * base + following, return_inverse=True, return_counts=True)
        often = counts[codes] >= least  # what is rare stays rare with one token more
        places, codes = places[often], codes[often]
        closed = border[places + n]
        order = np.argsort(codes[closed], kind="stable")
        ordered, at = codes[closed][order], places[closed][order]
        starts = np.append(np.flatnonzero(np.diff(ordered, prepend=-1)), len(ordered))
        enough = np.diff(starts) >= least
        kept = np.repeat(enough, np.diff(starts))
        at, starts = at[kept], np.append(0, np.cumsum(np.diff(starts)[enough]))
        if len(at):
            found.append(Grams(ids[at[starts[:-1], None] + np.arange(n)], starts, at))
    return found


def apart(places: np.ndarray, n: int) -> np.ndarray:
    """Of rising places of one n-gram those that do not overlap, taken from left to right.

    >>> apart(np.array([0, 1, 2, 3, 9]), 2).tolist()
    [0, 2, 9]
    """
    if len(places) < 2 or np.diff(places).min() >= n:
        return places
    kept, end = [], -1
    for place in places.tolist():
        if place >= end:
            kept.append(place)
            end = place + n
    return np.array(kept)


class Vocabulary:
    """The tokens that may be given up, cheapest first.

    A token can go if nothing forbids it and no token that stays is made of it; each of its places then takes its two ``halves``.

    counts: how often each token occurs [id]. halves: id -> the two ids whose merge makes it. kept: ids that must stay.
    """

    def __init__(self, counts: np.ndarray, halves: Mapping[int, tuple[int, int]], kept: Collection[int]):
        self.counts, self.halves, self.kept = counts.astype(np.int64).tolist(), halves, set(kept)
        self.gone: set[int] = set()
        self.users = dict.fromkeys(range(len(counts)), 0)
        for pair in halves.values():
            for part in set(pair):
                self.users[part] += 1
        self.heap = [(self.counts[token], token) for token in halves if not self.users[token]]
        heapq.heapify(self.heap)

    def keep(self, tokens: Collection[int]) -> None:
        """These are parts of something chosen."""
        self.kept.update(tokens)

    def cheapest(self, besides: Collection[int] = ()) -> tuple[int, int] | None:
        """(cost in tokens, id) of the next token to give up, None if there is none; ``besides``: ids that must stay as well."""
        aside, found = [], None
        while self.heap:
            if self.heap[0][1] in self.kept or self.heap[0][1] in self.gone:
                heapq.heappop(self.heap)
            elif self.heap[0][1] in besides:
                aside.append(heapq.heappop(self.heap))
            else:
                found = self.heap[0]
                break
        for each in aside:
            heapq.heappush(self.heap, each)
        return found

    def drop(self, token: int) -> None:
        """Give a token up: its halves take its places, and may be the next to go."""
        self.gone.add(token)
        for part in self.halves[token]:
            self.counts[part] += self.counts[token]
        for part in set(self.halves[token]):
            self.users[part] -= 1
            if not self.users[part] and part in self.halves:
                heapq.heappush(self.heap, (self.counts[part], part))


def choose(
    grams: Sequence[Grams],
    size: int,
    most: int,
    vocabulary: Vocabulary,
    least: int = 1,
    allowed: Callable[[tuple[int, ...]], bool] = lambda gram: True,
) -> Choice:
    """Swap tokens for n-grams one by one, the n-gram that saves most first, as long as it saves more than the token given up costs.

    size: tokens of the corpus. most: swaps at most. least: occurrences an n-gram must have that nothing chosen covers.
    allowed: says of a tuple of ids whether it may be a token.
    """
    used = np.zeros(size, bool)
    heap = []  # (- saved tokens, length, number): of equal ones the shorter, then the first
    fresh: dict[tuple[int, int], np.ndarray] = {}
    for number, found in enumerate(grams):
        n = found.ids.shape[1]
        heap += [(-count * (n - 1), number, g) for g, count in enumerate(np.diff(found.starts).tolist())]
    heapq.heapify(heap)
    choice = Choice()
    while heap and len(choice.grams) < most:
        score, number, g = heapq.heappop(heap)
        found = grams[number]
        n = found.ids.shape[1]
        places = fresh.pop((number, g), found.places[found.starts[g] : found.starts[g + 1]])
        free = apart(places[~used[places[:, None] + np.arange(n)].any(1)], n)
        if len(free) < least:
            continue
        if len(free) * (n - 1) < -score:
            fresh[number, g] = free
            heapq.heappush(heap, (-len(free) * (n - 1), number, g))
            continue
        gram = tuple(found.ids[g].tolist())
        if vocabulary.gone.intersection(gram) or not allowed(gram):
            continue
        swap = vocabulary.cheapest(gram)
        if swap is None or swap[0] >= -score:
            break
        vocabulary.keep(gram)
        vocabulary.drop(swap[1])
        used[free[:, None] + np.arange(n)] = True
        choice.grams.append(gram)
        choice.saved.append(-score)
        choice.dropped.append(swap[1])
        choice.cost.append(swap[0])
    return choice


def shares(n: int, beta: float) -> np.ndarray:
    """Weights of the n parts of a new row, proportional to exp(beta i): the end counts most above 0, the beginning below, all alike at 0.

    >>> shares(2, 2.0).round(4).tolist(), shares(2, -2.0).round(4).tolist()
    ([0.1192, 0.8808], [0.8808, 0.1192])
    """
    raised = beta * np.arange(n)
    weights = np.exp(raised - raised.max())
    return weights / weights.sum()


def replaced(ids: Sequence[int], grams: Mapping[tuple[int, ...], int], begins: Sequence[bool] | None = None) -> list[int]:
    """Ids with n-grams in place of their parts, the longest first, from left to right, at borders only where ``begins`` says them.

    >>> replaced([1, 2, 3, 4, 1, 2], {(1, 2): 9, (1, 2, 3): 8})
    [8, 4, 9]
    """
    longest = max(map(len, grams), default=0)
    border = [True] * (len(ids) + 1) if begins is None else [*begins, True]
    found, at = [], 0
    while at < len(ids):
        for n in range(min(longest, len(ids) - at) if border[at] else 0, 1, -1):
            if border[at + n] and (new := grams.get(tuple(ids[at : at + n]))) is not None:
                found.append(new)
                at += n
                break
        else:
            found.append(ids[at])
            at += 1
    return found
