"""The compiled lane of the tensors engine: merges that go weight by weight, in one pass over the stored bytes, without torch.

It is taken where numba is installed (``pip install acclimate[fast]``), the method can say itself as numbers (``Merge.fused``), and all
inputs are plain tensors of 16 or 32 bits; all else goes through torch. Both lanes draw the same numbers and give the same merge, up to
the rounding of fp32.
"""

import os
import threading
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from ...kinds import Merge
from ...parts.checkpoints import LEAST_CHANCE, largest_kept, random_bits
from ...parts.fused import Fused
from ...parts.ranks import COLUMN
from ...parts.thresholds import HIGH, LOW, place
from ...progress import say
from .checkpoint import Buffer
from .dtypes import DTYPES, Dtype
from .sums import Sums

if TYPE_CHECKING:
    from .tensors import Work

STORED: dict[str, Any] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}  # types that are read, as numpy holds them
ELECT = {"none": 0, "sum": 1, "count": 2}


@cache
def _kernels() -> Any:
    """The compiled functions; None where numba is missing, or does not work here (it may be too old for this numpy)."""
    if find_spec("numba") is None:
        return None
    try:
        from ...parts import kernels
    except Exception as error:  # whatever a broken installation raises
        say(f"merging without compiled code, which takes longer: {str(error).splitlines()[0]}")
        return None
    return kernels


def available() -> bool:
    """Whether merges can be compiled here; ``ACCLIMATE_COMPILE=0`` says no."""
    return os.environ.get("ACCLIMATE_COMPILE") != "0" and _kernels() is not None


def fits(work: "Work") -> Fused | None:
    """What compiled code needs to know of a merge; None where it has to go through torch."""
    if work.method is None or work.dtype.code not in STORED:
        return None
    plain = all(part.rows is None and part.slot.dtype.code in STORED and part.checkpoint.as_stored(part.slot) for part in work.parts)
    fused = work.method.fused(len(work.tuned)) if plain else None
    if fused is None or (fused.changes and work.base is None) or (fused.window is not None and work.width > COLUMN + 1):
        return None
    return fused if available() else None


def ready(works: Sequence["Work"]) -> None:
    """Compile what these merges need, or load what was compiled before; says so where it takes more than a moment."""
    wanted = {}
    for work in works:
        if work.fused is not None:
            wanted[_kind(work), work.dtype.code == "BF16", work.fused.look, work.fused.window is None, work.fused.rescale] = work
    if not wanted:
        return
    told = threading.Timer(1.5, say, ["compiling the merge for this machine; it is kept for the next time"])
    told.daemon = True
    told.start()
    try:
        for (kind, *_), work in wanted.items():
            _try(work, np.ones((len(work.parts), 8), kind))
    finally:
        told.cancel()


def _try(work: "Work", values: np.ndarray) -> None:
    """One small chunk of a merge."""
    fused, models, seen = work.fused, len(work.tuned), []  # type: ignore[var-annotated]
    assert fused is not None
    while (found := look(fused, values, models, seen, work.bits)) is not None:
        seen.append(found)
    settled = None if not seen else fused.weights if fused.look == "gram" else np.ones((models, 1), np.float32)
    chunk(fused, values, models, values.shape[1], settled, np.random.Generator(np.random.SFC64(0)), work.dtype, Store())


def _kind(work: "Work") -> type:
    """How a chunk's inputs are held: bf16 as its 16 bits where all are bf16, else fp32."""
    return np.uint16 if {part.slot.dtype.code for part in work.parts} == {"BF16"} else np.float32


class Store:
    """One worker's buffers, the same memory at every chunk."""

    def __init__(self) -> None:
        self.stored, self.wide, self.out, self.order = Buffer(), Buffer(), Buffer(), Buffer()

    @staticmethod
    def array(buffer: Buffer, shape: tuple[int, ...], kind: Any) -> np.ndarray:
        """An array in a buffer."""
        return np.frombuffer(buffer.bytes(int(np.prod(shape)) * np.dtype(kind).itemsize), kind).reshape(shape)


def read(work: "Work", span: tuple[int, int], store: Store) -> np.ndarray:
    """A chunk of all inputs, the base last [part, entry]: bf16 as its 16 bits where all are bf16, else fp32."""
    first, last = span
    shape = (len(work.parts), last - first)
    held = _kind(work)
    if all(part.slot.dtype.itemsize == np.dtype(held).itemsize for part in work.parts):
        found = store.array(store.stored, shape, held)
        for part, row in zip(work.parts, found, strict=True):
            part.checkpoint.fetch(part.slot, first, row.view(np.uint8).data)
        return found
    found = store.array(store.wide, shape, np.float32)
    for part, row in zip(work.parts, found, strict=True):
        stored = store.array(store.stored, shape[1:], STORED[part.slot.dtype.code])
        part.checkpoint.fetch(part.slot, first, stored.view(np.uint8).data)
        if stored.dtype == np.uint16:
            _kernels().widen(stored, row)
        else:
            row[:] = stored
    return found


