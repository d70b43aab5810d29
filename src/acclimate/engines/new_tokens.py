"""New tokens for a model: the tokenizer rewritten as an ordinary one that every library reads, the rows of its tables, and saving both.

Byte-level BPE (GPT-2, Llama 3, Qwen, the seedling). A word of the old tokenizer is what its split pattern isolates. A new token that is
one word is found because whole words are looked up first (``ignore_merges``); one of several words is isolated by the split pattern, in
which all of them stand as a trie before the old pattern: longest first, from left to right, and only where the old has a border too.
"""

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import AcclimateError
from ..model import Model, tokenizer_fingerprint
from ..model.tables import untie
from .bpe import ConversionError, byte_alphabet, split_pattern

BYTES = byte_alphabet()  # character -> byte
CHUNK = 1_000_000  # characters that are tokenised at a time: with offsets a token takes some 100 bytes
NEXT = {"a": r"\p{L}\p{M}", "A": r"\p{L}\p{M}", "1": r"\p{N}", "!": r"[^\s\p{L}\p{N}]", "'s": "'", "\n": r"\r\n", " ": r"[^\S\r\n]"}


def rules(tokenizer: Any) -> dict[str, Any]:
    """What a byte-level BPE tokenizer is made of, as the tokenizers library writes it. Raises AcclimateError for any other."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise AcclimateError(f"{type(tokenizer).__name__} is written in Python; new tokens need a byte-level BPE of the tokenizers library")
    spec: dict[str, Any] = json.loads(backend.to_str())
    try:
        if spec["model"]["type"] != "BPE":
            raise ConversionError(f"it is {spec['model']['type']}")
        split_pattern(spec["pre_tokenizer"])
    except ConversionError as reason:
        raise AcclimateError(f"new tokens need a byte-level BPE tokenizer, and this one cannot be rewritten: {reason}") from reason
    spec["model"]["merges"] = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in spec["model"]["merges"]]
    return spec


def words(tokenizer: Any, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all texts one after the other [token], -1 between texts and for added tokens; whether each begins a word [token]."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    added = np.array([*tokenizer.backend_tokenizer.get_added_tokens_decoder(), -1])
    ids: list[np.ndarray] = []
    begins: list[np.ndarray] = []
    for some in _chunks(texts):
        for coded in backend.encode_batch(some, add_special_tokens=False):
            here = np.array([*coded.ids, -1], np.int64)
            word = np.array([-1 if number is None else number for number in coded.word_ids] + [-2])
            ids.append(np.where(np.isin(here, added), -1, here))
            begins.append(np.diff(word, prepend=-3) != 0)
    return np.concatenate([np.zeros(0, np.int64), *ids]), np.concatenate([np.zeros(0, bool), *begins])


def _chunks(texts: Iterable[str]) -> Iterable[list[str]]:
    some: list[str] = []
    size = 0
    for text in texts:
        some.append(text)
        size += len(text)
        if size > CHUNK:
            yield some
            some, size = [], 0
    if some:
        yield some


def rewritten(tokenizer: Any, new: Mapping[int, str], dropped: Iterable[int] = (), merges: Sequence[tuple[str, str]] = ()) -> Any:
    """A tokenizer with tokens of byte-level spelling ``new`` (id -> token) in its vocabulary, ``dropped`` ids taken out of it.

    ``merges`` are appended to its own, so they join what those leave. It is a plain PreTrainedTokenizerFast; AutoTokenizer loads it.
    """
    spec = rules(tokenizer)
    model = spec["model"]
    names = {number: token for token, number in model["vocab"].items()}
    gone = {names[number] for number in dropped}
    model["vocab"] = {token: number for token, number in model["vocab"].items() if token not in gone} | {t: i for i, t in new.items()}
    model["merges"] = [
        [left, right] for left, right in [*model["merges"], *merges] if left not in gone and right not in gone and left + right not in gone
    ]
    joined = {left + right for left, right in model["merges"]}
    if any(token not in joined for token in new.values()):
        model["ignore_merges"] = True
    phrases = [text for text in map(spelt, new.values()) if len(tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)) > 1]
    if phrases:
        spec["pre_tokenizer"] = _isolating(tokenizer, spec["pre_tokenizer"], phrases)
    return _wrapped(tokenizer, spec)


def _isolating(tokenizer: Any, step: dict[str, Any], phrases: list[str]) -> dict[str, Any]:
    """The same pre-tokenizer, which also isolates phrases that stand between borders."""
    split = tokenizer.backend_tokenizer.pre_tokenizer
    last_words = {text: text[split.pre_tokenize_str(text)[-1][1][0] :] for text in phrases}
    borders = {word: _border(split, word) for word in set(last_words.values())}
    ends = {text: borders[word] for text, word in last_words.items()}
    pattern = f"(?:{_trie(sorted(phrases), ends)})|{split_pattern(step)}"
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "type": "Sequence",
        "pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, last],
    }


def _border(split: Any, last: str) -> str:
    """A regular expression: nothing follows that the old pattern would join to the word ``last``."""
    joins = {kind for follows, kind in NEXT.items() if len(last) not in {end for _, (_, end) in split.pre_tokenize_str(last + follows)}}
    return f"(?![{''.join(sorted(joins))}])" if joins else ""


def _trie(texts: list[str], ends: dict[str, str], at: int = 0) -> str:
    """Sorted texts as one regular expression without common beginnings twice; of two that both match, the longer is found."""
    branches = []
    here = [text for text in texts if len(text) == at]
    begin = len(here)
    while begin < len(texts):
        stop = begin
        while stop < len(texts) and texts[stop][at] == texts[begin][at]:
            stop += 1
        some = texts[begin:stop]
        common = at + 1
        while all(len(text) > common and text[common] == some[0][common] for text in some):
            common += 1
        inner = _trie(some, ends, common)
        branches.append("".join(map(_escaped, some[0][at:common])) + (f"(?:{inner})" if "|" in inner else inner))
        begin = stop
    return "|".join([*branches, *(ends[text] for text in here[:1])])


def _escaped(character: str) -> str:
    return character if character.isalnum() or character in " _" else f"\\x{{{ord(character):x}}}"


def _wrapped(tokenizer: Any, spec: dict[str, Any]) -> Any:
    """The rules as a transformers tokenizer of no particular family, with the old one's special tokens, template and limits."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    named = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    extra = [str(token) for token in getattr(tokenizer, "extra_special_tokens", [])]
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)), model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False, padding_side=tokenizer.padding_side, extra_special_tokens=extra, **named,
    )  # fmt: skip
    made.chat_template = tokenizer.chat_template
    return made


