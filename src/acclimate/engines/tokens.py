"""Documents to token ids: as fast as the machine allows, kept in a cache that survives a kill, never all in memory.

Three ways, each checked against the tokenizer's own answers on a sample, the next one taken where they differ:

- ``bpe``: a byte-level BPE tokenizer is rewritten for tiktoken. What that may change is proved absent (bpe.py),
  and documents it cannot vouch for (rare kinds of added tokens, unknown bytes) go through the tokenizers library.
- ``batch``: the tokenizers library on all cores (WordPiece, unigram, unusual BPE).
- ``call``: the tokenizer itself, for those that are written in Python.

The cache holds one file per shard of about 4 MB of text, named by a digest of the tokenizer and the text: a header with a
checksum, the length of each document (uint32), then the ids (uint16 where they fit, else uint32).
"""

import hashlib
import json
import operator
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .. import files, progress
from ..errors import AcclimateError
from .bpe import ByteLevelBPE, ConversionError, Flat

SHARD_BYTES = 4_000_000  # text per shard: what a kill can lose, and what is in memory at a time
FORMAT = 1  # of the cache; a new number leaves old files unused
HEADER = struct.Struct("<8sIIQQ")  # magic, CRC-32 of all that follows it, bytes per id, documents, ids
MAGIC = b"acclitok"
SLOWER = {"bpe": "batch", "batch": "call"}


class Tokens:
    """The ids of a corpus: ``tokens[i]`` is document i [token] as int32, ``lengths`` [document] int64, ``total`` their sum.

    Ids stay on disk and are mapped when asked for; in memory are 16 bytes per document.
    """

    def __init__(self, shards: list[Path]):
        self._shards = shards
        parts = [_open(shard)[0].astype(np.int64) for shard in shards]
        self.lengths = np.concatenate([np.zeros(0, np.int64), *parts])
        self._starts = np.concatenate([np.zeros(0, np.int64), *(np.cumsum(part) - part for part in parts)])  # in their shard
        self._first = np.cumsum([0, *(len(part) for part in parts)])  # the first document of each shard
        self.total = int(self.lengths.sum())

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, document: int) -> np.ndarray:
        document = operator.index(document)
        if not -len(self) <= document < len(self):
            raise IndexError(f"document {document} of {len(self)}")
        document %= len(self)
        shard = int(np.searchsorted(self._first, document, side="right")) - 1
        start = int(self._starts[document])
        return _open(self._shards[shard])[1][start : start + int(self.lengths[document])].astype(np.int32)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[document] for document in range(len(self)))

    def __repr__(self) -> str:
        return f"Tokens({len(self)} documents, {self.total} ids)"


def encode(texts: Iterable[str], tokenizer: Any, *, cache: Path | None = None, what: str = "") -> Tokens:
    """The token ids of every text, without special tokens; shards that are already in the cache are not encoded again.

    Args:
        texts: a list, a column of a dataset, or any iterable of str; one shard of it is in memory at a time.
        tokenizer: a transformers tokenizer.
        cache: the folder for shards; default ``tokens`` in the user's cache.
        what: what is encoded, for the progress bar and for errors.

    Raises AcclimateError for a document that is not text or cannot be written as UTF-8.
    """
    if isinstance(texts, str):
        raise AcclimateError(f"{what or 'encode'}: got one str where an iterable of documents is needed; pass [text]")
    folder = (Path(cache) if cache else files.cache_dir("tokens")) / fingerprint(tokenizer)
    way = _Way(tokenizer, folder, what)
    while True:
        try:
            return Tokens(_shards(texts, way, folder, what))
        except _DifferenceError as difference:
            # Shards are named after the way they were made, so none of those made so far is used again.
            way.take(SLOWER[way.name], str(difference))
            if iter(texts) is texts:
                raise AcclimateError(
                    f"{what or 'encode'}: {difference}; run it again (a slower, exact way is noted), or pass a list instead of an iterator"
                ) from difference


