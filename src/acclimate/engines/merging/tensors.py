"""The tensors engine: streams checkpoints of any size through a merge method, a chunk at a time, on all cores.

A :class:`Work` says for one output tensor where its inputs are and which method merges them. Chunks of 2^18 entries are read by ``pread``
into buffers that are used again, turned into fp32, merged while they lie in the processor's cache, and written by ``pwrite`` to their
final place in a file whose header was written first; the kernel writes behind. So the peak memory is a few chunks per core, whatever the
size of the models. The output grows in a hidden folder beside its place, with a journal of finished tensors: a killed merge goes on
where it was, and the folder gets its name only when it is whole. Merges that go weight by weight take the compiled lane (fused.py), which
makes the output's bytes of the stored ones in one pass; torch is imported only where something else is to be done.
"""

from __future__ import annotations

import ctypes
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import AcclimateError
from ...kinds import Merge
from ...lazy import torch
from ...progress import bar
from . import fused
from .checkpoint import Buffer, Checkpoint, Slot
from .dtypes import Dtype
from .layout import JOURNAL, Layout, journal, prepare
from .sums import Sums

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1 << 18  # entries; fixed, because the random draws of a chunk belong to it
SHARD = 5_000_000_000  # bytes of one output file
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
HELD = 64 << 20  # bytes that a worker's freed memory may hold; half of it is glibc's largest block that is not mapped by itself
TEMPORARIES = 8  # fp32 chunks per model that a method may hold at once, for the forecast


@dataclass(frozen=True)
class Part:
    """One input of an output tensor: a stored tensor, and which of its rows make which rows of the output (None: all, in order)."""

    checkpoint: Checkpoint
    slot: Slot
    rows: np.ndarray | None = None  # row of the input, or -1 where the input has none [row of the output]


