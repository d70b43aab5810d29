"""Several adapters of one base as one adapter, a layer at a time: added exactly, or merged by a method as dense changes and split again.

The factors of the result are small and stay in memory; of dense changes there is one layer's at a time, and the base's weights are read
from disk, only where DoRA or layers trained whole ask for them. What is written is peft's own format.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...errors import AcclimateError
from ...files import atomic_dir, read_json, write_json
from ...kinds import Merge
from ...parts import low_rank
from ...progress import bar
from .adapted import PREFIX, WEIGHTS, Adapted
from .checkpoint import EMBEDDINGS, HEADS, Checkpoint, place
from .vocabulary import copy_files

REPORT = "combine.json"


@dataclass
class Combined:
    """An adapter in memory: factors and whole tensors by the name of the base's weight, and what is known of each."""

    adapters: Sequence[Adapted]
    low: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # weight -> [row, rank], [rank, column], as the base stores it
    whole: dict[str, Tensor] = field(default_factory=dict)  # weight -> the change, dense
    kinds: dict[str, tuple[str, str]] = field(default_factory=dict)  # weight of ``low`` -> its layer's name in the adapter, kind
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)  # weight -> rank, energy_kept, cosine
    facts: dict[str, Any] = field(default_factory=dict)
    one: tuple[str, str] | None = None  # embedding and output layer, where they are one weight in all adapters

    @property
    def parts(self) -> list[str]:
        """Layers that are stored whole."""
        return sorted({_layer(name) for name in self.whole if not name.endswith(".bias")})

    @property
    def bias(self) -> Literal["none", "all", "lora_only"]:
        """Which biases the adapter stores, in peft's words."""
        if not any(name.endswith(".bias") and _layer(name) not in self.parts for name in self.whole):
            return "none"
        return "all" if any(adapter.settings.get("bias") == "all" for adapter in self.adapters) else "lora_only"

    def tensor(self, name: str) -> Tensor:
        """A whole tensor, base and change, in the widest type that an adapter or else the base stores it in."""
        base = self.adapters[0].base.tensor(name)
        types = [adapter.slots[name].dtype.torch for adapter in self.adapters if name in adapter.replaced] or [base.dtype]
        dtype = max(types, key=lambda dtype: dtype.itemsize)
        return (base.float() + self.whole.get(name, torch.zeros(()))).to(dtype)


def free(folder: str | Path) -> None:
    """A place may be new, empty, or an earlier combination's. Raises AcclimateError."""
    folder = Path(folder)
    if folder.exists() and not (folder / REPORT).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise AcclimateError(f"{folder} exists and is no combined adapter; choose another place, or empty it")


def one_base(adapters: Sequence[Adapted]) -> None:
    """All adapters must be of the same weights: the same place, or the same bytes. Raises AcclimateError."""
    first = adapters[0]
    for other in adapters[1:]:
        if place(other.base.ref).resolve() == place(first.base.ref).resolve() or other.base.hash == first.base.hash:
            continue
        raise AcclimateError(
            f"{other.ref} is an adapter of {other.base.ref}, but {first.ref} of {first.base.ref}; only adapters of one base are combined"
        )


