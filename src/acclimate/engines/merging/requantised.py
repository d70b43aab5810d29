"""What is left of a merge when it is quantised again the way a parent was: counted tensor by tensor, in spans of whole blocks.

A merge of quantised parents is written in 16 bits. With W the merged tensor, W0 the base (or where there is none, the quantised parent)
and Q(W) the nearest codes' values: how much of the change W - W0 stands in Q(W) - W0, how far Q(W) is from W, and how many codes stay as
they are. Values are compared in the type of the output, so that its rounding counts as no change.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ...progress import bar
from .checkpoint import Buffer, Checkpoint, Slot, read_header
from .quantised import Packed, reader
from .tensors import CHUNK, Part, Work


@dataclass
class Sums:
    """What is added up over the spans of a tensor, and over tensors."""

    along: float = 0.0  # inner product of Q(W) - W0 and W - W0
    change: float = 0.0  # |W - W0|^2
    error: float = 0.0  # |Q(W) - W|^2
    merged: float = 0.0  # |W|^2
    same: int = 0  # entries whose code is that of W0
    entries: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def facts(self) -> dict[str, Any]:
        """Shares; ``kept`` is None where nothing changed."""
        return {
            "kept": self.along / self.change if self.change else None,
            "relative_error": (self.error / self.merged) ** 0.5 if self.merged else 0.0,
            "unchanged_codes": self.same / max(1, self.entries),
        }


def requantised(works: Sequence[Work], folder: Path, workers: int) -> dict[str, Any]:
    """The merge in ``folder`` quantised again in memory, as the base or the first quantised parent is; {} where no parent is quantised.

    Gives the format, ``kept`` = <Q(W) - W0, W - W0> / |W - W0|^2 (0: the change is lost, 1: it stands), ``relative_error`` =
    |Q(W) - W| / |W| and ``unchanged_codes``, the share of entries that get the code which W0 gets; over all quantised tensors and for each.
    """
    parents = {work.name: parent for work in works if (parent := _parent(work)) is not None}
    if not parents:
        return {}
    merged = Checkpoint(
        str(folder), folder, {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in read_header(path).items()}, {}
    )
    chosen = [work for work in works if work.name in parents]
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # workers are the threads
    try:
        with (
            torch.no_grad(),
            ThreadPoolExecutor(workers) as pool,
            bar(what="requantise, to see what would be kept", total=sum(work.size for work in chosen), unit="weights") as shown,
        ):

            def one(work: Work) -> Sums:
                found = _tensor(work, parents[work.name], merged)
                shown.update(work.size)
                return found

            sums = dict(zip(parents, pool.map(one, chosen), strict=True))
    finally:
        torch.set_num_threads(before)
        merged.close()
    titles = {name: cast(Packed, parent.slot).codes.title for name, parent in parents.items()}
    return {
        "format": "; ".join(sorted(set(titles.values()))),
        "parents": sorted({parent.checkpoint.ref for parent in parents.values()}),
        "weights": sum(work.size for work in chosen),
        **sum(sums.values(), Sums()).facts(),
        "tensors": {name: {"format": titles[name], **found.facts()} for name, found in sums.items()},
    }


def memory(works: Sequence[Work], workers: int) -> int:
    """Bytes that it takes at most: a dozen fp32 spans for each worker, and scales of whole tensors; 0 where nothing is quantised."""
    held = [(cast(Packed, parent.slot).codes.unit, work.size) for work in works if (parent := _parent(work)) is not None]
    return workers * max((48 * CHUNK + 16 * (size // unit) for unit, size in held), default=0)


def _parent(work: Work) -> Part | None:
    """The input whose format is taken: the base if it is quantised, else the first that is; none where rows are moved."""
    if any(part.rows is not None or part.slot.shape != work.shape for part in work.parts) or not work.dtype.is_floating_point:
        return None
    every = (work.base, *work.tuned) if work.base is not None else work.tuned
    return next((part for part in every if isinstance(part.slot, Packed)), None)


def _tensor(work: Work, parent: Part, merged: Checkpoint) -> Sums:
    """Peaks of all spans first, which scales are made of; then the codes."""
    codes, raw = cast(Packed, parent.slot).codes, Buffer()
    read = reader(parent.checkpoint, raw)
    step = max(1, CHUNK // codes.unit) * codes.unit
    spans = [(first, min(first + step, work.size)) for first in range(0, work.size, step)]
    own = merged.slots[work.name]

    def new(first: int, last: int) -> Tensor:
        return _values(merged, own, first, last, raw)

    def old(first: int, last: int) -> Tensor:
        if work.base is not None:
            return _values(work.base.checkpoint, work.base.slot, first, last, raw)
        return codes.values(read, first, last)  # without the change of an adapter on it

    def scales(of: Callable[[int, int], Tensor]) -> list[Any]:
        return codes.settle([codes.peaks(of(*span)) for span in spans], read)

    total = Sums()
    for (first, last), mine, theirs in zip(spans, scales(new), scales(old), strict=True):
        w, w0 = new(first, last), old(first, last)
        number, value = codes.again(w, mine, read, first)
        before, _ = codes.again(w0, theirs, read, first)
        value, w0 = value.to(work.dtype.torch).float(), w0.to(work.dtype.torch).float()
        change = w - w0
        total += Sums(
            float(torch.dot(value - w0, change)),
            float(torch.dot(change, change)),
            float(torch.dot(value - w, value - w)),
            float(torch.dot(w, w)),
            int((number.view(torch.uint8) == before.view(torch.uint8)).sum()),
            last - first,
        )
    return total


def _values(checkpoint: Checkpoint, slot: Slot, first: int, last: int, raw: Buffer) -> Tensor:
    out = torch.empty(last - first)
    checkpoint.read(slot, first, last, raw, out)
    return out