def look(fused: Fused, values: np.ndarray, models: int, seen: list[np.ndarray], bits: int) -> np.ndarray | None:
    """What the next look at a chunk finds, as ``Merge.look`` tells it; its results add up."""
    if fused.look == "gram" and not seen:
        found = np.zeros((models, models))
        _kernels().gram(values, models, fused.changes, found)
        return found
    if fused.look == "counts" and not seen:
        found = np.zeros((models, HIGH), np.int64)
        _kernels().counts(values, found)
        return found
    if fused.look == "counts" and len(seen) == 1 and bits > 16:
        assert fused.shares is not None
        buckets, _ = place(seen[0], fused.shares)
        found = np.zeros((*buckets.shape, LOW), np.int64)
        _kernels().lower_counts(values, buckets, found)
        return found
    return None


def chunk(
    fused: Fused, values: np.ndarray, models: int, width: int, settled: Any, draw: np.random.Generator | None, out: Dtype, store: Store
) -> tuple[memoryview, Sums]:
    """Merge a chunk: its bytes as they are stored, and what it adds to the report.

    settled: the method's borders (counts) or weights (gram), None where it looked at nothing.
    """
    parts, size = values.shape
    weights, borders = fused.factors, np.zeros((models, 0), np.float32)
    if fused.look == "gram":
        weights = np.ascontiguousarray(settled, np.float32)
    elif settled is not None:
        borders = np.ascontiguousarray(settled, np.float32).reshape(models, -1)
    thinning = _thinning(fused, values, models, width, draw, store)
    stored = store.array(store.out, (size,), np.uint16 if out.code == "BF16" else np.float32)
    sums = Sums(parts=np.zeros(parts), dots=np.zeros(parts))
    totals = np.zeros(2)
    _kernels().merged(
        values, models, fused.changes, weights, borders, *thinning, ELECT[fused.elect], fused.mean, np.float32(fused.scale), stored,
        sums.parts, sums.dots, totals,
    )  # fmt: skip
    sums.merged, sums.changed = float(totals[0]), int(totals[1])
    if out.code == "F16":
        with np.errstate(over="ignore"):
            narrow, before = stored.astype(np.float16), wide(values[-1 if parts > models else 0]).astype(np.float16)
        sums.changed = int(np.count_nonzero(narrow.view(np.uint16) != before.view(np.uint16)))
        stored = narrow
    return stored.view(np.uint8).data, sums


def _thinning(
    fused: Fused, values: np.ndarray, models: int, width: int, draw: np.random.Generator | None, store: Store
) -> tuple[np.ndarray, ...]:
    """Draws, limits, factors and order for the kernels; empty where nothing is left to chance."""
    none = np.zeros((0, 0), np.int16), np.zeros((0, 0), np.int16), np.zeros((0, 0), np.float32), np.zeros((0, 0), np.uint16)
    if fused.chances is None:
        return none
    assert draw is not None
    size = values.shape[1]
    draws = random_bits(draw, models * size).reshape(models, size)
    limits, factors = _limits(fused, width)
    order = none[-1]
    if fused.window is not None:
        order = store.array(store.order, (models, size), np.uint16)
        _kernels().ranks(values, width, order)
    if fused.rescale == "norm":
        sizes = np.zeros((models, 2))
        _kernels().kept_sizes(values, draws, limits, factors, order, sizes)
        ratio = np.divide(sizes[:, 0], sizes[:, 1], out=np.ones(models), where=sizes[:, 1] > 0)
        factors = factors * ratio[:, None].astype(np.float32)
    return draws, limits, factors, order


@lru_cache(maxsize=64)  # asked for at every chunk
def _limits(fused: Fused, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest draw that counts as kept, and what is kept is multiplied by [model, rank]."""
    chances = fused.ranked_chances(width)
    factors = 1 / np.maximum(chances, np.float32(1e-6)) if fused.rescale == "probability" else np.ones_like(chances)
    return largest_kept(chances), np.where(chances < LEAST_CHANCE, 0, factors).astype(np.float32)


def wide(row: np.ndarray) -> np.ndarray:
    """Entries as :func:`read` holds them, in fp32."""
    return row if row.dtype == np.float32 else (row.astype(np.uint32) << 16).view(np.float32)


def whole(method: Merge, base: Any, tuned: np.ndarray, seed: Any = 0) -> np.ndarray | None:
    """Merge one fp32 tensor that is in memory, as ``Merge.whole`` does; None where the method cannot say itself as numbers."""
    models = len(tuned)
    fused = method.fused(models)
    if fused is None:
        return None
    values = np.stack([*tuned, *([base] if base is not None else [])]).astype(np.float32)
    width, flat = values.shape[-1], values.reshape(len(values), -1)
    seen: list[np.ndarray] = []
    while (found := look(fused, flat, models, seen, 32)) is not None:
        seen.append(found)
    settled = method.settle(seen, models) if seen else None  # type: ignore[arg-type]
    draw = np.random.Generator(np.random.SFC64(seed))
    merged, _ = chunk(fused, flat, models, width, settled, draw, DTYPES["F32"], Store())
    return np.frombuffer(merged, np.float32).reshape(tuned.shape[1:])
