"""A peft LoRA or DoRA adapter as a checkpoint: what it changes is reckoned on the base's rows as they are read, nothing is folded first.

Read are LoRA of linear layers, of GPT-2's transposed ones and of embeddings, rsLoRA, patterns of rank and alpha, DoRA, trained biases
(``bias``, ``lora_bias``), and layers trained whole (``modules_to_save``) or stored because the vocabulary grew. The values are those of
peft's ``merge_and_unload``. Where only one of two tied weights was adapted, they come apart here, as they do in peft's forward pass; its
merge adds the change to both.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import AcclimateError
from ...files import cache_dir, digest, file_digest, read_json, write_json
from ...lazy import torch
from .checkpoint import EMBEDDINGS, HEADS, Buffer, Checkpoint, Slot, place, read_header

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
BLOCK = 1 << 18  # entries that are read at once for the lengths of rows
TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")  # families that store weights as [in, out]
REFUSED = {  # keys of the configuration -> what such an adapter is
    "target_parameters": "LoRA of single parameters",
    "trainable_token_indices": "LoRA with trained tokens",
    "layer_replication": "LoRA with replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways to start that change the base


@dataclass
class Factors:
    """One layer's low-rank change as its weight is stored, left @ right; with DoRA also the lengths that the sum gets."""

    module: str  # the layer's name in the adapter
    kind: str  # linear; transposed (stored as [in, out]); embedding
    left: Tensor  # [row, rank], scaled
    right: Tensor  # [rank, column]
    lengths: Tensor | None = None  # DoRA's magnitudes [row]; [column] where outputs are columns
    ratio: Tensor | None = None  # lengths over those of base + left @ right, once they are known
    lock: Any = field(default_factory=threading.Lock, repr=False)

    @property
    def by_rows(self) -> bool:
        """Whether a row of the stored weight makes one output, so that DoRA's lengths are those of rows."""
        return self.kind == "linear"

    def apply(self, held: Tensor, first: int, last: int) -> None:
        """Entries ``first`` to ``last`` of the base's weight [last - first] become the adapted weight's, in place."""
        width = self.right.shape[1]
        top, bottom = first // width, -(-last // width)
        cut = slice(first - top * width, last - top * width)
        held.add_((self.left[top:bottom] @ self.right).flatten()[cut])
        if self.ratio is not None:
            ratio = self.ratio[top:bottom, None] if self.by_rows else self.ratio
            held.mul_(ratio.expand(bottom - top, width).flatten()[cut])


