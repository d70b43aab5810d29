"""Portable patches: a LoRA adapter with what has to be known to put it on a later version of its base, and how well that should go.

Khan et al. 2024, section 3, https://arxiv.org/abs/2410.10870
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import AcclimateError
from ...files import atomic_dir, read_json, write_json
from ...model import Model, quiet, tokenizer_fingerprint
from ...parts.low_rank import add, singular_values, sizes
from ...parts.peft_targets import lora_scale
from .patches import Low, Patch, differences

RECORD = "patch.json"


@dataclass
class Portable:
    """A patch, the tokenizer of its birth, and its record: base, fingerprint, family, r, alpha, targets, shapes, tokenizer, metric."""

    patch: Patch
    tokenizer: Any = field(repr=False)
    record: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def born(cls, adapted: Model, base: Model, metric: dict[str, float] | None = None) -> "Portable":
        """The patch that was trained on ``base``; ``metric`` is how well it did there, by name."""
        patch = Patch.of(adapted)
        _portable(patch, adapted.name)
        config = adapted.net.peft_config[adapted.net.active_adapters[0]]
        record = {
            "base": base.source or base.name,
            "base_fingerprint": base.fingerprint,
            "family": base.net.config.model_type,
            "r": config.r,
            "alpha": config.lora_alpha,
            "target_modules": sorted(patch.low),
            "shapes": {path: [low.b.shape[0], low.a.shape[1]] for path, low in patch.low.items()},
            "tokenizer": tokenizer_fingerprint(base.tokenizer),
            "metric": metric or {},
        }
        return cls(patch, base.tokenizer, record)

    def save(self, base: Model, folder: str | Path) -> Path:
        """As a peft adapter on ``base`` (plain peft loads it) with ``patch.json`` and the tokenizer beside it; whole or not at all."""
        with atomic_dir(folder) as temporary:
            self.patch.attach(base).save(temporary / "adapter")
            for path in (temporary / "adapter").iterdir():
                path.rename(temporary / path.name)
            (temporary / "adapter").rmdir()
            write_json(temporary / RECORD, self.record)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Portable":
        """Read a saved patch; its base is not needed. Raises AcclimateError where the folder is none, or lacks a part."""
        from safetensors.torch import load_file
        from transformers import AutoTokenizer

        folder = Path(folder)
        for name in (RECORD, "adapter_config.json", "adapter_model.safetensors"):
            if not (folder / name).is_file():
                raise AcclimateError(f"{folder} holds no {name}, so it is not a portable patch; save one with Portable.save")
        config = read_json(folder / "adapter_config.json")
        stored = load_file(folder / "adapter_model.safetensors")
        low = {}
        for key, a in stored.items():
            path, kind, _ = key.removeprefix("base_model.model.").rpartition(".lora_A.weight")
            if kind:
                b = stored[key.replace(".lora_A.", ".lora_B.")]
                flipped = bool(config.get("fan_in_fan_out"))
            else:
                path, kind, _ = key.removeprefix("base_model.model.").rpartition(".lora_embedding_A")
                if not kind:
                    continue
                b, flipped = stored[key.replace("lora_embedding_A", "lora_embedding_B")], True
            _, scale = lora_scale(config, path)
            low[path] = Low(a.T.clone(), b.T.clone(), scale) if flipped else Low(b, a, scale)
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
        return cls(Patch(low), tokenizer, read_json(folder / RECORD))

    def port(self, base: Model, name: str = "") -> Model:
        """The patch, untouched, on another version of its base; no data, no gradient. Raises AcclimateError where it does not fit."""
        return self.fitted(base).attach(base, name or f"{base.name}+patch")

    def fitted(self, base: Model) -> Patch:
        """The patch for ``base``, after the check; factors with a row per token follow their tokens to the rows of its tokenizer.

        The family must be the same, every patched layer must have its name and shape, and every token of the old tokenizer must be known.
        """
        check(self.record["family"], self.tokenizer, base)
        old, new = self.tokenizer.get_vocab(), base.tokenizer.get_vocab()
        same = self.record["tokenizer"] == tokenizer_fingerprint(base.tokenizer)
        layers = dict(base.net.named_modules())
        heads = [layer for layer in (base.net.get_input_embeddings(), base.net.get_output_embeddings()) if layer is not None]
        low = {}
        for path, each in self.patch.low.items():
            if path not in layers or not hasattr(layers[path], "weight"):
                raise AcclimateError(f"{base.name} has no layer {path}, which the patch changes; it is not a version of its base")
            shape = tuple(layers[path].weight.shape)
            by_token = any(layers[path] is head for head in heads)
            if by_token and (not same or shape[0] != each.b.shape[0]):
                each = Low(_rows(each.b, old, new, shape[0]), each.a, each.scale)
            if shape != (each.b.shape[0], each.a.shape[1]):
                have = [each.b.shape[0], each.a.shape[1]]
                raise AcclimateError(
                    f"{path} has shape {list(shape)} in {base.name}, but {have} in the patch; it is not a version of its base"
                )
            low[path] = each
        return Patch(low)


def check(family: str, tokenizer: Any, base: Model) -> None:
    """Whether ``base`` may be a later version of a model: raises AcclimateError for another family, and for one that lost tokens."""
    found = base.net.config.model_type
    if found != family:
        raise AcclimateError(f"{base.name} is a {found} model, but the patch was born on {family}; it cannot be ported")
    old, new = tokenizer.get_vocab(), base.tokenizer.get_vocab()
    lost = sorted(token for token in old if token not in new)
    if lost:
        raise AcclimateError(
            f"{base.name} has another tokenizer, without {len(lost)} of the {len(old)} tokens that the patch knows "
            f"(e.g. {lost[0]!r}); train the patch anew"
        )


def gaps(patch: Patch, fresh: Patch, old: Model, new: Model) -> list[dict[str, Any]]:
    """Why a port should work, matrix by matrix: how far a patch trained on the new base lies from the ported one (section 3.2).

    ``gap``: |fresh - patch| / |patch|; ``share``: |patch| / |new - old|, Frobenius norms; the largest singular values of the patch, the
    fresh patch, their difference and the evolution of the base. Small gaps beside the evolution speak for the port.
    """
    evolved = {name.removesuffix(".weight"): change for name, change in differences(old, new)}
    found = []
    for path, low in patch.low.items():
        if path not in fresh.low or path not in evolved:
            continue
        own, other = low.factors, fresh.low[path].factors
        values = {"patch": singular_values(*own), "fresh": singular_values(*other)}
        values["difference"] = singular_values(*add([other, own], [1.0, -1.0]))
        norm = {key: float(value.double().norm()) for key, value in values.items()}
        moved, top = sizes(evolved[path])
        found.append(
            {
                "layer": path,
                "gap": _ratio(norm["difference"], norm["patch"]),
                "share": _ratio(norm["patch"], moved),
                **{f"top_{key}": float(value.max()) for key, value in values.items()},
                "top_evolution": top,
            }
        )
    return found


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None


def _portable(patch: Patch, name: str) -> None:
    if patch.dense:
        raise AcclimateError(
            f"{name} trained whole layers ({next(iter(patch.dense))}), which belong to its base; port low-rank changes alone"
        )


def _rows(factor: Tensor, old: dict[str, int], new: dict[str, int], size: int) -> Tensor:
    """A factor [old row, rank] with its rows where the same tokens stand now [size, rank]; new tokens get zeros."""
    made = torch.zeros(size, factor.shape[1], dtype=factor.dtype)
    pairs = [(row, new[token]) for token, row in old.items() if row < len(factor) and new[token] < size]
    made[[there for _, there in pairs]] = factor[[here for here, _ in pairs]]
    return made
