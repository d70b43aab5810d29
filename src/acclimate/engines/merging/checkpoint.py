"""Checkpoints on disk as maps from tensor names to places in safetensors files; nothing is loaded before it is asked for.

Only headers are read at first (a few kilobytes). A span of a tensor comes by ``pread`` into a caller's buffer and is turned into fp32
there, so that a merge holds a few chunks whatever the size of the model.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import AcclimateError, nearest
from ...files import cache_dir, digest, file_digest, read_json, write_json
from ...lazy import torch
from .dtypes import DTYPES, Dtype

if TYPE_CHECKING:
    from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "shared.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "cls.predictions.decoder.weight")
LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Slot:
    """One stored tensor: where its bytes are."""

    name: str
    shape: tuple[int, ...]
    dtype: Dtype
    path: Path
    start: int  # of the first byte in the file

    @property
    def size(self) -> int:
        """How many entries it has."""
        found = 1
        for side in self.shape:
            found *= side
        return found

    @property
    def width(self) -> int:
        """Entries of one row: all of them for a vector."""
        return self.size // self.shape[0] if len(self.shape) > 1 and self.shape[0] else self.size


@dataclass
class Checkpoint:
    """A model folder, opened: its configuration, and a slot for every stored tensor."""

    ref: str
    folder: Path
    slots: dict[str, Slot]
    config: dict[str, Any]
    _files: dict[Path, int] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, ref: str) -> Checkpoint:
        """Open a folder, an embedded model, or a Hugging Face id (from the local cache, else the hub).

        Raises AcclimateError for a missing folder, a damaged or truncated shard, an index that names what is not there.
        """
        folder = place(ref)
        if not (folder / "config.json").is_file():
            raise AcclimateError(f"{folder} holds no config.json, so it is not a model folder; give the folder that save_pretrained wrote")
        slots: dict[str, Slot] = {}
        for path in _shards(folder):
            slots |= read_header(path)
        if not slots:
            raise AcclimateError(f"{folder} holds no tensors")
        config = read_json(folder / "config.json")
        if config.get("quantization_config"):
            from .quantised import unpack

            return unpack(ref, folder, slots, config)
        return cls(ref, folder, slots, config)

    def slot(self, name: str) -> Slot | None:
        """The slot of a tensor; an output layer that is tied to the embedding answers with the embedding's."""
        if name not in self.slots and name.endswith(HEADS) and self.tied:
            return next((slot for key, slot in self.slots.items() if key.endswith(EMBEDDINGS)), None)
        return self.slots.get(name)

    @property
    def tied(self) -> bool:
        """Whether the output layer is the embedding."""
        text = self.config.get("text_config") or self.config
        stored = any(name.endswith(HEADS) for name in self.slots)
        return not stored and bool(text.get("tie_word_embeddings", self.config.get("tie_word_embeddings", True)))

    def as_stored(self, slot: Slot) -> bool:
        """Whether a tensor's values are just what its file holds."""
        return True

    def fetch(self, slot: Slot, first: int, view: memoryview) -> None:
        """The stored bytes of a tensor from its entry ``first`` on, as many as ``view`` has room for."""
        handle = self._open(slot.path)
        offset, done = slot.start + first * slot.dtype.itemsize, 0
        while done < len(view):
            got = os.preadv(handle, [view[done:]], offset + done)
            if not got:
                raise AcclimateError(f"{slot.path} ends inside {slot.name}; the file is truncated, fetch it again")
            done += got

    def read(self, slot: Slot, first: int, last: int, raw: Buffer, out: Tensor) -> None:
        """Entries ``first`` to ``last`` of a tensor, row by row, into ``out`` [last - first] in fp32 (or ``out``'s own type)."""
        view = raw.bytes((last - first) * slot.dtype.itemsize)
        self.fetch(slot, first, view)
        out.copy_(torch.frombuffer(view, dtype=slot.dtype.torch))

    def stamp(self, slot: Slot) -> list[Any]:
        """What tells whether a tensor is still the one that was read before: its file, place and time."""
        return [str(slot.path), slot.start, slot.path.stat().st_mtime_ns]

    def tensor(self, name: str) -> Tensor:
        """One whole tensor in its own type, for small ones and for checks."""
        slot = self.slot(name)
        if slot is None:
            raise AcclimateError(f"{self.ref} has no tensor {name}{nearest(name, self.slots)}")
        out = torch.empty(slot.size, dtype=slot.dtype.torch)
        if slot.size:
            self.read(slot, 0, slot.size, Buffer(), out)
        return out.view(slot.shape)

    def holds(self, state: Mapping[str, Tensor]) -> bool:
        """Whether these very weights are what is stored, compared a tensor at a time."""
        stored = {name: self.slot(name) for name in state}
        if any(slot is None or slot.shape != tuple(state[name].shape) for name, slot in stored.items()):
            return False
        return all(torch.equal(self.tensor(name).to(weight.dtype), weight.detach().cpu()) for name, weight in state.items())

    def _open(self, path: Path) -> int:
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY)
        return self._files[path]

    def close(self) -> None:
        """Give the files back."""
        for handle in self._files.values():
            os.close(handle)
        self._files.clear()

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the shards' own hashes, kept in the cache by path, size and time (16 hex digits)."""
        parts = []
        held = _shards(self.folder) if (self.folder / INDEX).is_file() or (self.folder / SINGLE).is_file() else []
        for path in sorted({*held, *(slot.path for slot in self.slots.values())}):  # a shard may hold nothing but scales
            state = path.stat()
            kept = cache_dir("hashes") / f"{digest([str(path.resolve()), state.st_size, state.st_mtime_ns])}.json"
            if not kept.exists():
                write_json(kept, file_digest(path, 64))
            parts.append([path.name, read_json(kept)])
        return digest(parts)

    @cached_property
    def dtype(self) -> Dtype:
        """The type of most of the weights."""
        sizes: dict[Dtype, int] = {}
        for slot in self.slots.values():
            sizes[slot.dtype] = sizes.get(slot.dtype, 0) + slot.size
        return max(sizes, key=lambda dtype: sizes[dtype])


