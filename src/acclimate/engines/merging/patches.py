"""Adapters as changes of weights, and changes as adapters, one matrix at a time.

A change is (name of a weight of the plain model, what is added to it [*shape] in fp32). :func:`changes` and :func:`differences` read
changes off an adapted model or off two whole ones, :func:`fold` adds them to a model, and a :class:`Patch` holds them as low-rank factors:
a LoRA adapter in memory, of any rank per layer, that plain peft loads once it is saved.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import AcclimateError
from ...files import atomic_dir
from ...model import Model, quiet
from ...model.tables import tables, tied
from ...parts.low_rank import add, shorten, split

Change = tuple[str, Tensor]
PREFIX = "base_model.model."
IN_MEMORY = "changed in memory"  # the source of a model that no longer is what stands in its folder


def changes(adapted: Model) -> Iterator[Change]:
    """What the active adapter of a peft model adds to each weight; DoRA after its lengths are applied (merged, then subtracted).

    Raises AcclimateError for adapters that are no change of weights (prefix, prompt), and for one that trained biases.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    config = _config(adapted)
    if getattr(config, "bias", "none") != "none":
        raise AcclimateError(f"{adapted.name}: its adapter trained biases too, which are not read; train it with bias = none")
    seen: set[int] = set()
    for path, layer in adapted.net.named_modules():
        name = path.removeprefix(PREFIX)
        if isinstance(layer, BaseTunerLayer) and hasattr(layer, "merge") and layer.active_adapters:
            if _first(layer.get_base_layer(), seen):
                yield f"{name}.weight", _change(layer)
        elif isinstance(layer, ModulesToSaveWrapper) and layer.active_adapters and _first(layer.original_module, seen):
            yield from _saved_changes(name, layer)
    if not seen:
        raise AcclimateError(f"{adapted.name} holds a {config.peft_type} adapter, which is no change of weights and cannot be folded")


def _change(layer: Any) -> Tensor:
    import copy

    names = layer.active_adapters
    plain = hasattr(layer, "get_delta_weight") and not any(getattr(layer, "use_dora", {}).get(name) for name in names)
    with torch.no_grad():
        if plain:
            return sum(layer.get_delta_weight(name).float() for name in names if name in layer.scaling)
        before = layer.get_base_layer().weight.detach().float()
        own = copy.deepcopy(layer).float()
        own.merge(safe_merge=True)
        return own.get_base_layer().weight.detach() - before


def _first(layer: nn.Module, seen: set[int]) -> bool:
    """Whether the layer's weight has not been met yet (a tied output layer's is the embedding's); remembers it."""
    known = id(layer.weight) in seen
    seen.add(id(layer.weight))
    return not known


def _saved_changes(path: str, layer: Any) -> Iterator[Change]:
    """What a layer that was trained whole adds to the one it stands for."""
    for part, weight in layer.modules_to_save[layer.active_adapters[0]].named_parameters():
        yield f"{path}.{part}", weight.detach().float() - layer.original_module.get_parameter(part).detach().float()


def differences(base: Model, tuned: Model) -> Iterator[Change]:
    """``tuned - base``, weight by weight; a vocabulary of another size is compared on the tokens that both have, the rest is 0.

    Raises AcclimateError where names or shapes differ otherwise, and for an output layer that only one of both has apart.
    """
    _plain(base)
    _plain(tuned)
    own, theirs = dict(base.net.named_parameters()), dict(tuned.net.named_parameters())
    lost = sorted(own.keys() ^ theirs.keys())
    if lost:
        where = base.name if lost[0] in own else tuned.name
        raise AcclimateError(f"{tuned.name} and {base.name} are not of one architecture: only {where} has {lost[0]}")
    by_token = set(tables(base.net)) if base.tokenizer.get_vocab() != tuned.tokenizer.get_vocab() else set()
    rows = shared_rows(base, tuned) if by_token else None
    with torch.no_grad():
        for name, weight in own.items():
            other = theirs[name]
            if rows is not None and name in by_token and weight.shape[1:] == other.shape[1:]:
                change = torch.zeros_like(weight, dtype=torch.float32)
                change[rows[0]] = other[rows[1]].float() - weight[rows[0]].float()
                yield name, change
            elif weight.shape == other.shape:
                yield name, other.float() - weight.float()
            else:
                raise AcclimateError(f"{name} has shape {list(weight.shape)} in {base.name}, but {list(other.shape)} in {tuned.name}")


