"""Vocabulary extension: trains a tokenizer on the domain and adds its tokens that are new, with rows made of their pieces.

Liu et al. 2023 (ChipNeMo), section 2.1, https://arxiv.org/abs/2311.00176
Use where the domain has words of its own and there is text enough to train the new rows; the model grows, and nothing it had is lost. For
a vocabulary of the same size, and tokens of several words, take adapti_vocab. A new token's row of the embedding is the mean of its
pieces' rows, its row of the output layer zero; where both are one table they get a table each. Then some or all weights are tuned.
The number of tokens and the tuned weights are choices (the paper adds some nine thousand and trains everything on billions of tokens).
Left out: the paper's look at general text, which keeps new tokens that are rare there; here all new ones count, the most frequent first.

>>> VocabularyExtension().weights(4)
(array([0.25, 0.25, 0.25, 0.25]), array([0., 0., 0., 0.]))
>>> VocabularyExtension.joined(["a", "b", "c", "a", "b"], {("a", "b"): 0, ("ab", "c"): 1}), VocabularyExtension().tokens
(['abc', 'ab'], 1000)
"""

import dataclasses
from itertools import pairwise
from typing import Annotated, Any

import numpy as np

from ...engines.new_tokens import NewTokens, count, domain_merges, fits, rules, spelling
from ...errors import AcclimateError
from ...method import Setting
from ._vocabulary import VocabularyMethod


class VocabularyExtension(VocabularyMethod):
    """New tokens get the ids behind the old ones; the tables grow by as many rows."""

    tokens: Annotated[int, Setting("tokens that are added at most, beside terms", 0)] = 1000
    size: Annotated[int, Setting("tokens of the tokenizer that is trained on the domain; 0 = as many as the model's own has", 0)] = 0
    least: Annotated[int, Setting("occurrences that a pair must have to become a token of it", 1)] = 10
    terms: Annotated[list[str], Setting("words that are to become tokens in any case, as they stand in text: ' plaintiff'")] = (
        dataclasses.field(default_factory=list)
    )
    tied: Annotated[
        str, Setting("where input and output share a table: the input's row for both, or a table for each", choices=("input", "untie"))
    ] = "untie"

    def fit(self, model: Any, tokenizer: Any, domain: Any) -> NewTokens:
        """The extended tokenizer with the pieces of its new tokens; ``report`` counts tokens of the training text before and after."""
        fits(model, tokenizer)
        vocabulary = rules(tokenizer)["model"]["vocab"]
        terms = [spelling(tokenizer, term) for term in self.terms]
        if known := [term for term, token in zip(self.terms, terms, strict=True) if token in vocabulary]:
            more = f" and {len(known) - 1} more are" if len(known) > 1 else " is"
            raise AcclimateError(f"vocabulary_extension: {known[0]!r}{more} in the tokenizer already; leave it out of terms")
        texts = domain.texts("train")
        split = tokenizer.backend_tokenizer.model.tokenize
        pieces: dict[str, list[str]] = {}
        merges: dict[tuple[str, str], int] = {}
        skipped = 0
        for token in map("".join, domain_merges(tokenizer, texts, self.size or len(vocabulary), self.least) if self.tokens else []):
            if token in vocabulary or token in pieces or len(merges) == self.tokens:
                continue
            old = [piece.value for piece in split(token)]
            now = self.joined(old, merges)
            if len(now) == 2:
                merges[now[0], now[1]] = len(merges)
                pieces[token] = old
            else:
                skipped += 1
        pieces |= {token: [piece.value for piece in split(token)] for token in terms}
        if not pieces:
            raise AcclimateError(
                f"{domain.name} is too small: no token of {self.least} occurrences is new in it; give more text, or lower least"
            )
        first = max(tokenizer.get_vocab().values()) + 1
        new = dict(enumerate(pieces, first))
        parts = {number: tuple(vocabulary[piece] for piece in pieces[token]) for number, token in new.items()}
        weights = {number: self.weights(len(part)) for number, part in parts.items()}
        made = NewTokens.of(tokenizer, new, parts, weights, self.tied, merges=list(merges))
        made.report |= {
            "added": len(new), "skipped": skipped, "tokens before": count(tokenizer, texts), "tokens after": count(made.tokenizer, texts),
        }  # fmt: skip
        return made

    def weights(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Weights of the n pieces in the embedding's row and in the output layer's [piece]."""
        return np.full(n, 1 / n), np.zeros(n)

    @staticmethod
    def joined(pieces: list[str], merges: dict[tuple[str, str], int]) -> list[str]:
        """Pieces joined by merges (pair -> rank), the lowest rank first."""
        pieces = list(pieces)
        while ranks := [(merges[pair], at) for at, pair in enumerate(pairwise(pieces)) if pair in merges]:
            at = min(ranks)[1]
            pieces[at : at + 2] = ["".join(pieces[at : at + 2])]
        return pieces