def fingerprint(tokenizer: Any) -> str:
    """A digest of all that decides which ids a text gets: vocabulary, merges, normalizer, added tokens, library versions."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        rules["truncation"] = rules["padding"] = None  # states of the last call, not of the tokenizer
    else:
        rules = [tokenizer.get_vocab(), getattr(tokenizer, "init_kwargs", {})]
    libraries = [version(name) for name in ("tokenizers", "tiktoken")]
    return files.digest([FORMAT, libraries, type(tokenizer).__name__, rules, getattr(tokenizer, "split_special_tokens", False)])


# ---------------------------------------------------------------- shards


def _shards(texts: Iterable[str], way: "_Way", folder: Path, what: str) -> list[Path]:
    """The shard files of a corpus in order, made where they are missing or broken."""
    total = sum(len(text.encode()) for text in texts) if isinstance(texts, (list, tuple)) and progress.wanted() else None
    bar = progress.bar(what=what, total=total, unit="B")
    shards = []
    try:
        for documents, size, key in _cut(texts, what):
            path = folder / f"{way.name}-{key}.tok"
            if not _whole(path):
                _write(path, way.encode(documents))
            shards.append(path)
            bar.update(size)
    finally:
        bar.close()
    return shards


def _cut(texts: Iterable[str], what: str) -> Iterator[tuple[list[str], int, str]]:
    """Documents, their bytes, and their digest, shard by shard."""
    documents: list[str] = []
    sizes: list[int] = []
    room, sha = SHARD_BYTES, hashlib.sha256()
    for number, text in enumerate(_runs(texts)):
        if not isinstance(text, str):
            raise AcclimateError(
                f"document {number} of {what or 'encode'} is {type(text).__name__}, but must be text; drop or mend that row"
            )
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise AcclimateError(
                f"document {number} of {what or 'encode'}: character {error.start} is half a surrogate pair; "
                "mend it with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
            ) from error
        sha.update(data)
        documents.append(text)
        sizes.append(len(data))
        room -= len(data) + 8  # 8: empty documents take room as well
        if room <= 0:
            sha.update(np.array(sizes, np.int64).tobytes())
            yield documents, sum(sizes), sha.hexdigest()[:32]
            documents, sizes, room, sha = [], [], SHARD_BYTES, hashlib.sha256()
    if documents:
        sha.update(np.array(sizes, np.int64).tobytes())
        yield documents, sum(sizes), sha.hexdigest()[:32]


def _runs(texts: Any) -> Iterator[str]:
    """The texts one by one; a dataset's column is read in slices, which is far faster than row by row."""
    if type(texts).__name__ == "Column":
        for start in range(0, len(texts), 256):
            yield from texts[start : start + 256]
    else:
        yield from texts


def _write(path: Path, flat: Flat) -> None:
    ids, lengths = flat
    ids = ids.astype(np.uint16 if ids.max(initial=0) < 1 << 16 else np.uint32)
    body = lengths.astype(np.uint32).tobytes() + ids.tobytes()
    facts = HEADER.pack(MAGIC, 0, ids.itemsize, len(lengths), len(ids))[12:]
    with files.atomic_file(path) as temporary:
        temporary.write_bytes(MAGIC + struct.pack("<I", zlib.crc32(facts + body)) + facts + body)
    _open.cache_clear()  # a broken file of this name may be mapped


def _whole(path: Path) -> bool:
    """Whether a shard is there and has its checksum."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return False
    if len(raw) < HEADER.size:
        return False
    magic, crc, *_ = HEADER.unpack(raw[: HEADER.size])
    return magic == MAGIC and zlib.crc32(raw[12:]) == crc  # the checksum covers the sizes in the header, so a cut file fails as well


@lru_cache(maxsize=128)  # each map holds a file descriptor; a large corpus has more shards than a process may open
def _open(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and ids of one shard, memory-mapped."""
    raw = np.memmap(path, np.uint8, "r")
    _, _, width, documents, _ = HEADER.unpack(raw[: HEADER.size].tobytes())
    start = HEADER.size + 4 * documents
    return raw[HEADER.size : start].view(np.uint32), raw[start:].view(np.uint16 if width == 2 else np.uint32)


# ---------------------------------------------------------------- ways