def count(tokenizer: Any, texts: Iterable[str]) -> int:
    """How many tokens all texts take together, without special ones around them."""
    encode = tokenizer.backend_tokenizer.encode_batch_fast
    return sum(len(coded.ids) for some in _chunks(texts) for coded in encode(some, add_special_tokens=False))


def domain_merges(tokenizer: Any, texts: Iterable[str], size: int, least: int) -> list[tuple[str, str]]:
    """The merges of a BPE of ``size`` tokens trained on texts that are cut to words as the tokenizer cuts them, the most frequent first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    if tokenizer.backend_tokenizer.normalizer is not None:
        learner.normalizer = tokenizer.backend_tokenizer.normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, min_frequency=least, initial_alphabet=alphabet, show_progress=False)
    )
    merges = json.loads(learner.to_str())["model"]["merges"]
    return [(left, right) for left, right in (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)]


def spelling(tokenizer: Any, word: str) -> str:
    """The byte-level token of one word; AcclimateError where the tokenizer cuts it to several words."""
    pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(word)]
    if len(pieces) != 1:
        raise AcclimateError(f"{word!r} is {len(pieces)} words to this tokenizer; only one word can become a token here")
    return str(pieces[0])


def spelt(token: str) -> str:
    """The text of a byte-level token.

    >>> spelt("ĠofĠthe")
    ' of the'
    """
    return bytes(BYTES[character] for character in token).decode("utf-8", "replace")


@dataclass
class NewTokens:
    """The plug-in: a rewritten tokenizer, and what the rows of its new tokens are made of.

    parts: new id -> ids of the old tokenizer. inward, outward: new id -> weight of each part's row, in the embedding and the output layer.
    tied: where both are one table: "mean" of both rows, "input" alone, or "untie".
    """

    tokenizer: Any
    old: Any
    parts: dict[int, tuple[int, ...]]
    inward: dict[int, list[float]]
    outward: dict[int, list[float]]
    tied: str = "mean"
    dropped: dict[int, str] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        old: Any,
        new: dict[int, str],
        parts: dict[int, tuple[int, ...]],
        weights: dict[int, tuple[np.ndarray, np.ndarray]],
        tied: str,
        dropped: dict[int, str] | None = None,
        merges: Sequence[tuple[str, str]] = (),
    ) -> "NewTokens":
        """From tokens in byte-level spelling, their parts, and the weights of these (inward, outward)."""
        dropped = dropped or {}
        inward, outward = ({number: pair[side].tolist() for number, pair in weights.items()} for side in (0, 1))
        return cls(rewritten(old, new, dropped, merges), old, parts, inward, outward, tied, dropped)

    def expand(self, ids: Iterable[int]) -> list[int]:
        """Ids of the new tokenizer as ids of the old one."""
        return [part for number in ids for part in self.parts.get(number, (number,))]

    @torch.no_grad()
    def apply(self, model: Model, name: str = "") -> Model:
        """A copy of the model that reads and writes the new tokens; the model itself stays as it was."""
        fits(model, self.old)
        made = model.copy(name or f"{model.name}+tokens")
        net, made.tokenizer = made.net, self.tokenizer
        tables = [net.get_input_embeddings(), net.get_output_embeddings()]
        size = max([len(tables[0].weight), *(number + 1 for number in self.parts)])
        one = tables[0].weight is tables[1].weight
        if size > len(tables[0].weight):
            net.resize_token_embeddings(size, mean_resizing=False)
            tables = [net.get_input_embeddings(), net.get_output_embeddings()]
        if one and self.tied == "untie":
            untie(net)
        old = [table.weight.detach().clone() for table in tables]
        bias = getattr(tables[1], "bias", None)
        for number, parts in self.parts.items():
            inward, outward = (_mixed(rows, parts, weights[number]) for rows, weights in zip(old, (self.inward, self.outward), strict=True))
            if one and self.tied != "untie":
                inward = outward = inward if self.tied == "input" else (inward + outward) / 2
            tables[0].weight[number] = inward.to(old[0].dtype)
            tables[1].weight[number] = outward.to(old[1].dtype)
            if bias is not None:
                bias[number] = bias[list(parts)].mean()
        made.notes["made"] = {"base": model.source, "method": "new tokens", "added": len(self.parts), "dropped": len(self.dropped)}
        return made


def _mixed(rows: Tensor, parts: Sequence[int], weights: Sequence[float]) -> Tensor:
    return torch.tensor(weights, dtype=torch.float64, device=rows.device) @ rows[list(parts)].double()


def fits(model: Model, tokenizer: Any) -> None:
    """A causal model whose tables have a row for every id of the tokenizer; AcclimateError if not."""
    if model.kind != "causal":
        raise AcclimateError(f"new tokens are for causal language models, and {model.name} is {model.kind}")
    if tokenizer_fingerprint(model.tokenizer) != tokenizer_fingerprint(tokenizer):
        raise AcclimateError(f"{model.name} has another tokenizer than the one these tokens were made for; fit them to it anew")
    rows, most = len(model.net.get_input_embeddings().weight), max(tokenizer.get_vocab().values())
    if most >= rows:
        raise AcclimateError(
            f"the tokenizer of {model.name} has ids up to {most}, but its embedding has {rows} rows; load the tokenizer that belongs to it"
        )


def compare(
    before: Model, after: Model, texts: Sequence[str], prompts: Sequence[str] = (), tokens: int = 64, most: int = 0
) -> dict[str, float]:
    """Both models on the same texts: tokens per byte, bits per byte (comparable between tokenizers), seconds per 1,000 bytes written.

    Texts are read up to ``most`` bytes (0: all). Keys end in " before" and " after". Generation is timed on ``prompts``, ``tokens`` new
    tokens each; without prompts it is left out.
    """
    import time

    from .generate import generate
    from .score import bits_per_byte

    if most:
        ends = np.cumsum([len(text.encode()) for text in texts])
        texts = texts[: max(1, int((ends <= most).sum()))]
    found: dict[str, float] = {}
    for when, model in (("before", before), ("after", after)):
        bits = bits_per_byte(model, texts)
        size = bits.bytes.sum()
        found[f"tokens per byte {when}"] = float(sum(map(len, model.tokenizer(list(texts), add_special_tokens=False).input_ids)) / size)
        found[f"bits per byte {when}"] = bits.value
        if prompts:
            generate(model, prompts[:1], tokens=2)  # the first call prepares what later ones use
            started = time.perf_counter()
            said = generate(model, prompts, tokens=tokens)
            seconds = time.perf_counter() - started
            found[f"seconds per 1000 bytes written {when}"] = 1000 * seconds / max(1, sum(len(text.encode()) for text in said))
    return found
