"""Quantised checkpoints as checkpoints of plain weights: codes are turned into values a span at a time, as they are read.

A weight that is stored as codes beside scales (``weight.absmax``, ``SCB``, ``weight_scale_inv`` ...) is one :class:`Packed` slot of the
plain model's name, shape and float type. How it lies in the file is known to its :class:`Blockwise`, :class:`Grid` or :class:`Grouped`,
each of which can also quantise new values the same way, to the nearest codes.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ...errors import AcclimateError
from ...parts import quantisation as q
from .checkpoint import Buffer, Checkpoint, Slot
from .dtypes import DTYPES, NAMED, Dtype

Read = Callable[[Slot, int, int], Tensor]  # entries of a stored tensor, in its own type
FLOATS = {name: NAMED[name] for name in ("float32", "float16", "bfloat16")}
TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # their layers are [in, out], but [out, in] once quantised
BLOCKED = re.compile(r"(.+)\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__(?:nf4|fp4))$")
SCALED = re.compile(r"(.+)_scale(?:_inv)?$")
OF_ACTIVATIONS = re.compile(r"\.(?:input|activation|output|k|v)_(?:scale|scale_ub|zero_point)$")
MEND = "load it dequantised (dtype float16 or bfloat16), save it, and merge that"


class Codes(Protocol):
    """How one weight is stored. ``unit`` neighbouring entries cannot be quantised apart, so spans of new values are whole units."""

    unit: int

    @property
    def title(self) -> str:
        """The format in words."""

    def values(self, read: Read, first: int, last: int) -> Tensor:
        """Entries ``first`` to ``last`` of what is stored, in fp32."""

    def peaks(self, values: Tensor) -> Tensor:
        """What the scales of new values [entry] depend on."""

    def settle(self, peaks: list[Tensor], read: Read) -> list[Any]:
        """New scales for each span, from the peaks of all spans of the tensor."""

    def again(self, values: Tensor, scales: Any, read: Read, first: int) -> tuple[Tensor, Tensor]:
        """The nearest codes of new values, and what these codes stand for [entry]."""


@dataclass(frozen=True)
class Packed(Slot):
    """A weight stored as codes: name, shape and type are the plain model's, the first byte is that of the codes."""

    codes: Codes


class Quantised(Checkpoint):
    """A checkpoint some of whose slots may be packed."""

    def as_stored(self, slot: Slot) -> bool:
        """Whether a tensor is stored as plain numbers."""
        return not isinstance(slot, Packed)

    def read(self, slot: Slot, first: int, last: int, raw: Buffer, out: Tensor) -> None:
        """Entries of a weight, dequantised in fp32 where it is packed."""
        if isinstance(slot, Packed):
            out.copy_(slot.codes.values(reader(self, raw), first, last))
        else:
            super().read(slot, first, last, raw, out)


def reader(checkpoint: Checkpoint, raw: Buffer) -> Read:
    """Reads tensors as they are stored, through a buffer that is used again."""

    def read(slot: Slot, first: int, last: int) -> Tensor:
        out = torch.empty(last - first, dtype=slot.dtype.torch)
        Checkpoint.read(checkpoint, slot, first, last, raw, out)
        return out

    return read


