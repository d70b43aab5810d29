"""LoRA as peft keeps it, read off files or off a model, and put beside a network's layers as LoRA of ours.

Read are LoRA adapters of linear layers (also GPT-2's transposed ones), rsLoRA, patterns of rank and alpha. In our form rows of a batch can
each have their own, and adapters compose.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import AcclimateError, nearest
from ...files import read_json
from ...method import load
from ...model import Injected
from ...model.roles import find
from ...parts.peft_targets import lora_scale
from ..merging.adapted import CONFIG, PREFIX, WEIGHTS, readable

HELD = {"lora_embedding": "LoRA of embeddings", "lora_magnitude_vector": "DoRA", "lora_B.bias": "LoRA with biases"}
MEND = "fold it into a model of its own (Model.load, copy, save), or train plain LoRA of linear layers"
Factors = dict[str, tuple[Tensor, Tensor, float]]  # place of the layer -> A [rank, input], B [output, rank], scale


def stored(folder: Path) -> Factors:
    """The factors of a LoRA adapter that peft saved, by layer, in fp32."""
    settings = read_json(folder / CONFIG)
    return _factors(str(folder), settings, read_tensors(folder / WEIGHTS))


def held(name: str, net: Any) -> Factors:
    """The same of the one active adapter of a peft model in memory; ``name`` is the model's in errors."""
    from peft import get_peft_model_state_dict

    active = net.active_adapters
    if len(active) != 1:
        raise AcclimateError(f"{name} has {len(active)} active peft adapters, but one is read; set_adapter(...) on the one that is meant")
    settings = net.peft_config[active[0]].to_dict()
    readable(name, settings)  # before peft is asked: what is no LoRA has no factors
    weights = get_peft_model_state_dict(net, adapter_name=active[0])
    return _factors(name, settings, ((key, values.detach().float().cpu()) for key, values in weights.items()))


def _factors(where: str, settings: Mapping[str, Any], weights: Iterable[tuple[str, Tensor]]) -> Factors:
    readable(where, dict(settings))
    for key, none in (("bias", "none"), ("modules_to_save", None), ("lora_bias", False), ("use_dora", False)):
        if settings.get(key) not in (none, None):
            raise AcclimateError(
                f"{where} is LoRA with {key} = {settings[key]}, which is no low-rank change alone: it can be neither composed nor mixed "
                f"in a batch; {MEND}"
            )
    found: dict[str, dict[str, Tensor]] = {}
    for key, values in weights:
        match = re.fullmatch(r"(.+)\.lora_(A|B)\.weight", key)
        if match is None or values.ndim != 2:
            what = next(
                (what for part, what in HELD.items() if part in key), "LoRA of a convolution" if match else "more than LoRA's factors"
            )
            raise AcclimateError(f"{where} holds {what} ({key}); {MEND}")
        found.setdefault(match[1].removeprefix(PREFIX), {})[match[2]] = values
    made: Factors = {}
    for path, pair in found.items():
        if len(pair) < 2:
            raise AcclimateError(f"{where} lacks {path}.lora_{'B' if 'A' in pair else 'A'}.weight; save the adapter again")
        rank, scale = lora_scale(dict(settings), path)
        if not len(pair["A"]) == pair["B"].shape[1] == rank:
            raise AcclimateError(
                f"{where}: the factors of {path} have ranks {len(pair['A'])} and {pair['B'].shape[1]}, but the configuration says {rank}"
            )
        made[path] = pair["A"], pair["B"], scale
    if not made:
        raise AcclimateError(f"{where} holds no LoRA factors: the adapter is empty; save it again")
    if not any(scale and bool(a.any()) and bool(b.any()) for a, b, scale in made.values()):
        raise AcclimateError(f"{where} changes nothing (the product of its factors is zero in every layer); it was never trained")
    return made


def put_factors(net: Injected, name: str, made: Factors) -> None:
    """Put factors beside the network's layers as the active adapter. Raises AcclimateError for layers that are not the network's.

    One rank and one scale stand for all layers: factors get zeros up to the largest rank, and B other scales.
    """
    layers = dict(net.net.named_modules())
    same_layers(f"adapter {name!r}", made, {path: None for path in layers})
    rank = max(len(a) for a, _, _ in made.values())
    scales = {scale for _, _, scale in made.values()}
    scale = scales.pop() if len(scales) == 1 and min(scales) > 0 else 1.0
    net.add(name, load("adapters.lora", r=rank, alpha=scale * rank, target=_target(net.net, made.keys())))
    parts: Any = net.parts(name)
    with torch.no_grad():
        for key, part in parts.items():
            a, b, own_scale = made[net.sites[key].target]
            if part.a.shape[1] != a.shape[1] or part.b.shape[0] != b.shape[0]:
                net.delete(name)
                raise AcclimateError(f"adapter {name!r} does not fit {net.sites[key].target}; load the base it was trained on")
            part.a.zero_()[: len(a)].copy_(a)
            part.b.zero_()[:, : len(a)].copy_(b if own_scale == scale else b * own_scale)
            part.scale = scale


def same_layers(where: str, made: Factors, layers: Mapping[str, Any]) -> None:
    """Raise AcclimateError for factors of a layer that is not among ``layers`` (place -> [input, output], or None where not known)."""
    for path, (a, b, _) in made.items():
        if path not in layers:
            raise AcclimateError(f"{where} changes {path}, which the base does not have{nearest(path, layers)}; it is another base's")
        if layers[path] is not None and [a.shape[1], b.shape[0]] != [*layers[path]]:
            raise AcclimateError(
                f"{where} changes {path} from {a.shape[1]} to {b.shape[0]} numbers, but the base's goes from {layers[path][0]} to "
                f"{layers[path][1]}; it is another base's"
            )


def _target(net: nn.Module, paths: Any) -> str | list[str]:
    """The shortest words for these layers: all linear ones, the ends of their names, or the names themselves."""
    ends = sorted({path.rpartition(".")[2] for path in paths})
    for words in ("linear", ends):
        try:
            if {site.target for site in find(net, words)} == set(paths):
                return words
        except AcclimateError:
            continue
    return sorted(paths)


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and values of a file, in fp32. Raises AcclimateError for a file that is damaged, and for values that are no numbers."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            names = list(stored.keys())
            for name in names:
                values = stored.get_tensor(name)
                if values.is_floating_point():
                    values = values.float()
                    if not bool(torch.isfinite(values).all()):
                        raise AcclimateError(f"{path}: {name} holds values that are no numbers (nan or inf); train the adapter again")
                yield name, values
    except (SafetensorError, OSError) as error:
        raise AcclimateError(f"{path} cannot be read ({' '.join(str(error).split())}); save the adapter again") from error