class Buffer:
    """Bytes that are used again and again; they grow to the largest span asked for."""

    def __init__(self) -> None:
        self.held = bytearray()

    def bytes(self, size: int) -> memoryview:
        """``size`` writable bytes."""
        if len(self.held) < size:
            self.held = bytearray(size)
        return memoryview(self.held)[:size]


def place(ref: str) -> Path:
    """The folder of a model: the one that is named, an embedded model's, or the hub's copy in the local cache."""
    path = Path(ref).expanduser()
    if path.is_dir():
        return path
    from ...model import embedded

    if ref in embedded():
        return embedded()[ref]
    if path.is_absolute() or ref.startswith("."):
        raise AcclimateError(f"no model at {ref}: the folder does not exist")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(ref, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]))
    except Exception as error:
        raise AcclimateError(
            f"no model {ref!r}: no such folder, and the Hugging Face hub gives none ({type(error).__name__}){nearest(ref, embedded())}"
        ) from error


def read_header(path: Path) -> dict[str, Slot]:
    """The slots of one safetensors file. Raises AcclimateError, naming the file, if it is damaged or too short."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if not 2 <= length <= min(LARGEST_HEADER, size):
                raise ValueError("no safetensors header")
            header = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        start, end, slots = 8 + length, 0, {}
        for name, about in header.items():
            if about["dtype"] not in DTYPES:
                raise AcclimateError(f"{path}: tensor {name} has type {about['dtype']}, which cannot be merged")
            first, last = about["data_offsets"]
            slot = Slot(name, tuple(about["shape"]), DTYPES[about["dtype"]], path, start + first)
            if slot.size * slot.dtype.itemsize != last - first:
                raise ValueError(f"{name} has shape {slot.shape} but {last - first} bytes")
            slots[name], end = slot, max(end, last)
    except FileNotFoundError as error:
        raise AcclimateError(f"{path} does not exist, but the index beside it names it; fetch it again") from error
    except (struct.error, ValueError, KeyError, TypeError, OSError) as error:
        raise AcclimateError(f"{path} is no readable safetensors file ({error}); fetch or save it again") from error
    if start + end > size:
        raise AcclimateError(f"{path} is truncated: {size} bytes, but its header tells of {start + end}; fetch it again")
    return slots


def _shards(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        return sorted({folder / name for name in read_json(folder / INDEX)["weight_map"].values()})
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if list(folder.glob("pytorch_model*.bin")):
        raise AcclimateError(f"{folder} holds pickled weights only; load it with acclimate or transformers once and save it as safetensors")
    raise AcclimateError(f"{folder} holds no {SINGLE} and no {INDEX}")