@dataclass(frozen=True)
class Work:
    """One output tensor: where it comes from, and what merges it (None: the one input is copied)."""

    name: str
    shape: tuple[int, ...]
    dtype: Dtype
    tuned: tuple[Part, ...]
    base: Part | None = None
    method: Merge | None = None

    @property
    def size(self) -> int:
        """Entries of the output."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def width(self) -> int:
        """Entries of one row."""
        return self.size // self.shape[0] if len(self.shape) > 1 and self.shape[0] else self.size

    def spans(self) -> list[tuple[int, int]]:
        """The chunks, as first and last entry; whole rows where the method or a vocabulary asks for them."""
        by_rows = (self.method is not None and self.method.rows) or any(part.rows is not None for part in self.parts)
        step = max(1, CHUNK // max(1, self.width)) * self.width if by_rows else CHUNK
        return [(first, min(first + step, self.size)) for first in range(0, self.size, max(1, step))]

    @property
    def bits(self) -> int:
        """Width of the widest entries that go in, as they are stored."""
        return 8 * max(part.slot.dtype.itemsize for part in self.parts)

    @property
    def parts(self) -> tuple[Part, ...]:
        """All inputs, the base last."""
        return (*self.tuned, self.base) if self.base is not None else self.tuned

    @cached_property
    def fused(self) -> fused.Fused | None:
        """The numbers that the compiled lane needs; None where the merge goes through torch."""
        return fused.fits(self)


def chunks(parts: int, workers: int, entries: int = CHUNK) -> int:
    """Bytes that chunks of so many inputs (the base among them) take at most, with what a method holds beside them."""
    return workers * (entries * (parts * (4 + 4) + parts * 4 * TEMPORARIES + 12) + (16 << 20))


def forecast(works: Sequence[Work], workers: int) -> int:
    """Bytes that the chunks of a merge take at most, beside the program itself."""
    sizes = [(len(work.parts), max((last - first for first, last in work.spans()), default=0)) for work in works]
    return max((chunks(parts, workers, entries) for parts, entries in sizes), default=0)


def merge(
    works: Sequence[Work], folder: Path, *, seed: int = 0, workers: int = 0, shard: int = SHARD, key: str = "", what: str = "merge"
) -> dict[str, dict[str, Any]]:
    """Make all output tensors in ``folder`` as safetensors files with an index; gives facts about each tensor by name.

    ``folder`` is a temporary one of the caller's; a merge of the same ``key`` that was killed in it goes on.

    Raises AcclimateError for a NaN or infinity in an input (which model, which tensor), a full disk, a truncated shard.
    """
    workers = workers or os.cpu_count() or 1
    folder.mkdir(parents=True, exist_ok=True)
    done = journal(folder, key)
    layout = prepare(works, folder, shard, fresh=not done)
    todo = [work for work in works if work.name not in done]
    facts = dict(done)
    lock = threading.Lock()
    fused.ready(todo)
    with (
        _one_thread_each(torch_too=any(work.fused is None for work in todo)),
        ThreadPoolExecutor(workers) as pool,
        open(folder / JOURNAL, "a", encoding="utf-8") as log,
        bar(what=f"{what} to {folder.parent}", total=sum(work.size * work.dtype.itemsize for work in works), unit="B") as shown,
    ):
        engine = _Engine(layout, seed)
        shown.update(sum(work.size * work.dtype.itemsize for work in works if work.name in done))

        def finish(work: Work, found: dict[str, Any]) -> None:
            with lock:
                facts[work.name] = found
                log.write(json.dumps({"name": work.name, "facts": found}) + "\n")
                log.flush()
                shown.update(work.size * work.dtype.itemsize)

        try:
            engine.run(works, todo, pool, workers, finish)
        finally:
            layout.close()
    return {work.name: facts[work.name] for work in works}


class _Engine:
    """Runs the works: large tensors with all workers together, then small ones side by side."""

    def __init__(self, layout: Layout, seed: int):
        self.layout, self.seed = layout, seed
        self.local = threading.local()

    def run(
        self, works: Sequence[Work], todo: list[Work], pool: ThreadPoolExecutor, workers: int, finish: Callable[[Work, dict], None]
    ) -> None:
        seen = self._model_wide(works, pool) if todo else {}  # over all tensors, those that an earlier run finished among them
        large = [work for work in todo if work.size >= 4 * workers * CHUNK]
        small = sorted((work for work in todo if work.size < 4 * workers * CHUNK), key=lambda work: -work.size)
        for work in large:
            finish(work, self.one(work, pool.map, seen))
        for _ in pool.map(lambda work: finish(work, self.one(work, map, seen)), small):
            pass

    def _model_wide(self, works: Sequence[Work], pool: ThreadPoolExecutor) -> dict[str, list[Tensor]]:
        """Looks that are added up over all tensors, by the method's settings, for methods whose scope is the model."""
        groups: dict[str, list[Work]] = {}
        for work in works:
            if work.method is not None and work.method.model_wide:
                groups.setdefault(_key(work.method), []).append(work)
        found = {}
        for key, group in groups.items():
            found[key] = self._looks([(work, span) for work in group for span in work.spans()], pool.map)
        return found

    def _looks(self, spans: Sequence[tuple[Work, tuple[int, int]]], run: Callable) -> list[Any]:
        """What the looks at these chunks add up to; through torch if one of them has to."""
        compiled, seen = all(work.fused is not None for work, _ in spans), []  # type: ignore[var-annotated]
        while (total := self._look(spans, run, seen, compiled)) is not None:
            seen.append(total)
        return seen

    def _look(self, spans: Sequence[tuple[Work, tuple[int, int]]], run: Callable, seen: list[Any], compiled: bool) -> Any:
        def one(at: tuple[Work, tuple[int, int]]) -> Any:
            work, span = at
            if compiled:
                assert work.fused is not None
                return fused.look(work.fused, fused.read(work, span, self._store().lane), len(work.tuned), seen, work.bits)
            assert work.method is not None
            return work.method.look(*self.load(work, span), seen, work.bits)

        total = None
        for found in run(one, spans):
            if found is None:
                return None
            if total is None:
                total = found
            else:
                total += found
        return total

    def one(self, work: Work, run: Callable, model_wide: Mapping[str, list[Tensor]]) -> dict[str, Any]:
        """One tensor: looks, then the merge, chunk by chunk; its facts."""
        spans, settled = [(work, span) for span in work.spans()], None
        chunk: Callable[..., Sums] = self._copy
        if work.method is not None and work.dtype.is_floating_point:
            seen = model_wide[_key(work.method)] if work.method.model_wide else self._looks(spans, run)
            settled = work.method.settle(seen, len(work.tuned))
            chunk = self.chunk if work.fused is None else self._compiled
        sums = Sums(parts=np.zeros(len(work.parts)), dots=np.zeros(len(work.parts)))
        for found in run(lambda at: chunk(*at, settled), spans):
            sums = sums + found
        return _facts(work, sums)

    def load(self, work: Work, span: tuple[int, int]) -> tuple[Tensor | None, Tensor]:
        """The chunk's base (or None) and tuned [model, *], in fp32: rows where rows are asked for, else flat."""
        store = self._store()
        first, last = span
        block = store.floats(len(work.parts), last - first)
        missing = [self._fill(work, part, span, block[i], store.raw) for i, part in enumerate(work.parts)]
        if any(lost is not None for lost in missing):
            _complete(work, block.view(len(work.parts), -1, work.width), missing)
        if work.method is not None and work.method.rows:
            block = block.view(len(work.parts), -1, work.width)
        tuned = block[: len(work.tuned)]
        return (block[-1] if work.base is not None else None), tuned

    def _fill(self, work: Work, part: Part, span: tuple[int, int], out: Tensor, raw: Buffer) -> np.ndarray | None:
        """Read one input of a chunk; where its rows are mapped, which rows it lacks [row]."""
        first, last = span
        if part.rows is None:
            part.checkpoint.read(part.slot, first, last, raw, out)
            return None
        width = work.width
        rows = part.rows[first // width : last // width]
        out.zero_()
        cuts = np.flatnonzero(np.diff(rows) != 1) + 1
        for run in np.split(np.arange(len(rows)), cuts):  # runs of neighbouring rows are read at once
            if rows[run[0]] >= 0:
                begin, target = int(rows[run[0]]) * width, out[run[0] * width : (run[-1] + 1) * width]
                part.checkpoint.read(part.slot, begin, begin + len(run) * width, raw, target)
        return rows < 0

    def _generator(self, work: Work, span: tuple[int, int]) -> np.random.Generator:
        """Draws that belong to the chunk, whoever works on it."""
        return np.random.Generator(np.random.SFC64([self.seed, zlib.crc32(work.name.encode()), span[0] // CHUNK]))

    def _compiled(self, work: Work, span: tuple[int, int], settled: Any) -> Sums:
        """Merge and write one chunk by compiled code."""
        assert work.fused is not None
        store = self._store().lane
        values = fused.read(work, span, store)
        draw = self._generator(work, span) if work.fused.chances is not None else None
        view, sums = fused.chunk(work.fused, values, len(work.tuned), work.width, settled, draw, work.dtype, store)
        if not np.isfinite(sums.parts).all():
            _refuse(work, fused.wide(values), span[0])
        self.layout.write(work.name, span[0], view)
        return sums

    def chunk(self, work: Work, span: tuple[int, int], settled: Any) -> Sums:
        """Merge and write one chunk through torch; what it adds to the report."""
        assert work.method is not None
        first, last = span
        base, tuned = self.load(work, span)
        every = self._store().floats(len(work.parts), last - first)
        squares = _squares(every)
        if not all(np.isfinite(squares)):
            _refuse(work, every.numpy(), first)
        given: dict[str, Any] = {"base": base, "tuned": tuned, "seen": settled}
        if "generator" in work.method.asked():
            given["generator"] = self._generator(work, span)
        merged = work.method.merge(**{word: given[word] for word in work.method.asked()}).reshape(-1)
        stored = merged.to(work.dtype.torch)
        self.layout.write(work.name, first, _bytes(stored))
        reference = every[-1] if work.base is not None else every[0]
        return Sums(
            float(torch.dot(merged, merged)),
            squares,
            torch.mv(every, merged).numpy().astype(np.float64),
            int(np.count_nonzero(_bits(stored) != _bits(reference.to(work.dtype.torch)))),
        )

    def _copy(self, work: Work, span: tuple[int, int], _: Any) -> Sums:
        """The first input as it is (in the output's type): integer tensors, and layers that are passed through."""
        first, last = span
        out = torch.empty(last - first, dtype=work.dtype.torch)
        part = work.tuned[0]
        if part.rows is None:
            part.checkpoint.read(part.slot, first, last, self._store().raw, out)
        else:
            self._fill(work, part, span, out, self._store().raw)
        self.layout.write(work.name, first, _bytes(out))
        own = out.to(torch.float64)
        size = float(torch.dot(own, own))
        kept = np.zeros(len(work.parts))
        kept[0] = size
        return Sums(size, kept, kept.copy(), 0)

    def _store(self) -> _Store:
        if not hasattr(self.local, "store"):
            self.local.store = _Store()
        return self.local.store


class _Store:
    """One worker's buffers."""

    def __init__(self) -> None:
        self.raw, self.wide, self.lane = Buffer(), Buffer(), fused.Store()

    def floats(self, parts: int, size: int) -> Tensor:
        """fp32 [part, entry], the same memory at every call."""
        return torch.frombuffer(self.wide.bytes(4 * parts * size), dtype=torch.float32).view(parts, size)


def _bytes(values: Tensor) -> memoryview:
    return memoryview(values.contiguous().view(torch.uint8).numpy().data)


def _bits(values: Tensor) -> np.ndarray:
    """The values as whole numbers of their width: numpy compares these fast."""
    return values.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.dtype.itemsize]).numpy()


def _squares(block: Tensor) -> np.ndarray:
    return np.array([float(torch.dot(row, row)) for row in block])


def _refuse(work: Work, block: np.ndarray, first: int) -> None:
    """Name the input whose chunk is not finite; sums of squares may also overflow, which is no fault."""
    for part, row in zip(work.parts, block, strict=True):
        bad = np.flatnonzero(~np.isfinite(row))
        if len(bad):
            raise AcclimateError(
                f"{part.checkpoint.ref}: tensor {part.slot.name} holds {row[bad[0]]} at entry {first + int(bad[0])}; "
                "leave that model out, or save it again"
            )


def _complete(work: Work, block: Tensor, missing: list[np.ndarray | None]) -> None:
    """Rows (of a vocabulary) that a model lacks come from the base, else from the mean of the models that have them."""
    lost = torch.stack([torch.zeros(block.shape[1], dtype=torch.bool) if gone is None else torch.from_numpy(gone) for gone in missing])
    if not lost.any():
        return
    have = (~lost).float()[..., None]
    mean = (block * have).sum(0) / have.sum(0).clamp(min=1)
    source = torch.where(lost[-1][:, None], mean, block[-1]) if work.base is not None else mean
    block.copy_(torch.where(lost[..., None], source, block))


def _facts(work: Work, sums: Sums) -> dict[str, Any]:
    names = [part.checkpoint.ref for part in work.parts]
    lengths = np.sqrt(sums.parts) * np.sqrt(sums.merged)
    cosines = np.divide(sums.dots, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return {
        "shape": list(work.shape),
        "dtype": work.dtype.name,
        "norm": float(np.sqrt(sums.merged)),
        "cosine": {f"{i}:{name}": float(cos) for i, (name, cos) in enumerate(zip(names, cosines, strict=True))},
        "changed": sums.changed / max(1, work.size),
    }


def _key(method: Merge | None) -> str:
    return "" if method is None else f"{method.name} {json.dumps(method.values(), sort_keys=True)}"


@contextmanager
def _one_thread_each(torch_too: bool) -> Iterator[None]:
    """Workers are the threads: torch, where it is needed, gets one, so that they do not wait for one another inside an operation.

    What they free stays with the program: glibc would give pages of chunks back, and take them anew, at every operation.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, HELD // 2)
        libc.mallopt(M_TRIM_THRESHOLD, HELD)
    if not torch_too:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)
