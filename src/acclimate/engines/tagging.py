"""Tagging: words of sentences get a tag each (named entities), read at the first token of every word.

As in Devlin et al. 2019, section 5.3, https://arxiv.org/abs/1810.04805: a linear layer on the last states; other tokens of a word have no
label. Measured by F1 of whole entities. The head may be an adapter's own (``put_head``), and is then saved with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..domain import Domain
from ..errors import AcclimateError
from ..files import digest
from ..model import Injected, Model
from ..model.adapter_heads import Head, made
from ..models.classifier import batches, lengths
from ..parts.entities import entity_f1
from .forward import autocast
from .staged import Fitted, Stage, Term, evaluating, fit
from .terms import Body, Turns, padded_ids

NONE = -100  # no word begins at this token


@dataclass
class Sentences:
    """Words of sentences [sentence][word], and their tags (O, B-type, I-type)."""

    words: Sequence[Sequence[str]]
    tags: Sequence[Sequence[str]]

    @classmethod
    def of(cls, domain: Domain, split: str) -> "Sentences":
        """A split of a domain whose rows have words and tags. Raises AcclimateError where they do not, or not one tag for each word."""
        rows = domain.rows(split)
        if not {"words", "tags"} <= set(rows.column_names):
            raise AcclimateError(f"{domain.name}: rows have no columns words and tags, which tagging learns from; see datasets/crossner.py")
        for origin, words, tags in zip(rows["origin"], rows["words"], rows["tags"], strict=True):
            if len(words) != len(tags):
                raise AcclimateError(f"{origin}: {len(words)} words have {len(tags)} tags; give each word one")
        return cls(list(rows["words"]), list(rows["tags"]))

    @property
    def labels(self) -> list[str]:
        """The tags that occur, O first, the others by type."""
        found = {tag for tags in self.tags for tag in tags} - {"O"}
        return ["O", *sorted(found, key=lambda tag: (tag[2:], tag[:1]))]


def aligned(tokenizer: Any, words: Sequence[str], width: int) -> tuple[list[int], list[int]]:
    """Ids of a sentence's words with spaces between them, cut to ``width``, and the place of each word's first token (-1: cut off)."""
    if not tokenizer.is_fast:
        raise AcclimateError("tags are brought to tokens by character positions, which needs a fast tokenizer")
    found = tokenizer(" ".join(words), truncation=True, max_length=width, return_offsets_mapping=True, return_special_tokens_mask=True)
    places, start, token = [], 0, 0
    spans, special = found.offset_mapping, found.special_tokens_mask
    for word in words:
        end = start + len(word)
        while token < len(spans) and (special[token] or spans[token][1] <= start or spans[token][0] == spans[token][1]):
            token += 1
        mine = token < len(spans) and spans[token][0] < end
        places.append(token if mine else -1)
        token += mine
        start = end + 1
    return list(found.input_ids), places


class Tagger(nn.Module):
    """An encoder (or a decoder) with a tagging head: ids and mask [row, token] -> scores [row, token, label]."""

    def __init__(self, head: Head, body: nn.Module):
        super().__init__()
        self.head, self.encoder = head, body  # the head first: where it is an adapter's own, this is the name of its weights

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores."""
        return self.head(self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state, attention_mask)


@dataclass
class Tagged:
    """A trained tagger, scores of the test sentences (0 to 1), and the course of the stage."""

    net: Tagger
    scores: dict[str, float]  # precision, recall, f1 of whole entities; dev_f1
    fitted: Fitted


def tagger(model: Model, labels: Sequence[str] = (), seed: int = 0) -> Tagger:
    """The model with the tagging head of its active adapter; without such a head with a fresh one for ``labels``.

    A fresh head becomes the active adapter's own, where just one of our adapters is active.
    """
    net, name = model.net, getattr(model.net, "active", None)
    if isinstance(net, Injected) and isinstance(name, str):
        head: Any = dict(net.heads.items()).get(name)
        if head is None or head.kind != "tagging":
            head = net.put_head(name, "tagging", labels, seed=seed).heads[name]
        elif labels and head.labels != list(labels):
            raise AcclimateError(f"the head of adapter {name!r} has other labels ({', '.join(head.labels[:5])} ...); give it a new one")
    else:
        head = made(net, "tagging", labels, "mean", seed).to(model.device)
    return Tagger(head, Body(net))


def tags_of(model: Model, net: Tagger, words: Sequence[Sequence[str]], *, rows: int = 64, width: int = 128) -> list[list[str]]:
    """The likeliest tag of every word [sentence][word]; O for words that are cut off."""
    coded = [aligned(model.tokenizer, sentence, width) for sentence in words]
    found: list[list[str]] = [[] for _ in words]
    with evaluating(net), torch.no_grad():
        for chosen in batches(lengths([ids for ids, _ in coded]), rows):
            batch = padded_ids(model, (coded[i][0] for i in chosen))
            best = net(**batch).argmax(-1).cpu().numpy()
            for i, row in zip(chosen, best, strict=True):
                found[i] = [net.head.labels[row[place]] if place >= 0 else "O" for place in coded[i][1]]
    return found


def tag(
    model: Model,
    sets: dict[str, Sentences],
    rates: dict[str, float],
    stage: Stage,
    *,
    rows: int = 16,
    width: int = 128,
    seed: int = 0,
    folder: Path | None = None,
) -> Tagged:
    """Train a tagging head and what ``rates`` names (by patterns of names; the head's is ``head``); sets: train, validation and test.

    The weights kept are those of the best F1 on the validation sentences.
    """
    labels = Sentences([], [tags for part in sets.values() for tags in part.tags]).labels
    net = tagger(model, labels, seed).to(model.device)
    number = {label: i for i, label in enumerate(labels)}
    coded = [aligned(model.tokenizer, words, width) for words in sets["train"].words]
    answers = []
    for (ids, places), tags in zip(coded, sets["train"].tags, strict=True):
        row = np.full(len(ids), NONE)
        for place, each in zip(places, tags, strict=True):
            if place >= 0:
                row[place] = number[each]
        answers.append(row)
    turns = Turns(lengths([ids for ids, _ in coded]), rows, seed)

    def loss(step: int) -> Tensor:
        chosen = turns[step]
        scores = net(**padded_ids(model, (coded[i][0] for i in chosen)))
        wanted = torch.full(scores.shape[:2], NONE)
        for at, i in enumerate(chosen):
            wanted[at, : len(answers[i])] = torch.from_numpy(answers[i])
        return functional.cross_entropy(scores.flatten(0, 1).float(), wanted.flatten().to(scores.device), ignore_index=NONE)

    def score(split: str) -> dict[str, float]:
        with autocast(model.device, stage.precision):
            return entity_f1(sets[split].tags, tags_of(model, net, sets[split].words, rows=4 * rows, width=width))

    key = digest([[ids for ids, _ in coded], [row.tolist() for row in answers], rows, seed])
    named = {r"^head\." if pattern == "head" else pattern: rate for pattern, rate in rates.items()}
    fitted = fit(net, {"tags": Term(loss, 1.0, key)}, named, stage, score=lambda: score("validation")["f1"], folder=folder)
    return Tagged(net, {**score("test"), "dev_f1": max(value for _, value in fitted.looks)}, fitted)