def shared_rows(one: Model, other: Model) -> tuple[Tensor, Tensor]:
    """Rows of the tokens that two models share [token], in the first's and in the second's embedding, matched by their text."""
    first, second = one.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    limits = [model.net.get_input_embeddings().weight.shape[0] for model in (one, other)]
    pairs = sorted((row, second[token]) for token, row in first.items() if token in second)
    pairs = [pair for pair in pairs if pair[0] < limits[0] and pair[1] < limits[1]]
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return torch.from_numpy(found[:, 0].copy()), torch.from_numpy(found[:, 1].copy())


def grown(base: Model, other: Model) -> Model:
    """A copy of ``base`` with the vocabulary and tokenizer of ``other``: shared tokens keep base's rows, new ones take the other's."""
    mine, theirs = shared_rows(base, other)
    made = base.copy()
    size = other.net.get_input_embeddings().weight.shape[0]
    with quiet(), torch.no_grad():
        made.net.resize_token_embeddings(size, mean_resizing=False)
        for name in tables(made.net):
            rows = other.net.get_parameter(name).to(made.net.get_parameter(name).dtype, copy=True)
            rows[theirs] = base.net.get_parameter(name)[mine]
            made.net.get_parameter(name).copy_(rows)
    made.tokenizer, made.source = other.tokenizer, IN_MEMORY
    return made


def fold(base: Model, *scaled: tuple[float, Iterable[Change]], name: str = "", in_place: bool = False) -> Model:
    """A copy of ``base`` (or itself, ``in_place``) with changes added: base + sum of scale x change, each change as it comes.

    Raises AcclimateError for a change of a weight that the base lacks, or of another shape.
    """
    _plain(base)
    made = base if in_place else base.copy(name or None)
    made.source = IN_MEMORY
    weights = dict(made.net.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for scale, some in scaled:
            for weight, change in some:
                if weight not in weights or weights[weight].shape != change.shape:
                    have = list(weights[weight].shape) if weight in weights else "absent"
                    raise AcclimateError(f"{base.name}: {weight} is {have}, but the change has shape {list(change.shape)}")
                held = weights[weight]
                held.copy_(held.float() + scale * change.to(held.device))
    return made


def distance(one: Model, other: Model) -> float:
    """Length of the difference of all weights."""
    return float(np.sqrt(sum(float(change.double().square().sum()) for _, change in differences(one, other))))


@dataclass(frozen=True)
class Low:
    """One layer's change, scale x b @ a, as the layer stores its weight: b [row, rank], a [rank, column]."""

    b: Tensor
    a: Tensor
    scale: float = 1.0

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """Both factors in fp32, the scale in the first."""
        return self.scale * self.b.float(), self.a.float()


@dataclass
class Patch:
    """A LoRA adapter in memory: factors by layer, and changes of small weights (norms) and embeddings that stay dense, by weight."""

    low: dict[str, Low]
    dense: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, adapted: Model) -> "Patch":
        """The active LoRA adapter of a peft model. Raises AcclimateError for DoRA and other makes (see :meth:`of_changes`)."""
        from peft.tuners.lora import LoraLayer
        from peft.utils import ModulesToSaveWrapper

        config = _config(adapted)
        if config.peft_type != "LORA" or config.use_dora:
            kind = "DoRA" if config.peft_type == "LORA" else config.peft_type
            raise AcclimateError(
                f"{adapted.name} holds a {kind} adapter, which is bound to the lengths of its base's weights or has no factors; train LoRA"
            )
        low: dict[str, Low] = {}
        dense: dict[str, Tensor] = {}
        seen: set[int] = set()
        for path, layer in adapted.net.named_modules():
            if isinstance(layer, LoraLayer) and layer.active_adapters:
                if len(layer.active_adapters) > 1:
                    raise AcclimateError(f"{adapted.name} has several active adapters; fold them, or activate one")
                low[path.removeprefix(PREFIX)] = _factors(layer, layer.active_adapters[0])
            elif isinstance(layer, ModulesToSaveWrapper) and layer.active_adapters and _first(layer.original_module, seen):
                dense |= dict(_saved_changes(path.removeprefix(PREFIX), layer))
        return cls(low, dense)

    @classmethod
    def of_changes(cls, base: Model, some: Iterable[Change], *, rank: int = 0, energy: float = 1.0, dense: bool = True) -> "Patch":
        """Changes of ``base`` as an adapter: linear layers by their SVD (see parts.low_rank.split), the rest kept ``dense`` or left out."""
        made = cls({}, {})
        kept = total = 0.0
        layers = dict(base.net.named_modules())
        second = base.net.get_output_embeddings() if tied(base.net) else None  # the embedding in its other place
        for name, change in some:
            path, _, part = name.rpartition(".")
            total += float(change.double().square().sum())
            if part == "weight" and _linear(layers.get(path)) and layers[path] is not second:
                b, a = split(change, rank=rank, energy=energy)
                if b.shape[1]:
                    made.low[path] = Low(b, a)
                kept += float(((b.T @ b) * (a @ a.T)).sum())
            elif dense and bool(change.any()):
                made.dense[name] = change
                kept += float(change.double().square().sum())
        made.facts["energy_kept"] = kept / total if total else 1.0
        if not made.low:
            raise AcclimateError(f"no linear layer of {base.name} is changed, so there is nothing to put into an adapter")
        return made

    def changes(self, scale: float = 1.0) -> Iterator[Change]:
        """The patch as dense changes."""
        for path, low in self.low.items():
            b, a = low.factors
            yield f"{path}.weight", scale * (b @ a)
        for name, change in self.dense.items():
            yield name, scale * change

    def attach(self, base: Model, name: str = "", scale: float = 1.0) -> Model:
        """The adapter on ``base``, whose weights are shared and not copied; base + scale x change. :meth:`Model.save` saves it."""
        return stack(base, {"default": (self, scale)}, name=name or f"{base.name}+patch")

    def _beside(self, name: str) -> bool:
        """Whether a dense change is of the bias of a layer that has factors."""
        path, _, part = name.rpartition(".")
        return part == "bias" and path in self.low

    def peft(self, net: Any, scale: float = 1.0) -> Any:
        """Peft's LoraConfig: one rank where all layers have the same, else a pattern by layer."""
        from ...parts.peft_targets import lora_config

        ranks = {path: low.b.shape[1] for path, low in self.low.items()}
        alphas = {path: scale * low.scale * ranks[path] for path, low in self.low.items()}
        first = next(iter(ranks))
        pattern: dict[str, Any] = {}
        if len(set(ranks.values())) > 1:
            pattern["rank_pattern"] = ranks
        if len(set(alphas.values())) > 1:
            pattern["alpha_pattern"] = alphas
        if any(map(self._beside, self.dense)):
            pattern["bias"] = "all"  # peft then stores biases where they are, which "lora_only" does not
        if whole := sorted({name.rpartition(".")[0] for name in self.dense if not self._beside(name)}):
            pattern["modules_to_save"] = whole
            pattern["ensure_weight_tying"] = tied(net) and any(
                part.weight is net.get_input_embeddings().weight for part in _saved(net, pattern)
            )
        config = lora_config(net, r=ranks[first], alpha=alphas[first], dropout=0.0, target=list(ranks), **pattern)
        config.inference_mode = False
        return config