class Adapted(Checkpoint):
    """A base checkpoint seen through an adapter; only factors and vectors of one entry per output stay in memory."""

    def __init__(self, ref: str, base: Checkpoint, home: Path, settings: dict[str, Any]):
        super().__init__(ref, base.folder, dict(base.slots), base.config)
        self.base, self.home, self.settings = base, home, settings
        self.factors: dict[str, Factors] = {}  # weight -> its low-rank change
        self.added: dict[str, Tensor] = {}  # bias -> what ``lora_bias`` adds to it
        self.replaced: set[str] = set()  # weights that the adapter stores whole
        self.origin: dict[str, Slot] = {}  # weight -> the base's slot, where that has another name
        self.one: tuple[str, str] | None = None  # embedding and output layer, where the adapter changes both as one weight

    @property
    def changed(self) -> set[str]:
        """Names of all tensors that may differ from the base's."""
        return self.factors.keys() | self.added.keys() | self.replaced

    def as_stored(self, slot: Slot) -> bool:
        """Whether the adapter leaves a tensor alone, or stores it whole."""
        if slot.name in self.factors or slot.name in self.added:
            return False
        return slot.name in self.replaced or self.base.as_stored(self.origin.get(slot.name, slot))

    def read(self, slot: Slot, first: int, last: int, raw: Buffer, out: Tensor) -> None:
        """Entries of a weight with the adapter's change."""
        low, more = self.factors.get(slot.name), self.added.get(slot.name)
        if low is None and more is None:
            return self._stored(slot, first, last, raw, out)
        held = out if out.dtype == torch.float32 else torch.empty(last - first)
        self._stored(slot, first, last, raw, held)
        if low is not None:
            self._measure(slot, low)
            low.apply(held, first, last)
        if more is not None:
            held.add_(more[first:last])
        if held is not out:
            out.copy_(held)

    def stamp(self, slot: Slot) -> list[Any]:
        """The weight's own, and the adapter's."""
        return [*super().stamp(slot), (self.home / WEIGHTS).stat().st_mtime_ns]

    def change(self, name: str) -> Tensor:
        """What the adapter adds to one weight, dense, in fp32 [*shape]; zeros for what it leaves alone."""
        slot = self.base.slot(name) or self.origin.get(name)
        if slot is None:
            raise AcclimateError(f"{self.base.ref} has no tensor {name}")
        low = self.factors.get(name)
        if low is not None and low.lengths is None and name not in self.replaced:
            return low.left @ low.right
        if name not in self.changed:
            return torch.zeros(slot.shape)
        before, after, raw = torch.empty(slot.size), torch.empty(slot.size), Buffer()
        if self.slots[name].shape != slot.shape:
            raise AcclimateError(
                f"{self.ref} has {self.slots[name].shape[0]} rows of {name}, but its base {slot.shape[0]}; merge it instead"
            )
        self.base.read(slot, 0, slot.size, raw, before)
        self.read(self.slots[name], 0, slot.size, raw, after)
        return (after - before).view(slot.shape)

    def outside(self, name: str) -> str:
        """The name that the adapter has for a weight (or layer) of the base; other than the base's where one of them has a prefix."""
        for own, low in self.factors.items():
            mine, theirs = own.removesuffix(".weight"), low.module
            if theirs.endswith(f".{mine}"):
                return theirs[: -len(mine)] + name
            if mine.endswith(f".{theirs}"):
                return name.removeprefix(mine[: -len(theirs)])
        return name

    def _stored(self, slot: Slot, first: int, last: int, raw: Buffer, out: Tensor) -> None:
        """Entries as they are stored: in the adapter's file, or in the base."""
        if slot.name in self.replaced:
            super().read(slot, first, last, raw, out)
        else:
            self.base.read(self.origin.get(slot.name, slot), first, last, raw, out)

    def _measure(self, slot: Slot, low: Factors) -> None:
        """DoRA: the lengths of base + left @ right, block by block, once; other readers of this weight wait."""
        if low.lengths is None or low.ratio is not None:
            return
        with low.lock:
            if low.ratio is not None:
                return
            rows, width, raw = slot.shape[0], slot.width, Buffer()
            step = max(1, BLOCK // width)
            squares = torch.zeros(len(low.lengths), dtype=torch.float64)
            for top in range(0, rows, step):
                bottom = min(top + step, rows)
                block = torch.empty((bottom - top) * width)
                self._stored(slot, top * width, bottom * width, raw, block)
                whole = block.view(-1, width).addmm_(low.left[top:bottom], low.right)
                if low.by_rows:
                    squares[top:bottom] = whole.square().sum(1, dtype=torch.float64)
                else:
                    squares += whole.square().sum(0, dtype=torch.float64)
            low.ratio = (low.lengths / squares.sqrt().clamp(min=1e-30)).float()

    def close(self) -> None:
        """Give the files back, the base's too."""
        super().close()
        self.base.close()

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the base's hash and the adapter's own (16 hex digits)."""
        return digest([self.base.hash, file_digest(self.home / WEIGHTS), read_json(self.home / CONFIG)])


def open_model(ref: str) -> Checkpoint:
    """Open a model folder, an embedded model, a Hugging Face id, or a peft LoRA or DoRA adapter (with its base) in any of these places.

    Raises AcclimateError for an adapter of another kind, or one that was trained on other weights than its base now has.
    """
    folder = place(ref)
    if not (folder / CONFIG).is_file():
        return Checkpoint.open(ref)
    settings = read_json(folder / CONFIG)
    readable(ref, settings)
    manifest = read_json(folder / "acclimate.json") if (folder / "acclimate.json").exists() else {}
    base_ref = manifest.get("base") or settings.get("base_model_name_or_path") or ""
    if not base_ref:
        raise AcclimateError(f"{folder / CONFIG} names no base; write its folder or id there as base_model_name_or_path")
    beside = place(base_ref).resolve() == folder.resolve()  # an adapter that was saved into the folder of its base
    base = Checkpoint.open(base_ref) if beside else open_model(base_ref)
    if manifest.get("base_fingerprint"):
        _same_base(ref, base_ref, base, manifest["base_fingerprint"])
    if not (folder / WEIGHTS).is_file():
        raise AcclimateError(f"{folder} holds no {WEIGHTS}; save the adapter again")
    opened = Adapted(ref, base, folder, settings)
    _fill(opened)
    return opened


def readable(ref: str, settings: dict[str, Any]) -> None:
    """Refuses what is no change of weights that can be read off the files."""
    kind = next((what for key, what in REFUSED.items() if settings.get(key)), None)
    start = str(settings.get("init_lora_weights", "")).lower()
    if settings.get("peft_type") != "LORA":
        kind = str(settings.get("peft_type"))
    elif start.startswith(STARTS):
        kind = f"LoRA ({settings['init_lora_weights']}, which changed the base at its start)"
    if kind:
        raise AcclimateError(
            f"{ref} holds a {kind} adapter; only LoRA and DoRA are merged as they are; fold it first (Model.load, copy, save)"
        )


def _fill(opened: Adapted) -> None:
    """Read the factors into memory, and put the tensors that are stored whole in the place of the base's."""
    from safetensors import safe_open

    ref = opened.ref
    stored = {key.removeprefix(PREFIX): slot for key, slot in read_header(opened.home / WEIGHTS).items()}
    with safe_open(opened.home / WEIGHTS, framework="pt") as file:
        small = {key.removeprefix(PREFIX): file.get_tensor(key).float() for key in file.keys() if ".lora_" in key}  # noqa: SIM118
    for key, slot in stored.items():
        if key in small or ".original_module." in key:  # the latter are the base's own, beside a layer trained whole
            continue
        name = _name(opened.base, key.replace(".base_layer.", ".").replace(".modules_to_save.", "."))
        if name is None:
            raise AcclimateError(f"{ref} holds {key}, which has no place in {opened.base.ref}; fold it first (Model.load, copy, save)")
        _fits(opened, name, slot.shape, grown=True)
        if not (key.endswith(".base_layer.weight") and _is_base(opened, slot, name)):
            opened.slots[name] = replace(slot, name=name)
            opened.replaced.add(name)
    ends = (".lora_A.weight", ".lora_embedding_A")
    for key in [key for key in small if key.endswith(ends)]:
        _low(opened, key.removesuffix(ends[0]).removesuffix(ends[1]), small)
    if small:
        raise AcclimateError(f"{ref} holds more than LoRA factors, e.g. {next(iter(small))}; fold it first (Model.load, copy, save)")
    if not opened.changed:
        raise AcclimateError(f"{ref} holds no LoRA factors; save the adapter again")
    _tie(opened)
    grown = any(name in opened.base.slots and opened.slots[name].shape != opened.base.slots[name].shape for name in opened.replaced)
    if grown and (opened.home / "tokenizer.json").is_file():
        opened.folder = opened.home  # its tokenizer has the tokens of the new rows


def _low(opened: Adapted, module: str, small: dict[str, Tensor]) -> None:
    """Take one layer's factors out of ``small``, scaled and turned as the base stores its weight."""
    settings, ref = opened.settings, opened.ref
    embedding = f"{module}.lora_embedding_A" in small
    form = ".lora_embedding_{}" if embedding else ".lora_{}.weight"
    right, left = small.pop(module + form.format("A")), small.pop(module + form.format("B"), None)
    lengths, bias = small.pop(f"{module}.lora_magnitude_vector", None), small.pop(f"{module}.lora_B.bias", None)
    if left is None:
        raise AcclimateError(f"{ref} lacks {module}{form.format('B')}; save the adapter again")
    if left.ndim != 2 or right.ndim != 2:
        raise AcclimateError(f"{ref} changes {module}, a convolution; fold it first (Model.load, copy, save) and merge that")
    from ...parts.peft_targets import lora_scale

    _, scale = lora_scale(settings, module)
    name = _name(opened.base, f"{module}.weight")
    if name is None:
        raise AcclimateError(f"{ref} changes {module}.weight, which {opened.base.ref} does not have; it was trained on another model")
    shape, target = (left.shape[0], right.shape[1]), _slot(opened, name).shape
    square = shape[0] == shape[1] and _transposed(opened, name)
    flipped = embedding or square or (shape != target and shape[::-1] == target)
    left = left * scale
    if flipped:
        left, right = right.T.contiguous(), left.T.contiguous()
    _fits(opened, name, (left.shape[0], right.shape[1]))
    kind = "embedding" if embedding else "transposed" if flipped else "linear"
    opened.factors[name] = Factors(module, kind, left, right, lengths)
    if bias is not None:
        other = _name(opened.base, f"{module}.bias")
        if other is None:
            raise AcclimateError(f"{ref} adds a bias to {module}, which has none in {opened.base.ref}; such an adapter cannot be merged")
        opened.added[other] = bias * scale


def _tie(opened: Adapted) -> None:
    """Where the base's output layer is its embedding: the two stay one, or come apart because only one of them was adapted."""
    table = next((slot for name, slot in opened.base.slots.items() if name.endswith(EMBEDDINGS)), None)
    if not opened.base.tied or table is None:
        return
    heads = [name for name in opened.changed if name.endswith(HEADS)]
    both = bool(heads) and table.name in opened.changed
    if both and _one(opened, table.name, heads[0]):
        opened.one = (table.name, heads[0])
        opened.factors.pop(heads[0], None)
        opened.slots.pop(heads[0], None)
        opened.replaced.discard(heads[0])
        return
    kind = (opened.config.get("architectures") or [""])[0]
    if not heads and table.name in opened.changed and kind.endswith(("ForCausalLM", "LMHeadModel")):
        heads = ["lm_head.weight"] if opened.slots[table.name].shape == table.shape else []
    if heads and heads[0] not in opened.slots:
        opened.origin[heads[0]], opened.slots[heads[0]] = table, replace(table, name=heads[0])


def _one(opened: Adapted, table: str, head: str) -> bool:
    """Whether embedding and output layer, both in the adapter, are one: trained so, or stored for their new rows alone."""
    settings = opened.settings
    if table in opened.factors or head in opened.factors:
        return bool(settings.get("ensure_weight_tying")) and not settings.get("use_dora")
    saved = [part for part in settings.get("modules_to_save") or [] if head.removesuffix(".weight").endswith(part)]
    return bool(settings.get("ensure_weight_tying")) or not saved


def _transposed(opened: Adapted, name: str) -> bool:
    """Whether a square weight is stored as [in, out], which its shape cannot tell."""
    family = opened.config.get("model_type") in TRANSPOSED
    return not name.endswith(HEADS) if family else bool(opened.settings.get("fan_in_fan_out"))


def _name(base: Checkpoint, name: str) -> str | None:
    """The base's name of a weight: the same, or with one prefix less or more (gpt2 stores ``h.0``, its adapters ``transformer.h.0``)."""
    if base.slot(name) is not None:
        return name
    shorter = name.partition(".")[2]
    longer = [key for key in base.slots if key.endswith(f".{name}")]
    return shorter if shorter in base.slots else longer[0] if len(longer) == 1 else None


def _slot(opened: Adapted, name: str) -> Slot:
    found = opened.slots.get(name) or opened.base.slot(name)
    assert found is not None
    return found


def _fits(opened: Adapted, name: str, shape: tuple[int, ...], grown: bool = False) -> None:
    """The shape must be the base's; with ``grown`` a table of tokens may have other rows. Raises AcclimateError."""
    have = _slot(opened, name).shape
    if have != shape and not (grown and name.endswith((*EMBEDDINGS, *HEADS)) and have[1:] == shape[1:]):
        raise AcclimateError(
            f"{opened.ref} changes {name} as {list(shape)}, but it is {list(have)} in {opened.base.ref}; it is another base's adapter"
        )


def _is_base(opened: Adapted, slot: Slot, name: str) -> bool:
    """Whether a frozen weight that peft stores beside its factors is the base's own, compared block by block."""
    own, raw = opened.base.slot(name), Buffer()
    if own is None or own.shape != slot.shape:
        return False
    for first in range(0, slot.size, BLOCK):
        last = min(first + BLOCK, slot.size)
        here, there = torch.empty(last - first), torch.empty(last - first)
        Checkpoint.read(opened, slot, first, last, raw, here)
        opened.base.read(own, first, last, raw, there)
        if not torch.equal(here, there):
            return False
    return True


def _same_base(ref: str, name: str, base: Checkpoint, fingerprint: str) -> None:
    """The weights an adapter was trained on, by their hash; kept in the cache by the files' own hash."""
    from ...model import Model

    folder = place(name)
    now = read_json(folder / "acclimate.json").get("fingerprint") if (folder / "acclimate.json").exists() else None
    if now != fingerprint:
        kept = cache_dir("fingerprints") / f"{base.hash}.json"
        if not kept.exists():
            write_json(kept, Model.load(name, device="cpu").fingerprint)
        now = read_json(kept)
    if now != fingerprint:
        raise AcclimateError(
            f"{ref} was trained on {name} with weights {fingerprint}, but that model now has {now}; merge it with its own base"
        )