def combine(
    adapters: Sequence[Adapted],
    weights: Sequence[float],
    *,
    method: Merge | None = None,
    rank: int = 0,
    energy: float = 0.0,
    seed: int = 0,
) -> Combined:
    """The weighted sum of the adapters' changes, or what ``method`` makes of them on a base of zeros (it has its own weights).

    Without rank and energy the sum is exact, the ranks side by side. A layer that an adapter leaves alone counts as a change of zero.
    """
    made = Combined(adapters, one=_one(adapters))
    names = [name for name in _order(adapters[0]) if any(name in adapter.changed for adapter in adapters)]
    wide = _wide(method, adapters, names) if method is not None and method.model_wide else None
    count = len(adapters)
    total = kept = 0.0
    dots, sizes = np.zeros(count), np.zeros(count)
    with torch.no_grad():
        for name in bar(names, what="combining", unit="layer"):
            owners = [adapter for adapter in adapters if name in adapter.changed]
            as_factors = all(name in adapter.factors and name not in adapter.replaced for adapter in owners)
            exact = method is None and as_factors and all(adapter.factors[name].lengths is None for adapter in owners)
            if as_factors:
                made.kinds[name] = (owners[0].factors[name].module, owners[0].factors[name].kind)
            found = (_exact if exact else _dense)(made, name, weights, method, rank, energy, seed, wide)
            whole_size, own_size, own_dots, own_sizes = found
            made.layers[name] = {
                **({"rank": made.low[name][0].shape[1]} if name in made.low else {}),
                "energy_kept": min(1.0, own_size / whole_size) if whole_size else 1.0,
                "cosine": _cosines(own_dots, own_size, own_sizes),
            }
            total, kept = total + whole_size, kept + own_size
            dots, sizes = dots + own_dots, sizes + own_sizes
    if not made.low:
        raise AcclimateError("the combined change of all layers is zero, so there is nothing to put into an adapter")
    cosines = {f"{i}:{adapter.ref}": value for i, (adapter, value) in enumerate(zip(adapters, _cosines(dots, kept, sizes), strict=True))}
    made.facts = {"energy_kept": min(1.0, kept / total) if total else 1.0, "cosine": cosines}
    return made


def _exact(made: Combined, name: str, weights: Sequence[float], _: Any, rank: int, energy: float, *__: Any) -> tuple[Any, ...]:
    """Add the factors of one layer; squares of the sum and of what is kept of it, products with the inputs and their squares."""
    pairs = [(low.left, low.right) if (low := adapter.factors.get(name)) else None for adapter in made.adapters]
    having = [(pair, weight) for pair, weight in zip(pairs, weights, strict=True) if pair is not None]
    whole = kept = low_rank.add([pair for pair, _ in having], [weight for _, weight in having])
    if rank or energy:
        kept = low_rank.shorten(*whole, rank=rank, energy=energy or 1.0)
    if kept[0].shape[1]:
        made.low[name] = kept
    dots = [_inner(kept, pair) if pair else 0.0 for pair in pairs]
    sizes = [_inner(pair, pair) if pair else 0.0 for pair in pairs]
    return _inner(whole, whole), _inner(kept, kept), np.array(dots), np.array(sizes)


def _dense(
    made: Combined, name: str, weights: Sequence[float], method: Merge | None, rank: int, energy: float, seed: int, wide: Any
) -> tuple[Any, ...]:
    """The same for one layer whose changes have to be dense."""
    tuned = torch.stack([adapter.change(name) for adapter in made.adapters])
    if method is None:
        merged = torch.tensordot(torch.tensor(list(weights), dtype=torch.float32), tuned, dims=1)
    else:
        shaped = _shaped(method, tuned)
        found = method.whole(torch.zeros(shaped.shape[1:]), shaped, seed=[seed, zlib.crc32(name.encode())], seen=wide)
        merged = found.reshape(tuned.shape[1:])
    size, kept = float(merged.square().sum(dtype=torch.float64)), merged
    if name in made.kinds:
        b, a = low_rank.split(merged, rank=rank, energy=energy or 1.0)
        kept = b @ a
        if b.shape[1]:
            made.low[name] = (b, a)
    else:
        made.whole[name] = merged
    dots = np.array([float((change * kept).sum(dtype=torch.float64)) for change in tuned])
    sizes = np.array([float(change.square().sum(dtype=torch.float64)) for change in tuned])
    return size, float(kept.square().sum(dtype=torch.float64)), dots, sizes