def stack(base: Model, patches: Mapping[str, tuple[Patch, float]], name: str = "") -> Model:
    """Several named patches on one base, all active, each with its scale; peft's ``set_adapter`` and ``set_scale`` can change both later.

    At most one of them may hold dense changes. Raises AcclimateError for a layer that the base lacks or has in another shape.
    """
    from peft import PeftModel, get_peft_model

    if sum(bool(patch.dense) for patch, _ in patches.values()) > 1:
        raise AcclimateError(
            "two of the patches hold changes of norms or embeddings, and peft stacks one such adapter; combine() them first"
        )
    identity = base.fingerprint
    made = base.copy(name or None, share=True)
    for patch, _ in patches.values():
        _fits(patch, made)
    net: Any = made.net
    with quiet(), torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        for key, (patch, scale) in patches.items():
            config = patch.peft(net.get_base_model() if isinstance(net, PeftModel) else net, scale)
            if isinstance(net, PeftModel):
                net.add_adapter(key, config)
            else:
                net = get_peft_model(net, config, adapter_name=key)
            _write(net, key, patch, scale)
        if len(patches) > 1:
            net.base_model.set_adapter(list(patches))
    made.net = net.eval()
    made.notes |= {"base": base.source, "base_fingerprint": identity}
    return made