@dataclass(eq=False)
class Blockwise:
    """bitsandbytes' 4 bits: two codes in a byte, a scale per block of the flattened weight, or a code of a scale (double quantisation)."""

    kind: str  # nf4 or fp4
    size: int
    unit: int
    weight: Slot  # as bytes
    absmax: Slot
    outer: tuple[Slot, Slot, int, float] | None = None  # of the scales: their scales, their levels, their block, their mean

    @property
    def title(self) -> str:
        """The format in words."""
        return f"bitsandbytes {self.kind}, blocks of {self.unit}" + (", double quantisation" if self.outer else "")

    def values(self, read: Read, first: int, last: int) -> Tensor:
        """Whole blocks are read; what was not asked for is cut off."""
        begin, end = first // self.unit, -(-last // self.unit)
        start, stop = begin * self.unit, min(end * self.unit, self.size)
        codes = q.unpack_pairs(read(self.weight, start // 2, -(-stop // 2)))[: stop - start]
        return q.block_decode(codes, self._scales(read, begin, end), self.unit, q.levels(self.kind))[first - start : last - start]

    def _scales(self, read: Read, begin: int, end: int) -> Tensor:
        if self.outer is None:
            return read(self.absmax, begin, end).float()
        scales, table, block, mean = self.outer
        above = begin // block
        codes = read(self.absmax, above * block, end)
        found = q.block_decode(codes, read(scales, above, -(-end // block)).float(), block, read(table, 0, table.size).float())
        return found[begin - above * block :] + mean

    def peaks(self, values: Tensor) -> Tensor:
        """The peak of each block."""
        return q.block_peaks(values, self.unit)

    def settle(self, peaks: list[Tensor], read: Read) -> list[Any]:
        """The peaks, and what double quantisation leaves of them."""
        kept = torch.cat(peaks)
        if self.outer is not None:
            _, table, block, _ = self.outer
            kept = q.nested(kept, block, read(table, 0, table.size).float())
        return list(zip(peaks, kept.split([len(part) for part in peaks]), strict=True))

    def again(self, values: Tensor, scales: Any, read: Read, first: int) -> tuple[Tensor, Tensor]:
        """Nearest levels; chosen by the exact peaks, as bitsandbytes does, and read with what is stored of them."""
        exact, kept = scales
        codes = q.block_encode(values, exact, self.unit, q.levels(self.kind))
        return codes, q.block_decode(codes, kept, self.unit, q.levels(self.kind))


@dataclass(eq=False)
class Grid:
    """8-bit numbers with a scale per tile: int8 by rows, fp8 by rows, by squares or with one scale for all."""

    title: str
    weight: Slot
    scales: Slot
    tile: tuple[int, int]
    factor: float = 1.0  # what the stored scales are multiplied by (1 / 127 for bitsandbytes, which stores the peaks)

    def __post_init__(self) -> None:
        self.width = self.weight.shape[-1]
        self.rows = self.weight.size // self.width
        self.across = -(-self.width // self.tile[1])
        self.whole = self.tile[0] >= self.rows and self.rows > 1  # one scale for all rows: they may be read apart
        self.unit = self.width * (1 if self.whole else self.tile[0])

    def values(self, read: Read, first: int, last: int) -> Tensor:
        """Whole rows are read; what was not asked for is cut off."""
        high = self.tile[0]
        top, bottom = first // self.width, -(-last // self.width)
        above, below = top // high, -(-bottom // high)
        scales = read(self.scales, above * self.across, below * self.across).float().view(-1, self.across) * self.factor
        codes = read(self.weight, top * self.width, bottom * self.width).view(-1, self.width)
        found = q.grid_decode(codes, scales[torch.arange(top, bottom) // high - above], (1, self.tile[1]))
        return found.flatten()[first - top * self.width : last - top * self.width]

    def peaks(self, values: Tensor) -> Tensor:
        """The peak of each tile."""
        rows = values.view(-1, self.width)
        return q.grid_peaks(rows, (min(self.tile[0], len(rows)), self.tile[1]))

    def settle(self, peaks: list[Tensor], read: Read) -> list[Any]:
        """Peaks over the largest number, in the type that scales are stored in."""
        if self.whole:
            peaks = [torch.stack(peaks).amax(0)] * len(peaks)
        return [(peak / q.top(self.weight.dtype.torch) / self.factor).to(self.scales.dtype.torch).float() * self.factor for peak in peaks]

    def again(self, values: Tensor, scales: Any, read: Read, first: int) -> tuple[Tensor, Tensor]:
        """Nearest numbers."""
        codes = q.grid_encode(values.view(-1, self.width), scales, self.tile, self.weight.dtype.torch)
        return codes.flatten(), q.grid_decode(codes, scales, self.tile).flatten()


@dataclass(eq=False)
class Grouped:
    """GPTQ's and AWQ's 4 bits: the weight turned round [in, out], eight numbers in a word, a scale and a zero per group of inputs.

    New values get the nearest codes in the scales and zeros that are stored: those come from data, which are not there.
    """

    title: str
    weight: Slot
    scales: Slot
    zeros: Slot
    groups: Tensor  # group of each input
    awq: bool
    shift: int  # what is added to the stored zeros

    def __post_init__(self) -> None:
        self.unit = len(self.groups)

    def _columns(self, slot: Slot, begin: int, end: int, order: tuple[int, ...]) -> Tensor:
        """Numbers [*, end - begin] of words that hold eight neighbouring outputs."""
        return q.unpack_words(_columns(slot, begin // 8, -(-end // 8)), 1, order)[:, begin % 8 :][:, : end - begin]

    def _grid(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Scales and zeros of the outputs, each [out, in]."""
        zeros = self._columns(self.zeros, begin, end, q.AWQ_ORDER if self.awq else q.IN_ORDER) + self.shift
        return _columns(self.scales, begin, end).float()[self.groups].T, zeros.float()[self.groups].T

    def values(self, read: Read, first: int, last: int) -> Tensor:
        """Whole outputs are read; what was not asked for is cut off."""
        begin, end = first // self.unit, -(-last // self.unit)
        if self.awq:
            codes = self._columns(self.weight, begin, end, q.AWQ_ORDER)
        else:
            codes = q.unpack_words(_columns(self.weight, begin, end), 0)
        scales, zeros = self._grid(begin, end)
        return ((codes.T - zeros) * scales).flatten()[first - begin * self.unit : last - begin * self.unit]

    def peaks(self, values: Tensor) -> Tensor:
        """Nothing: scales stay."""
        return values[:0]

    def settle(self, peaks: list[Tensor], read: Read) -> list[Any]:
        """Nothing: scales stay."""
        return [None] * len(peaks)

    def again(self, values: Tensor, scales: Any, read: Read, first: int) -> tuple[Tensor, Tensor]:
        """Nearest numbers in the stored scales and zeros."""
        begin = first // self.unit
        own, zeros = self._grid(begin, begin + len(values) // self.unit)
        codes = q.zeroed_encode(values.view(own.shape), own, zeros)
        return codes.flatten(), ((codes - zeros) * own).flatten()


def _columns(slot: Slot, begin: int, end: int) -> Tensor:
    """Columns of a stored matrix, through a map of the file: they lie apart."""
    kind = {"I32": np.int32, "F16": np.float16, "BF16": np.int16, "F32": np.float32}[slot.dtype.code]
    found = torch.from_numpy(np.array(np.memmap(slot.path, kind, "r", slot.start, slot.shape)[:, begin:end]))
    return found.view(slot.dtype.torch)


def unpack(ref: str, folder: Path, slots: dict[str, Slot], config: dict[str, Any]) -> Quantised:
    """A checkpoint whose config has a ``quantization_config``, with codes and their side tensors as one slot each.

    Raises AcclimateError for a format that is not known, by its name, and for side tensors that are missing or of another size.
    """
    about = config["quantization_config"]
    method = about.get("quant_method") or ("bitsandbytes" if about.get("load_in_4bit") or about.get("load_in_8bit") else "unknown")
    opened = Quantised(ref, folder, {}, config)
    found = _Unpacking(opened, dict(slots), about)
    name = " ".join(str(part) for part in (method, about.get("format") or (about.get("bits") and f"{about['bits']} bits")) if part)
    if method == "bitsandbytes" and config.get("model_type") not in TRANSPOSED:
        found.bitsandbytes()
    elif method in ("fp8", "fbgemm_fp8") or name in (f"compressed-tensors {form}-quantized" for form in ("float", "int", "naive")):
        found.scaled(name)
    elif method in ("gptq", "awq") and about.get("bits") == 4 and about.get("version", "gemm").lower() == "gemm":
        found.grouped(method)
    else:
        family = f" ({config.get('model_type')})" if method == "bitsandbytes" else ""
        raise AcclimateError(f"{ref} is quantised as {name}{family}, which is not read here; {MEND}")
    opened.slots = found.slots
    for slot in found.slots.values():
        if slot.name.endswith(".weight") and slot.dtype.itemsize == 1:
            raise AcclimateError(f"{ref}: tensor {slot.name} holds codes, but its scales are missing; fetch or save the model again")
    return opened


class _Unpacking:
    """Puts the tensors of a quantised checkpoint together."""

    def __init__(self, opened: Quantised, slots: dict[str, Slot], about: dict[str, Any]):
        self.ref, self.read, self.slots, self.about = opened.ref, reader(opened, Buffer()), slots, about
        inner = opened.config.get("text_config") or {}
        named = (opened.config.get(key) or inner.get(key) for key in ("dtype", "torch_dtype"))
        self.dtype = FLOATS.get(str(next(filter(None, named), "bfloat16")), NAMED["bfloat16"])

    def take(self, weight: str, name: str, size: int | None = None) -> Slot:
        """A side tensor of a weight, out of the slots; with so many entries."""
        slot = self.slots.pop(name, None)
        if slot is None:
            raise AcclimateError(f"{self.ref}: {weight} is quantised, but its tensor {name} is missing; fetch or save the model again")
        if size is not None and slot.size != size:
            raise AcclimateError(
                f"{self.ref}: {name} has {slot.size} entries, but {weight} needs {size}; the file is damaged, fetch or save it again"
            )
        return slot

    def put(self, weight: Slot, name: str, shape: tuple[int, ...], dtype: Dtype, codes: Codes) -> None:
        """The packed slot, in the place of its codes."""
        self.slots[name] = Packed(name, shape, dtype, weight.path, weight.start, codes)

    def bitsandbytes(self) -> None:
        """4 bits (``weight.quant_state.bitsandbytes__nf4`` ...) and 8 (``SCB``)."""
        for name in list(self.slots):
            if (match := BLOCKED.fullmatch(name)) and name in self.slots:
                self._blockwise(match[1])
            elif name.endswith(".SCB"):
                weight = f"{name.removesuffix('.SCB')}.weight"
                order = self.slots.pop(f"{weight}_format", None)
                if order is not None and self.read(order, 0, 1).item():
                    raise AcclimateError(f"{self.ref}: {weight} is stored in tiles for one kind of GPU; {MEND}")
                self._grid("bitsandbytes int8, by rows", weight, name, factor=1 / 127)

    def _blockwise(self, weight: str) -> None:
        kind = "fp4" if f"{weight}.quant_state.bitsandbytes__fp4" in self.slots else "nf4"
        described = self.take(weight, f"{weight}.quant_state.bitsandbytes__{kind}")
        try:
            state = json.loads(bytes(self.read(described, 0, described.size).view(torch.uint8).tolist()))
            shape, block, dtype = tuple(state["shape"]), int(state["blocksize"]), FLOATS[state["dtype"]]
        except (ValueError, KeyError, TypeError) as error:
            raise AcclimateError(f"{self.ref}: {described.name} cannot be read ({error}); fetch or save the model again") from error
        size = math.prod(shape)
        blocks = -(-size // block)
        table = self.take(weight, f"{weight}.quant_map", 16)
        if not torch.allclose(self.read(table, 0, 16).float(), q.levels(kind), atol=1e-5):
            raise AcclimateError(f"{self.ref}: {table.name} holds other levels than those of {kind}; {MEND}")
        absmax, outer = self.take(weight, f"{weight}.absmax", blocks), None
        if absmax.dtype.code == "U8":
            scales = self.take(weight, f"{weight}.nested_absmax", -(-blocks // state["nested_blocksize"]))
            levels = self.take(weight, f"{weight}.nested_quant_map", 256)
            outer = (scales, levels, int(state["nested_blocksize"]), float(state["nested_offset"]))
        codes = self.take(weight, weight)
        held = codes.size * codes.dtype.itemsize  # bytes, in whatever type they are kept
        if held != -(-size // 2):
            raise AcclimateError(f"{self.ref}: {weight} has {held} bytes, but {list(shape)} in 4 bits need {-(-size // 2)}; fetch it again")
        stored = replace(codes, shape=(held,), dtype=DTYPES["U8"])
        self.put(codes, weight, shape, dtype, Blockwise(kind, size, block, stored, absmax, outer))

    def scaled(self, name: str) -> None:
        """8-bit weights with ``weight_scale_inv`` (fp8) or ``weight_scale`` (fbgemm, compressed-tensors) beside them."""
        for key in [key for key in self.slots if OF_ACTIVATIONS.search(key)]:
            del self.slots[key]
        for key in list(self.slots):
            match = SCALED.fullmatch(key)
            if match and (match[1] in self.slots or match[1].endswith(".weight")):
                if self.slots.pop(f"{match[1]}_zero_point", None) is not None:
                    raise AcclimateError(f"{self.ref}: {match[1]} is quantised with zero points, which are not read here; {MEND}")
                self._grid(name, match[1], key)

    def _grid(self, name: str, weight: str, scale: str, factor: float = 1.0) -> None:
        scales, codes = self.take(weight, scale), self.take(weight, weight)
        rows, columns = codes.size // codes.shape[-1], codes.shape[-1]
        high, wide = self.about.get("weight_block_size") or (0, 0)
        if high and scales.size == -(-rows // high) * -(-columns // wide) and (len(codes.shape) == 2 or codes.shape[-2] % high == 0):
            tile, title = (high, wide), f"{name}, tiles of {high} x {wide}"
        elif scales.size == 1:
            tile, title = (rows, columns), f"{name}, one scale"
        elif scales.size == rows and (len(scales.shape) == 1 or scales.shape[-1] == 1):
            tile, title = (1, columns), name if factor != 1 else f"{name}, by rows"
        elif len(scales.shape) == len(codes.shape) == 2 and rows % scales.shape[0] == 0 and columns % scales.shape[1] == 0:
            tile = (rows // scales.shape[0], columns // scales.shape[1])
            title = f"{name}, tiles of {tile[0]} x {tile[1]}"
        else:
            raise AcclimateError(
                f"{self.ref}: {scale} has shape {list(scales.shape)}, which fits no tiles of {weight} {list(codes.shape)}; "
                "the file is damaged, fetch or save it again"
            )
        if codes.dtype.itemsize != 1:
            raise AcclimateError(f"{self.ref}: {weight} has scales, but is stored as {codes.dtype.name}; {MEND}")
        self.put(codes, weight, codes.shape, self.dtype, Grid(title, codes, scales, tile, factor))

    def grouped(self, method: str) -> None:
        """``qweight``, ``qzeros``, ``scales`` and GPTQ's ``g_idx``."""
        awq = method == "awq"
        for key in [key for key in self.slots if key.endswith(".qweight")]:
            module = key.removesuffix(".qweight")
            weight = f"{module}.weight"
            codes = self.take(weight, key)
            inputs, outputs = (codes.shape[0], codes.shape[1] * 8) if awq else (codes.shape[0] * 8, codes.shape[1])
            scales = self.take(weight, f"{module}.scales")
            zeros = self.take(weight, f"{module}.qzeros", scales.size // 8)
            own = self.slots.pop(f"{module}.g_idx", None)
            groups = torch.arange(inputs) // -(-inputs // scales.shape[0]) if own is None else self.read(own, 0, inputs).long()
            if scales.shape[1] != outputs or int(groups.max()) >= scales.shape[0]:
                raise AcclimateError(f"{self.ref}: {scales.name} is {list(scales.shape)}, which does not fit {key} {list(codes.shape)}")
            shift = int(not awq and self.about.get("checkpoint_format", "gptq") != "gptq_v2")
            title = f"{method}, groups of {-(-inputs // scales.shape[0])}, its own scales"
            self.put(codes, weight, (outputs, inputs), self.dtype, Grouped(title, codes, scales, zeros, groups, awq, shift))