def _wide(method: Merge, adapters: Sequence[Adapted], names: Sequence[str]) -> list[Tensor]:
    """The looks of a method that ranks among all layers, added up over them."""
    seen: list[Tensor] = []
    while True:
        total: Tensor | None = None
        for name in names:
            tuned = _shaped(method, torch.stack([adapter.change(name) for adapter in adapters]))
            found = method.look(torch.zeros(tuned.shape[1:]), tuned, seen)
            if found is None:
                return seen
            total = found if total is None else total + found
        assert total is not None
        seen.append(total)


def _shaped(method: Merge, tuned: Tensor) -> Tensor:
    """Vectors as one row each, where the method works on rows."""
    return tuned[:, None] if method.rows and tuned.ndim == 2 else tuned


def _order(adapter: Adapted) -> Iterator[str]:
    """Names of all weights in the base's order, its tied output layer last."""
    yield from adapter.base.slots
    yield from (name for name in HEADS if name not in adapter.base.slots and adapter.base.tied)


def _one(adapters: Sequence[Adapted]) -> tuple[str, str] | None:
    """Embedding and output layer, if all adapters that change either change both as one weight. Raises AcclimateError if only some do."""
    pair = next((adapter.one for adapter in adapters if adapter.one), None)
    apart = [adapter for adapter in adapters if pair and not adapter.one and adapter.changed & set(pair)]
    if apart:
        raise AcclimateError(
            f"{apart[0].ref} changes the embedding and the output layer apart, another adapter as one; merge them into a model instead"
        )
    return pair


def _cosines(dots: np.ndarray, kept: float, sizes: np.ndarray) -> list[float]:
    lengths = np.sqrt(sizes * kept)
    return [float(dot / length) if length > 0 else 0.0 for dot, length in zip(dots, lengths, strict=True)]


def save(made: Combined, folder: str | Path, about: dict[str, Any]) -> Path:
    """Write the adapter as peft does, with ``about`` in its manifest; the folder appears whole or not at all."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    first = made.adapters[0]
    ranks = {made.kinds[name][0]: b.shape[1] for name, (b, _) in made.low.items()}
    most = max(sorted(set(ranks.values())), key=list(ranks.values()).count)
    pattern = {module: rank for module, rank in ranks.items() if rank != most}
    targets = _targets(made)
    config = LoraConfig(
        r=most, lora_alpha=most, lora_dropout=0.0, target_modules=targets, rank_pattern=dict(pattern), alpha_pattern=dict(pattern),
        modules_to_save=[first.outside(part) for part in made.parts] or None, bias=made.bias, ensure_weight_tying=made.one is not None,
        fan_in_fan_out=any(kind == "transposed" for _, kind in made.kinds.values()), task_type=first.settings.get("task_type"),
        base_model_name_or_path=first.settings.get("base_model_name_or_path"), revision=first.settings.get("revision"), inference_mode=True,
    )  # fmt: skip
    tensors = _factors(made) | _wholes(made) | _biases(made)
    if {"lm_head", "embed_tokens"} & set(targets):  # peft stores the frozen tables of tokens too, and looks for them
        tables = [name for name in made.low if name.endswith((*EMBEDDINGS, *HEADS))]
        tensors |= {f"{made.kinds[name][0]}.base_layer.weight": first.base.tensor(name) for name in tables}
    with atomic_dir(folder) as temporary:
        save_file({PREFIX + key: tensor.contiguous() for key, tensor in tensors.items()}, temporary / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(str(temporary))
        manifest = first.home / "acclimate.json"
        kept = read_json(manifest) if manifest.is_file() else {}
        same = {key: kept[key] for key in ("kind", "base", "base_fingerprint") if key in kept}
        write_json(temporary / "acclimate.json", {"name": Path(folder).name, **same, "made": about})
        write_json(temporary / REPORT, {**about, **made.facts, "layers": made.layers})
        copy_files(Checkpoint("", first.home, {}, {}), temporary)
        (temporary / "README.md").write_text(_card(made, Path(folder).name, about), encoding="utf-8")
    return Path(folder)


def _factors(made: Combined) -> dict[str, Tensor]:
    """The factors under peft's names."""
    found: dict[str, Tensor] = {}
    for name, (b, a) in made.low.items():
        module, kind = made.kinds[name]
        form = ".lora_embedding_{}" if kind == "embedding" else ".lora_{}.weight"
        left, right = (b, a) if kind == "linear" else (a.T, b.T)
        found |= {module + form.format("A"): right, module + form.format("B"): left}
        if made.one and name == made.one[0]:
            head = made.adapters[0].outside(made.one[1]).removesuffix(".weight")
            found |= {f"{head}.lora_A.weight": a.clone(), f"{head}.lora_B.weight": b.clone()}
    return found