def combine(patches: Sequence[tuple[Patch, float]], *, rank: int = 0, energy: float = 0.0) -> Patch:
    """The weighted sum of patches of one base as one patch: exact, its ranks laid side by side; shortened by SVD with rank or energy."""
    if not patches:
        raise AcclimateError("there are no patches to combine")
    low: dict[str, Low] = {}
    for path in dict.fromkeys(path for patch, _ in patches for path in patch.low):
        having = [(patch.low[path].factors, weight) for patch, weight in patches if path in patch.low]
        shapes = {(b.shape[0], a.shape[1]) for (b, a), _ in having}
        if len(shapes) > 1:
            raise AcclimateError(f"{path} has shapes {sorted(shapes)} in the patches, so they are not of one base")
        b, a = add([factors for factors, _ in having], [weight for _, weight in having])
        if rank or energy:
            b, a = shorten(b, a, rank=rank, energy=energy or 1.0)
        if b.shape[1]:
            low[path] = Low(b, a)
    dense: dict[str, Tensor] = {}
    for patch, weight in patches:
        for name, change in patch.dense.items():
            dense[name] = dense[name] + weight * change if name in dense else weight * change
    return Patch(low, dense)


def save_stack(base: Model, patches: Mapping[str, tuple[Patch, float]], folder: str | Path) -> Path:
    """Each patch as an adapter of its own that plain peft loads, at scale 1, and ``scales.json`` with the scale of each by its name."""
    from ...files import write_json

    with atomic_dir(folder) as temporary:
        for name, (patch, _) in patches.items():
            patch.attach(base, name).save(temporary / name)
        write_json(temporary / "scales.json", {name: scale for name, (_, scale) in patches.items()})
    return Path(folder)


def _plain(model: Model) -> None:
    if model.adapted:
        raise AcclimateError(f"{model.name} holds an adapter; give the plain model, or fold it with Model.copy()")


def _config(adapted: Model) -> Any:
    if not adapted.adapted:
        raise AcclimateError(f"{adapted.name} holds no adapter")
    return adapted.net.peft_config[adapted.net.active_adapters[0]]


def _linear(layer: Any) -> bool:
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


def _flipped(layer: Any) -> bool:
    """Whether a layer stores its weight as [input, output]."""
    return isinstance(layer, nn.Embedding) or type(layer).__name__ == "Conv1D"


def _factors(layer: Any, key: str) -> Low:
    if key in layer.lora_A:
        b, a = layer.lora_B[key].weight.detach(), layer.lora_A[key].weight.detach()
    else:
        b, a = layer.lora_embedding_B[key].detach(), layer.lora_embedding_A[key].detach()
    if b.ndim != 2:
        kind = type(layer.get_base_layer()).__name__
        raise AcclimateError(f"a LoRA adapter of a {kind} layer cannot be read as a matrix; fold it instead")
    b, a = (a.T, b.T) if _flipped(layer.get_base_layer()) else (b, a)
    return Low(b.clone(), a.clone(), layer.scaling[key])


def _saved(net: nn.Module, pattern: dict[str, Any]) -> list[Any]:
    parts = [net.get_submodule(path) for path in pattern["modules_to_save"]]
    return [part for part in parts if hasattr(part, "weight")]


def _fits(patch: Patch, base: Model) -> None:
    layers, weights = dict(base.net.named_modules()), dict(base.net.named_parameters(remove_duplicate=False))
    for path, low in patch.low.items():
        want = (low.b.shape[0], low.a.shape[1])
        if path not in layers or tuple(layers[path].weight.shape) != want:
            have = "has none of that name" if path not in layers else f"has {list(layers[path].weight.shape)}"
            raise AcclimateError(f"the patch changes {path} of shape {list(want)}, but {base.name} {have}")
    for name, change in patch.dense.items():
        if name not in weights or weights[name].shape != change.shape:
            raise AcclimateError(f"the patch changes {name} of shape {list(change.shape)}, which {base.name} does not have")


def _write(net: Any, key: str, patch: Patch, scale: float) -> None:
    with torch.no_grad():
        for path, low in patch.low.items():
            layer = net.get_submodule(PREFIX + path)
            b, a = (low.a.T, low.b.T) if _flipped(layer.get_base_layer()) else (low.b, low.a)
            if key in layer.lora_A:
                layer.lora_A[key].weight.copy_(a)
                layer.lora_B[key].weight.copy_(b)
            else:
                layer.lora_embedding_A[key].copy_(a)
                layer.lora_embedding_B[key].copy_(b)
        for name, change in patch.dense.items():
            path, _, part = name.rpartition(".")
            held = net.get_submodule(PREFIX + path)
            if patch._beside(name):  # a bias of its own: that of the base stays what it is
                layer = held.get_base_layer()
                layer.bias = nn.Parameter(layer.bias + (scale * change).to(layer.bias.dtype), requires_grad=False)
                continue
            weight = held.modules_to_save[key].get_parameter(part)
            weight.copy_(held.original_module.get_parameter(part).float() + scale * change)