class _DifferenceError(Exception):
    """A faster way gave other ids than the tokenizer."""


class _Way:
    """How the documents of one tokenizer are encoded; what was found out about it is kept beside its shards."""

    said: set[Path] = set()

    def __init__(self, tokenizer: Any, folder: Path, what: str):
        self.tokenizer, self.folder, self.what = tokenizer, folder, what
        self.encoded = 0  # shards in this call
        self._encoder: Any = None
        self.note = folder / "way.json"
        if self.note.exists():
            found = files.read_json(self.note)
            self.name, self.why = found["way"], found["why"]
        elif getattr(tokenizer, "backend_tokenizer", None) is None:
            self.take("call", "it is written in Python")
        else:
            try:
                self._encoder = self._make("bpe", prove=True)
                self.take("bpe", "")
            except ConversionError as reason:
                self.take("batch", str(reason))

    def take(self, name: str, why: str) -> None:
        """Go one way from now on."""
        if name != "bpe":
            self._encoder = None
        self.name, self.why, self.encoded = name, why, 0
        files.write_json(self.note, {"way": name, "why": why})

    def _make(self, name: str, prove: bool = False) -> Any:
        if name == "call":
            return _Call(self.tokenizer)
        if name == "batch":
            return _Batch(self.tokenizer)
        if getattr(self.tokenizer, "split_special_tokens", False):
            raise ConversionError("it splits special tokens")
        return ByteLevelBPE(self.tokenizer.backend_tokenizer.to_str(), _Batch(self.tokenizer).encode, prove)

    def encode(self, documents: list[str]) -> Flat:
        """Ids of one shard, checked on a sample."""
        if self._encoder is None:
            self._encoder = self._make(self.name)
        if self.name != "bpe" and self.folder not in self.said:
            self.said.add(self.folder)
            tool = "the tokenizers library" if self.name == "batch" else "the tokenizer itself"
            progress.say(f"{self.what or 'encode'}: through {tool}, which is slower than tiktoken, because {self.why}")
        ids, lengths = self._encoder.encode(documents)
        if self.name != "call":
            self._check(documents, ids, lengths)
        self.encoded += 1
        return ids, lengths

    def _check(self, documents: list[str], ids: np.ndarray, lengths: np.ndarray) -> None:
        """Compare with the tokenizer: 64 first and 64 spread documents of the first shard, 8 spread ones of each further shard."""
        last = len(documents) - 1
        wanted = {*range(min(64, last + 1)), *np.linspace(0, last, 64).astype(int).tolist()}
        if self.encoded:
            wanted = set(np.linspace(0, last, 8).astype(int).tolist())
        sample, budget = [], 1_000_000  # characters; books are long, and the tokenizer is slow
        for number in sorted(wanted):
            if budget > 0:
                sample.append(number)
                budget -= len(documents[number])
        ends = np.cumsum(lengths)
        for number, true in zip(sample, _own(self.tokenizer, [documents[number] for number in sample]), strict=True):
            if not np.array_equal(ids[ends[number] - lengths[number] : ends[number]], true):
                raise _DifferenceError(f"its {self.name} form gives other ids for a text that starts with {documents[number][:40]!r}")


def _own(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def _flat(documents: Sequence[Any]) -> Flat:
    lengths = np.array([len(ids) for ids in documents], np.int64)
    return np.concatenate([np.zeros(0, np.int64), *(np.asarray(ids, np.int64) for ids in documents)]), lengths


class _Call:
    """The tokenizer as it is called by everybody."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def encode(self, documents: list[str]) -> Flat:
        return _flat(_own(self.tokenizer, documents))


class _Batch:
    """The tokenizers library on all cores, without offsets."""

    def __init__(self, tokenizer: Any):
        from tokenizers import Tokenizer

        backend = tokenizer.backend_tokenizer
        self.backend = Tokenizer.from_str(backend.to_str())  # a copy: the caller's truncation and padding stay as they are
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = getattr(tokenizer, "split_special_tokens", False)

    def encode(self, documents: list[str]) -> Flat:
        return _flat([coded.ids for coded in self.backend.encode_batch_fast(documents, add_special_tokens=False)])
