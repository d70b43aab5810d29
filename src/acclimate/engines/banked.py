"""One adapter of a bank: whether its files are whole and fit a base, how it is put beside the base's layers, and whether it answers alike.

Read are LoRA adapters of linear layers as peft saves them (also GPT-2's transposed layers, rsLoRA, patterns of rank and alpha), which
become parts that a mixed batch multiplies at once, and folders of one adapter of our own of any make.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AcclimateError, nearest
from ..files import digest, file_digest, read_json
from ..method import load
from ..model import Injected, Model, quiet
from ..model.injected import CONFIG, WEIGHTS
from ..model.roles import find
from ..parts.peft_targets import lora_scale
from .adapted import PREFIX, readable

FILES = {"peft": ("adapter_config.json", "adapter_model.safetensors"), "acclimate": (CONFIG, WEIGHTS)}
HELD = {"lora_embedding": "LoRA of embeddings", "lora_magnitude_vector": "DoRA", "lora_B.bias": "LoRA with biases"}
MEND = "fold it into a model of its own (Model.load, copy, save), or train plain LoRA of linear layers"
Factors = dict[str, tuple[Tensor, Tensor, float]]  # place of the layer -> A [rank, input], B [output, rank], scale


def kind_of(folder: Path) -> str:
    """peft or acclimate, by the files. Raises AcclimateError where an adapter's files are not both there."""
    if not folder.is_dir():
        raise AcclimateError(f"no adapter at {folder}: the folder does not exist")
    kind = next((kind for kind, (config, _) in FILES.items() if (folder / config).is_file()), None)
    if kind is None:
        raise AcclimateError(f"{folder} holds no adapter (neither {' nor '.join(files[0] for files in FILES.values())})")
    if not (folder / FILES[kind][1]).is_file():
        raise AcclimateError(f"{folder} holds no {FILES[kind][1]}; save the adapter again")
    return kind


def hash_of(folder: Path, kind: str) -> str:
    """Hash of an adapter's configuration and weights (16 hex digits): its identity; empty where there are none."""
    if not all((folder / file).is_file() for file in FILES[kind]):
        return ""
    return digest([[file, file_digest(folder / file, 64)] for file in FILES[kind]])


def check(folder: Path, kind: str, layers: Mapping[str, Any], known: bool) -> None:
    """Raise AcclimateError for files that are damaged, empty, or of no use in a mixed batch, and for layers that are not the base's.

    layers: [input, output] of the base's. known: whether the adapter says that it was trained on this base.
    """
    if kind == "peft":
        return _fits(folder, factors(folder), layers)
    if not known:
        raise AcclimateError(
            f"{folder} does not say which base it was trained on (acclimate.json lacks base_fingerprint); save it with Model.save"
        )
    _, spec, tensors = own(folder)
    if not any(bool(values.any()) for values in tensors.values()):
        raise AcclimateError(f"{folder} holds no weights but zeros ({spec['use']}); it was never trained")


def factors(folder: Path) -> Factors:
    """The factors of a LoRA adapter by layer, in fp32."""
    settings = read_json(folder / FILES["peft"][0])
    readable(str(folder), settings)
    for key, none in (("bias", "none"), ("modules_to_save", None), ("lora_bias", False), ("use_dora", False)):
        if settings.get(key) not in (none, None):
            raise AcclimateError(
                f"{folder} is LoRA with {key} = {settings[key]}, which rows of a batch cannot have each of their own; {MEND}"
            )
    found: dict[str, dict[str, Tensor]] = {}
    for key, values in _tensors(folder / FILES["peft"][1]):
        match = re.fullmatch(r"(.+)\.lora_(A|B)\.weight", key)
        if match is None or values.ndim != 2:
            what = next(
                (what for part, what in HELD.items() if part in key), "LoRA of a convolution" if match else "more than LoRA's factors"
            )
            raise AcclimateError(f"{folder} holds {what} ({key}); {MEND}")
        found.setdefault(match[1].removeprefix(PREFIX), {})[match[2]] = values
    made: Factors = {}
    for path, pair in found.items():
        if len(pair) < 2:
            raise AcclimateError(f"{folder} lacks {path}.lora_{'B' if 'A' in pair else 'A'}.weight; save the adapter again")
        rank, scale = lora_scale(settings, path)
        if not len(pair["A"]) == pair["B"].shape[1] == rank:
            raise AcclimateError(
                f"{folder}: the factors of {path} have ranks {len(pair['A'])} and {pair['B'].shape[1]}, but the configuration says {rank}"
            )
        made[path] = pair["A"], pair["B"], scale
    if not made:
        raise AcclimateError(f"{folder} holds no LoRA factors: the adapter is empty; save it again")
    if not any(scale and bool(a.any()) and bool(b.any()) for a, b, scale in made.values()):
        raise AcclimateError(f"{folder} changes nothing (the product of its factors is zero in every layer); it was never trained")
    return made


