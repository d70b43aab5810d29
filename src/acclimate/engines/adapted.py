"""A peft LoRA adapter as a checkpoint: its low-rank change is added to the base's rows as they are read, so nothing is folded first."""

from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import AcclimateError
from ..files import read_json
from .checkpoint import Buffer, Checkpoint, Slot, place, read_header

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


class Adapted(Checkpoint):
    """A base checkpoint with the rows of B A scaled and added; the factors are small and stay in memory."""

    factors: dict[str, tuple[Tensor, Tensor]]  # weight -> (scaled B [out, rank], A [rank, in])

    def read(self, slot: Slot, first: int, last: int, raw: Buffer, out: Tensor) -> None:
        """Entries of a weight with the adapter's change."""
        super().read(slot, first, last, raw, out)
        if slot.name in self.factors:
            left, right = self.factors[slot.name]
            width = right.shape[1]
            top, bottom = first // width, -(-last // width)
            change = (left[top:bottom] @ right).flatten()[first - top * width : last - top * width]
            out.add_(change.to(out.dtype))


def open_model(ref: str) -> Checkpoint:
    """Open a model folder, an embedded model, a Hugging Face id, or a folder with a peft LoRA adapter (with its base).

    Raises AcclimateError for an adapter of another kind, or one that was trained on other weights than its base now has.
    """
    folder = Path(ref).expanduser()
    if not (folder / "adapter_config.json").is_file():
        return Checkpoint.open(ref)
    config = read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("bias", "none") != "none":
        kind = "DoRA" if config.get("use_dora") else config.get("peft_type") if config.get("bias", "none") == "none" else "LoRA with biases"
        raise AcclimateError(
            f"{ref} holds a {kind} adapter; only LoRA is merged as it is: fold it first (Model.load, copy, save) and merge that"
        )
    manifest = read_json(folder / "acclimate.json") if (folder / "acclimate.json").exists() else {}
    base_ref = manifest.get("base") or config.get("base_model_name_or_path") or ""
    if manifest.get("base_fingerprint"):
        _same_base(ref, base_ref, manifest["base_fingerprint"])
    base = Checkpoint.open(base_ref)
    if not (folder / WEIGHTS).is_file():
        raise AcclimateError(f"{folder} holds no {WEIGHTS}; save the adapter again")
    opened = Adapted(ref, base.folder, base.slots, base.config)
    opened.factors = _factors(ref, folder, config, base)
    return opened


def _factors(ref: str, folder: Path, config: dict[str, Any], base: Checkpoint) -> dict[str, tuple[Tensor, Tensor]]:
    from safetensors.torch import load_file

    stored = {slot: tensor.float() for slot, tensor in load_file(folder / WEIGHTS).items()}
    read_header(folder / WEIGHTS)
    found = {}
    for key in [key for key in stored if key.endswith(".lora_A.weight")]:
        module = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        right, left = stored.pop(key), stored.pop(key.replace("lora_A", "lora_B"))
        rank = _pattern(config.get("rank_pattern"), module, config["r"])
        alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        name = f"{module}.weight"
        slot = base.slots.get(name)
        if slot is None:
            raise AcclimateError(f"{ref} changes {name}, which {base.ref} does not have; it was trained on another model")
        left = left * scale
        if config.get("fan_in_fan_out"):  # weights stored as [in, out]
            left, right = right.T.contiguous(), left.T.contiguous()
        if slot.shape != (left.shape[0], right.shape[1]):
            mine = [left.shape[0], right.shape[1]]
            raise AcclimateError(
                f"{ref} changes {name} as {mine}, but it is {list(slot.shape)} in {base.ref}; it is another base's adapter"
            )
        found[name] = (left, right)
    if stored:
        raise AcclimateError(f"{ref} holds more than LoRA factors, e.g. {next(iter(stored))}; fold it first (Model.load, copy, save)")
    return found


def _pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    import re

    return next((value for key, value in (patterns or {}).items() if re.fullmatch(rf"(.*\.)?({key})", module)), default)


def _same_base(ref: str, base: str, fingerprint: str) -> None:
    """The weights an adapter was trained on, by their hash."""
    from ..model import Model

    folder = place(base)
    kept = read_json(folder / "acclimate.json").get("fingerprint") if (folder / "acclimate.json").exists() else None
    now = Model.load(base, device="cpu").fingerprint if kept != fingerprint else kept
    if now != fingerprint:
        raise AcclimateError(
            f"{ref} was trained on {base} with weights {fingerprint}, but that model now has {now}; merge it with its own base"
        )
