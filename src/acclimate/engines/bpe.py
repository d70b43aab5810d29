"""A byte-level BPE tokenizer of the tokenizers library, rewritten for tiktoken: the same ids, several times faster.

The two libraries merge by different rules: tokenizers merges the listed *pair* of lowest rank, tiktoken whatever two pieces
together spell the *token* of lowest rank. They agree on every text if, for each token, merging its bytes with only the tokens
of lower rank ends in exactly the pair that the list names for it: a merge never crosses a piece border that is still there
later, so pieces that meet inside any word are the ones that meet in the token alone. ``_prove`` checks that, token by token.
"""

import json
import os
import unicodedata
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

Flat = tuple[np.ndarray, np.ndarray]  # ids of several documents one after another [token], and the length of each [document]

BATCH_BYTES = 250_000  # text per call, and per task of a thread
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # what ByteLevel's use_regex means
SEPARATOR = "\ufdd0\ufdd1"  # two noncharacters between documents of one call; no start of it is also an end of it
DOUBT, BORDER = -1, -2  # in the table of ids: ask the tokenizers library; a separator


class ConversionError(Exception):
    """tiktoken cannot stand in for this tokenizer; the text says why, as the end of a sentence."""


class ByteLevelBPE:
    """tiktoken in the place of one tokenizer; documents it cannot vouch for go to ``exact``.

    Args:
        rules: the tokenizer as the tokenizers library writes it (JSON).
        exact: encodes documents through the tokenizers library.
        prove: check that the merges mean the same; False where that is known.

    Raises ConversionError.
    """

    def __init__(self, rules: str, exact: Callable[[list[str]], Flat], prove: bool = True):
        spec = json.loads(rules)
        split = split_pattern(spec["pre_tokenizer"])
        self.composed = _composed(spec["normalizer"])
        self.exact = exact
        ranks, pairs, ids = _ranks(spec)
        if prove:
            _prove(ranks, pairs)
        added = _added(spec["added_tokens"], self.composed)
        special = {text: len(ids) + number for number, text in enumerate(added)}
        special[SEPARATOR] = self.separator = len(ids) + len(added)
        self.ids = np.array([*ids, *added.values(), BORDER], np.int64)  # tiktoken's rank -> id
        spelled = [*sorted(ranks, key=ranks.__getitem__), *(text.encode() for text in special)]
        self.sizes = np.array([len(token) for token in spelled], np.int64)  # bytes
        self.special = frozenset(special)
        try:
            from tiktoken import Encoding

            self.coding = Encoding("converted", pat_str=split, mergeable_ranks=ranks, special_tokens=special)
        except ValueError as error:
            raise ConversionError(f"its split pattern means nothing to tiktoken ({error})") from error

    def encode(self, documents: list[str]) -> Flat:
        """Ids of all documents, on all cores."""
        tasks: list[list[str]] = [[]]
        room = BATCH_BYTES
        for text in documents:
            if room <= 0:
                tasks.append([])
                room = BATCH_BYTES
            tasks[-1].append(text)
            room -= len(text) + 1
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) as pool:
            done = list(pool.map(self._task, tasks))
        return np.concatenate([ids for ids, _ in done]), np.concatenate([lengths for _, lengths in done])

    def _task(self, documents: list[str]) -> Flat:
        """Several documents in one call, with separators between them."""
        joined = SEPARATOR.join(documents)
        try:
            ranks = self.coding.encode_to_numpy(joined, allowed_special=self.special, disallowed_special=())
        except ValueError:  # a million spaces in a row overflow tiktoken's regex
            return self.exact(documents)
        borders = np.flatnonzero(ranks == self.separator)
        # A separator inside a document shows in the first number, text that the split pattern lets fall in the second.
        if len(borders) != len(documents) - 1 or self.sizes[ranks].sum() != len(joined.encode()):
            return self.exact(documents)
        ids = self.ids[ranks]
        lengths = np.diff(np.concatenate([[-1], borders, [len(ids)]])) - 1
        doubts = set(np.searchsorted(borders, np.flatnonzero(ids == DOUBT)).tolist())
        if self.composed:
            doubts.update(i for i, text in enumerate(documents) if not unicodedata.is_normalized("NFC", text))
        ids = ids[ids != BORDER]
        if not doubts:
            return ids, lengths
        parts, asked = np.split(ids, np.cumsum(lengths)[:-1]), sorted(doubts)
        true, sizes = self.exact([documents[i] for i in asked])
        for i, part in zip(asked, np.split(true, np.cumsum(sizes)[:-1]), strict=True):
            parts[i] = part
        return np.concatenate(parts), np.array([len(part) for part in parts], np.int64)


