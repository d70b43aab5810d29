"""Batches for contrastive training of sentence encoders: no batch holds two rows of one group, and hard negatives keep away from it.

A group is what must not be told apart: rows of one class (labelled text), rows that share a text (pairs), equal texts (plain text).
Batch ``k`` is the same whenever it is asked for.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..domain import Domain
from ..errors import AcclimateError
from ..files import digest
from ..model import Model
from .rows import padded
from .tokens import fingerprint as voice


class SentenceBatches:
    """Anchors with their positives, and negatives where the rows have any or ``mined`` gives them.

    Labelled text: the positive is another text of the class, drawn anew each epoch. Pairs: as given. Plain text: the text itself (with
    dropout, which makes two views of it; Gao et al. 2021).
    """

    def __init__(self, domain: Domain, model: Model, *, batch: int, width: int, seed: int, mine: bool = False, split: str = "train"):
        if domain.form not in ("labelled", "pairs", "text"):
            raise AcclimateError(
                f"sentence encoders learn from labelled text, pairs or text, but domain {domain.name!r} holds {domain.form}"
            )
        rows = domain.rows(split)
        self.domain, self.seed, self.tokenizer, self.width = domain, seed, model.tokenizer, width
        paired = domain.form == "pairs"
        self.anchors = list(rows["anchor" if paired else "text"])
        self.pool = list(rows["positive"]) if paired else self.anchors  # what positives and negatives are drawn from
        self.given = list(rows["negative"]) if paired and "negative" in rows.column_names else None
        self.groups = groups(domain.form, self.anchors, self.pool, list(rows["label"]) if domain.form == "labelled" else [])
        self.usable = self._usable()
        counts = np.unique(self.groups[self.usable], return_counts=True)[1]
        self.mine = mine and domain.form != "text"
        spare = 1 if self.mine or self.given is not None else 0  # a group of which negatives can be
        self.rows = min(batch, len(counts) - spare)
        if self.rows < 2:
            what = {"labelled": "classes of two texts or more", "pairs": "pairs without a text in common", "text": "different texts"}
            raise AcclimateError(
                f"domain {domain.name!r} has {len(counts)} {what[domain.form]} in its {split} split, too few for a contrast; "
                f"{2 + spare} are needed"
            )
        self.per_epoch = max(1, most_batches(counts, self.rows))
        self.order = lru_cache(maxsize=2)(self._order)
        self.views: tuple[Tensor, Tensor] | None = None  # of anchors and pool, for mining; set by who has an encoder
        self.text_groups = dict(zip([*self.anchors, *self.pool], [*self.groups, *self.groups], strict=True))
        self.members = {int(group): np.flatnonzero(self.groups == group) for group in np.unique(self.groups[self.usable])}
        self.key = digest([domain.fingerprint, split, batch, width, seed, mine, voice(self.tokenizer)])

    def _usable(self) -> np.ndarray:
        """Rows that can have a positive; of a class that is one text (even if it stands twice) there is none."""
        if self.domain.form != "labelled":
            return np.arange(len(self.anchors))
        different: dict[int, set[str]] = {}
        for text, group in zip(self.anchors, self.groups, strict=True):
            different.setdefault(int(group), set()).add(text)
        return np.array([i for i, group in enumerate(self.groups) if len(different[int(group)]) > 1], int)

    def _order(self, epoch: int) -> np.ndarray:
        """Rows of each batch of an epoch [batch, row]."""
        return spread(self.groups, self.usable, self.per_epoch, self.rows, np.random.default_rng([self.seed, epoch]))

    def texts(self, k: int) -> list[list[str]]:
        """The texts of batch ``k``: anchors, positives and perhaps negatives, each [row]."""
        epoch, place = divmod(k, self.per_epoch)
        chosen = self.order(epoch)[place]
        draw = np.random.default_rng([self.seed, epoch, place, 1])
        found = [[self.anchors[i] for i in chosen], [self._positive(int(i), draw) for i in chosen]]
        if self.mine or self.given is not None:
            found.append(self._negatives(chosen, draw))
        return found

    def batch(self, k: int) -> dict[str, Any]:
        """The same as ids and mask [side * row, token], with how many ``sides`` there are."""
        sides = self.texts(k)
        ids = self.tokenizer([text for side in sides for text in side], truncation=True, max_length=self.width).input_ids
        return {**padded([np.array(each) for each in ids], self.tokenizer.pad_token_id or 0), "sides": len(sides)}

    def _positive(self, i: int, draw: np.random.Generator) -> str:
        if self.domain.form != "labelled":
            return self.pool[i]
        others = [j for j in self.members[int(self.groups[i])] if self.anchors[j] != self.anchors[i]]
        return self.anchors[int(draw.choice(others))]

    def _negatives(self, chosen: np.ndarray, draw: np.random.Generator) -> list[str]:
        """One for each row, of no group in the batch: the given one, else the nearest, else any."""
        here = set(self.groups[chosen].tolist())
        free = ~np.isin(self.groups, list(here))  # [pool]
        found: list[str | None] = [None] * len(chosen)
        if self.given is not None:
            found = [self.given[i] if self.text_groups.get(self.given[i]) not in here else None for i in chosen]
        missing = [place for place, text in enumerate(found) if text is None]
        if missing and not free.any():
            raise AcclimateError(f"a batch of {len(chosen)} of domain {self.domain.name!r} leaves no text for negatives; lower batch")
        picked = self._nearest(chosen[missing], free) if self.mine else draw.choice(np.flatnonzero(free), len(missing))
        for place, j in zip(missing, picked, strict=True):
            found[place] = self.pool[int(j)]
        return [text for text in found if text is not None]

    def _nearest(self, chosen: np.ndarray, free: np.ndarray) -> list[int]:
        """The nearest free text of each row, each text once while there are enough.

        Of pairs, what is nearly as near as the row's own positive (95 % of its score) may well be right, and is passed over (Moreira et al.
        2024, section 4, https://arxiv.org/abs/2407.15831).
        """
        if self.views is None:
            raise AcclimateError("hard negatives are mined with embeddings; give views of anchors and pool first")
        anchors, pool = self.views
        scores = anchors[chosen] @ pool.T
        barred = torch.from_numpy(~free)[None].expand_as(scores)
        if self.domain.form == "pairs":
            own = (anchors[chosen] * pool[chosen]).sum(1, keepdim=True)
            close = barred | (scores > 0.95 * own)
            barred = torch.where(close.all(1, keepdim=True), barred, close)
        scores = scores.masked_fill(barred, -torch.inf)
        found = []
        taken = torch.zeros(len(pool), dtype=torch.bool)
        for row in scores:
            fresh = row.masked_fill(taken, -torch.inf)
            j = int((fresh if torch.isfinite(fresh).any() else row).argmax())
            taken[j] = True
            found.append(j)
        return found


def groups(form: str, anchors: list[str], pool: list[str], labels: list[Any]) -> np.ndarray:
    """The group of each row [row]: class, or what shared texts connect.

    >>> groups("pairs", ["a", "b", "a", "c"], ["x", "y", "z", "y"], []).tolist()
    [0, 1, 0, 1]
    """
    if form == "labelled":
        return np.unique(labels, return_inverse=True)[1]
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers = {text: i for i, text in enumerate(dict.fromkeys([*anchors, *pool]))}
    ends = [[numbers[text] for text in side] for side in (anchors, pool)]
    links = coo_array((np.ones(len(anchors)), ends), shape=(len(numbers), len(numbers)))
    return connected_components(links, directed=False)[1][ends[0]]


def most_batches(counts: np.ndarray, rows: int) -> int:
    """How many batches of ``rows`` different groups can be filled from groups of these sizes.

    >>> most_batches(np.array([5, 2, 1]), 2), most_batches(np.array([1, 1, 1, 1, 1]), 2)
    (3, 2)
    """
    low, high = 0, int(counts.sum()) // rows
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(counts, middle).sum() >= middle * rows else (low, middle - 1)
    return low


def spread(groups: np.ndarray, usable: np.ndarray, batches: int, rows: int, draw: np.random.Generator) -> np.ndarray:
    """Batches without two rows of a group [batch, row], in random order: of each group at most one row per batch is used.

    Rows stand group by group, and are dealt to the batches in turn (McNaughton's wrap-around rule), so none gets two of a group.

    >>> found = spread(np.array([0, 0, 0, 1, 1, 2]), np.arange(6), 3, 2, np.random.default_rng(0))
    >>> [sorted(np.array([0, 0, 0, 1, 1, 2])[row].tolist()) for row in found]
    [[0, 2], [0, 1], [0, 1]]
    """
    shuffled = draw.permutation(usable)
    rank = draw.permutation(int(groups.max()) + 1)[groups[shuffled]]
    by_group = shuffled[np.argsort(rank, kind="stable")]
    _, first = np.unique(groups[by_group], return_index=True)
    start = np.zeros(int(groups.max()) + 1, int)
    start[groups[by_group[first]]] = first
    kept = np.flatnonzero(np.arange(len(by_group)) - start[groups[by_group]] < batches)
    kept = np.sort(draw.choice(kept, batches * rows, replace=False))
    return by_group[kept].reshape(rows, batches).T[draw.permutation(batches)]