def own(folder: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Name, make and weights of the one adapter in a folder of ours; the weights' names begin at ``adapters`` or ``common``."""
    about = read_json(folder / CONFIG)
    try:
        ((name, spec),) = about["adapters"].items()
        spec = {"use": spec["use"], "with": dict(spec["with"])}
    except (KeyError, TypeError, AttributeError) as error:
        raise AcclimateError(f"{folder / CONFIG} does not describe adapters; save the adapter again") from error
    except ValueError as error:
        raise AcclimateError(
            f"{folder} holds {len(about['adapters'])} adapters, but a bank takes them one by one; save each alone"
        ) from error
    tensors = {}
    for key, values in _tensors(folder / WEIGHTS):
        held, _, rest = key.partition(f".{name}.")
        if held not in ("adapters", "common"):
            raise AcclimateError(f"{folder} holds {key}, which is no weight of adapter {name!r}; a bank takes one adapter without fusions")
        tensors[f"{held}.{rest}"] = values
    if not tensors:
        raise AcclimateError(f"{folder} holds no weights: the adapter is empty; save it again")
    return name, spec, tensors


def put(net: Injected, name: str, folder: Path, kind: str) -> None:
    """Put a stored adapter beside the network's layers, as the active one. Raises AcclimateError where it does not fit."""
    if kind == "peft":
        _put_factors(net, name, factors(folder))
        return
    _, spec, tensors = own(folder)
    net.add(name, load(spec["use"], **spec["with"]))
    have = {f"{held}.{key}": values for held in ("adapters", "common") for key, values in getattr(net, held)[name].state_dict().items()}
    wrong = sorted(have.keys() ^ tensors.keys()) or [key for key in have if have[key].shape != tensors[key].shape]
    if wrong:
        net.delete(name)
        raise AcclimateError(f"the adapter in {folder} does not fit this network, e.g. {wrong[0]}; load the base it was trained on")
    with torch.no_grad():
        for key, values in have.items():
            values.copy_(tensors[key])


def answers(base: Model, stored: Path, source: Path, kind: str) -> None:
    """Raise AcclimateError unless the stored adapter, put beside ``base``, answers a probe as the given one does, and not as the base."""
    plain = base.probe()
    net = Injected(base.copy(share=True).net)
    put(net, "probed", stored, kind)
    mine = Model(base.name, net, base.tokenizer, base.kind).probe()
    whole = base.copy(share=True).net
    if kind == "peft":
        from peft import PeftModel

        with quiet():
            other: nn.Module = PeftModel.from_pretrained(whole, str(source))
    else:
        other = Injected.from_pretrained(whole, source).activate(own(source)[0])
    theirs = Model(base.name, other, base.tokenizer, base.kind).probe()
    gap = float((mine - theirs).abs().max() / theirs.abs().max().clamp(min=1))
    if not gap < (1e-4 if next(base.net.parameters()).dtype == torch.float32 else 5e-2):
        raise AcclimateError(
            f"the adapter in {source} answers a probe differently once it is in the bank (largest gap {gap:.2g}); not kept"
        )
    if torch.equal(mine, plain):
        raise AcclimateError(f"the adapter in {source} changes nothing of what {base.name} answers to a probe; it was never trained")


def size(folder: Path, kind: str) -> int:
    """Bytes of an adapter's weights in fp32, as they are put beside layers."""
    with open(folder / FILES[kind][1], "rb") as handle:
        header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
    total = 0
    for key, about in header.items():
        if key != "__metadata__":
            total += 4 * int(torch.Size(about["shape"]).numel())
    return total


def _put_factors(net: Injected, name: str, made: Factors) -> None:
    """As LoRA of ours. One rank and one scale stand for all layers: factors get zeros up to the largest rank, and B other scales."""
    layers = dict(net.net.named_modules())
    _fits(Path(name), made, {path: None for path in layers})
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


def _fits(where: Path, made: Factors, layers: Mapping[str, Any]) -> None:
    for path, (a, b, _) in made.items():
        if path not in layers:
            raise AcclimateError(f"{where} changes {path}, which the base does not have{nearest(path, layers)}; it is another base's")
        if layers[path] is not None and [a.shape[1], b.shape[0]] != [*layers[path]]:
            raise AcclimateError(
                f"{where} changes {path} from {a.shape[1]} to {b.shape[0]} numbers, but the base's goes from {layers[path][0]} to "
                f"{layers[path][1]}; it is another base's"
            )


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
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