def split_pattern(step: dict | None) -> str:
    """The regular expression whose matches are the words that merges never leave."""
    steps = [] if step is None else step["pretokenizers"] if step["type"] == "Sequence" else [step]
    if not steps or steps[-1]["type"] != "ByteLevel":
        raise ConversionError("its pre-tokenizer is not byte-level")
    if steps[-1]["add_prefix_space"]:
        raise ConversionError("it puts a space before each text")
    if len(steps) == 1 and steps[0]["use_regex"]:
        return GPT2_SPLIT
    if len(steps) == 2 and steps[0]["type"] == "Split" and not steps[1]["use_regex"]:
        pattern, kept = steps[0]["pattern"].get("Regex"), (steps[0]["behavior"], steps[0]["invert"])
        if pattern and kept in [("Isolated", False), ("Removed", True)]:
            return pattern
    raise ConversionError("its pre-tokenizer is more than one split pattern")


def _composed(step: dict | None) -> bool:
    """Whether texts are brought into NFC first; any other normalizer cannot be converted."""
    steps = [] if step is None else step["normalizers"] if step["type"] == "Sequence" else [step]
    kinds = {one["type"] for one in steps}
    if kinds - {"NFC"}:
        raise ConversionError(f"it normalises texts ({', '.join(sorted(kinds))})")
    return bool(kinds)


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary (Radford et al. 2019), character -> byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(rest)}


def _ranks(spec: dict) -> tuple[dict[bytes, int], list[set[tuple[bytes, bytes]]], list[int]]:
    """Token -> rank; the pairs that make the token of each rank (none for bytes); its id (DOUBT for bytes without one)."""
    model = spec["model"]
    if model["type"] != "BPE":
        raise ConversionError(f"it is {model['type']}, not BPE")
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ConversionError("its BPE has dropout, a prefix or a suffix")
    alphabet, vocabulary = byte_alphabet(), model["vocab"]

    def spell(token: str) -> bytes:
        try:
            return bytes(alphabet[character] for character in token)
        except KeyError as error:
            raise ConversionError(f"{token!r} in its merges is not byte-level") from error

    letters = {byte: character for character, byte in alphabet.items()}
    ranks = {bytes([byte]): byte for byte in range(256)}
    ids = [vocabulary.get(letters[byte], DOUBT) for byte in range(256)]
    pairs: list[set[tuple[bytes, bytes]]] = [set() for _ in range(256)]
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        pair = spell(left), spell(right)
        token = pair[0] + pair[1]
        if token not in ranks:
            ranks[token] = len(ranks)
            ids.append(vocabulary[left + right])
            pairs.append({pair})
        elif ranks[token] == len(ranks) - 1:  # several pairs in a row may make one token; a later pair for it is never met
            pairs[-1].add(pair)
    if model.get("ignore_merges"):  # whole words are looked up first, as tiktoken does; so each token must be known to it
        reachable = set(ids) | {token["id"] for token in spec["added_tokens"]}
        if any(id_ not in reachable for token, id_ in vocabulary.items() if all(c in alphabet for c in token)):
            raise ConversionError("it has tokens that no merge makes")
    return ranks, pairs, ids


def _prove(ranks: dict[bytes, int], pairs: list[set[tuple[bytes, bytes]]]) -> None:
    """Every token's bytes, merged with the tokens of lower rank alone, end in a pair that its merge names."""
    for token, rank in ranks.items():
        if rank < 256:
            continue
        pieces = [token[i : i + 1] for i in range(len(token))]
        while len(pieces) > 2:
            low, at = min((ranks.get(a + b, rank), i) for i, (a, b) in enumerate(pairwise(pieces)))
            if low >= rank:
                break
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        if tuple(pieces) not in pairs[rank]:
            raise ConversionError(f"its merges reach {token!r} by more than one way")


def _added(tokens: Iterable[dict], composed: bool) -> dict[str, int]:
    """Added tokens, text -> id; DOUBT for those whose finding depends on more than their own characters."""
    found: dict[str, int] = {}
    groups: dict[bool, set[str]] = {True: set(), False: set()}  # by whether they are looked for in normalised text, a second pass
    for token in tokens:
        text = token["content"]
        if not text:
            continue
        if SEPARATOR[0] in text or SEPARATOR[1] in text or (composed and not unicodedata.is_normalized("NFC", text)):
            raise ConversionError(f"its added token {text!r} is unusual")
        groups[token["normalized"]].add(text)
        found[text] = DOUBT if token["single_word"] or token["lstrip"] or token["rstrip"] else token["id"]
    for text in list(found):
        for start in (text[:length] for length in range(1, len(text))):
            if start in found:  # which of the two is found is for the tokenizers library to say
                found[text] = found[start] = DOUBT
    plain, later = groups[False], groups[True]
    starts = {text[:length] for text in plain for length in range(1, len(text) + 1)}
    for text in later:  # one that holds, or runs into, a token of the first pass would be found before it here, but not there
        ends = range(len(text))
        if any(text[at:] in starts for at in ends) or any(text[at : to + 1] in plain for at in ends for to in ends[at:]):
            found[text] = DOUBT
    return found
