"""AdaptiVocab: replaces tokens the domain hardly uses by n-grams it often uses, so that text takes fewer tokens to read and write.

Nakash et al. 2025, section 3, https://arxiv.org/abs/2503.19693
Use to save tokens in a narrow domain at the same size of vocabulary; general text may then take more. N-grams are chosen by what they
really save, with overlaps counted once, and a swap is made as long as it saves more than the token given up costs (its merge is undone, so
its two halves stand for it; bytes, single characters, special tokens and parts of what was chosen stay). New rows of the embedding weigh
the last parts most, those of the output layer the first. Then embeddings, output layer, first and last layer are tuned.
Unlike the paper's tokenizer, which sits on top of another, the result is one ordinary tokenizer; so n-grams begin and end at the borders
of words. Ten thousand tokens, length 5 and the exponent 2 come from summaries, not checked against the paper; rate and epochs are choices.
It is a Strategy as well, since it tunes through the train engine: ``fit`` gives the plug-in, ``run`` the models.

>>> AdaptiVocab().weights(3)[0].round(4).tolist()
[0.0159, 0.1173, 0.8668]
"""

from typing import Annotated, Any

import numpy as np

from ...engines.new_tokens import NewTokens, count, fits, rules, spelt, words
from ...errors import AcclimateError
from ...method import Setting
from ...parts.ngrams import Vocabulary, candidates, choose, shares
from ._vocabulary import VocabularyMethod


class AdaptiVocab(VocabularyMethod):
    """The vocabulary keeps its size: each new token takes the id, and the rows, of the one given up for it."""

    tokens: Annotated[int, Setting("tokens that are swapped at most (m)", 1)] = 10_000
    longest: Annotated[int, Setting("longest n-gram in tokens (n_max)", 2)] = 5
    least: Annotated[int, Setting("occurrences that an n-gram must have (c_min)", 2)] = 10
    beta: Annotated[float, Setting("how fast the weights of parts fall: exp(beta i) and exp(-beta i); 0 = plain mean", 0)] = 2.0
    tied: Annotated[
        str, Setting("where input and output share a table: the mean of both rows, or a table for each", choices=("mean", "untie"))
    ] = "mean"

    def fit(self, model: Any, tokenizer: Any, domain: Any) -> NewTokens:
        """The rewritten tokenizer and what its new rows are made of; ``report`` counts tokens of the training text before and after."""
        fits(model, tokenizer)
        spec = rules(tokenizer)
        vocabulary = spec["model"]["vocab"]
        names = {number: token for token, number in vocabulary.items()}
        texts = domain.texts("train")
        ids, begins = words(tokenizer, texts)
        grams = candidates(ids, begins, self.longest, self.least)
        if not grams:
            raise AcclimateError(
                f"{domain.name} is too small: none of its n-grams of up to {self.longest} tokens occurs {self.least} times; "
                "give more text, or lower least"
            )
        halves: dict[int, tuple[int, int]] = {}
        for left, right in spec["model"]["merges"]:
            halves.setdefault(vocabulary[left + right], (vocabulary[left], vocabulary[right]))
        kept = {number for number in halves if len(spelt(names[number])) == 1}
        kept |= {token["id"] for token in spec["added_tokens"]}
        counts = np.bincount(ids[ids >= 0], minlength=max(names) + 1)
        taken = set(vocabulary)

        def allowed(gram: tuple[int, ...]) -> bool:
            token = "".join(names[part] for part in gram)
            text = spelt(token)
            return token not in taken and "\ufffd" not in text and not text[-1].isspace()

        choice = choose(grams, len(ids), self.tokens, Vocabulary(counts, halves, kept), self.least, allowed)
        if not choice.grams:
            raise AcclimateError(f"no n-gram of {domain.name} saves more tokens than the cheapest token to give up costs; nothing to swap")
        parts = dict(zip(choice.dropped, choice.grams, strict=True))
        new = {number: "".join(names[part] for part in gram) for number, gram in parts.items()}
        weights = {number: self.weights(len(gram)) for number, gram in parts.items()}
        dropped = {number: names[number] for number in choice.dropped}
        made = NewTokens.of(tokenizer, new, parts, weights, self.tied, dropped)
        before, after = int((ids >= 0).sum()), count(made.tokenizer, texts)
        made.report |= {
            "swapped": len(new), "candidates": sum(len(each.ids) for each in grams), "tokens before": before, "tokens after": after,
            "saved": before - after, "saved as chosen": sum(choice.saved) - sum(choice.cost),
            "first": [spelt(token) for token in list(new.values())[:10]],
        }  # fmt: skip
        return made

    def weights(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Weights of the n parts in the embedding's row and in the output layer's [part]."""
        return shares(n, self.beta), shares(n, -self.beta)