def _wholes(made: Combined) -> dict[str, Tensor]:
    """All tensors of the layers that are stored whole, base and change."""
    names = [name for name in made.adapters[0].base.slots if _layer(name) in made.parts]
    names += [name for name in made.whole if _layer(name) in made.parts and name not in names]
    first = made.adapters[0]
    found = {first.outside(name): made.tensor(name) for name in names}
    if made.one and made.one[0] in names:
        found[first.outside(made.one[1])] = found[first.outside(made.one[0])].clone()
    return found


def _biases(made: Combined) -> dict[str, Tensor]:
    """Trained biases under peft's names: those of all layers with factors, and with ``all`` every other that an adapter stores."""
    if made.bias == "none":
        return {}
    first, adapted = made.adapters[0], {_layer(name) for name in made.low}
    found: dict[str, Tensor] = {}
    names = [f"{layer}.bias" for layer in adapted if f"{layer}.bias" in first.base.slots]
    for name in dict.fromkeys([*names, *(name for name in made.whole if name.endswith(".bias"))]):
        layer = first.outside(_layer(name))
        if _layer(name) in made.parts:
            if made.bias == "all":
                found |= {f"{layer}.original_module.bias": first.base.tensor(name), f"{layer}.modules_to_save.bias": made.tensor(name)}
        else:
            found[f"{layer}.base_layer.bias" if _layer(name) in adapted else f"{layer}.bias"] = made.tensor(name)
    return found


def _targets(made: Combined) -> list[str]:
    """Names for peft's target_modules: the last parts, where these mean just the layers that are changed, else whole paths."""
    first = made.adapters[0]
    tables = {made.kinds[name][0] for name in made.low if name.endswith((*EMBEDDINGS, *HEADS))}
    layers = {made.kinds[name][0] for name in made.low} - tables
    short = {layer.rpartition(".")[2] for layer in layers}
    every = {first.outside(_layer(name)) for name in first.base.slots if name.endswith(".weight")}
    alike = {layer for layer in every if layer.rpartition(".")[2] in short}
    return sorted((short if alike == layers else layers) | tables)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _inner(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Sum of the products of the entries of two matrices, from their factors."""
    (b, a), (d, c) = one, other
    return float(((b.T @ d).double() * (a @ c.T).double()).sum())


def _card(made: Combined, name: str, about: dict[str, Any]) -> str:
    base = made.adapters[0].settings.get("base_model_name_or_path")
    lines = ["---", "library_name: peft", f"base_model: {base}", "base_model_relation: adapter", "tags: [lora, merge, acclimate]", "---"]
    lines += [f"# {name}", "", f"Adapters of `{base}`, combined with acclimate by `{about['method']}`.", ""]
    lines += ["| adapter | weight | cosine of its change with the combined one |", "|---|---|---|"]
    rows = zip(about["adapters"], about["weights"], made.facts["cosine"].values(), strict=True)
    lines += [f"| `{ref}` | {weight:g} | {cosine:.3f} |" for ref, weight, cosine in rows]
    return "\n".join([*lines, "", f"The factors hold {made.facts['energy_kept']:.1%} of it; per layer in `{REPORT}`.", ""])
