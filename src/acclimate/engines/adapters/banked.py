"""One adapter of a bank: whether its files are whole and fit a base, how it is put beside the base's layers, and whether it answers alike.

Read are LoRA adapters as peft saves them (factors.py), which become parts that a mixed batch multiplies at once, and folders of one
adapter of our own of any make.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import AcclimateError
from ...files import digest, file_digest, read_json
from ...model import Injected, Model, quiet
from ...model.adapter_files import CONFIG, WEIGHTS, restore
from .factors import put_factors, read_tensors, same_layers, stored

FILES = {"peft": ("adapter_config.json", "adapter_model.safetensors"), "acclimate": (CONFIG, WEIGHTS)}


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
        return same_layers(str(folder), stored(folder), layers)
    if not known:
        raise AcclimateError(
            f"{folder} does not say which base it was trained on (acclimate.json lacks base_fingerprint); save it with Model.save"
        )
    _, spec, tensors = own(folder)
    if not any(bool(values.any()) for values in tensors.values()):
        raise AcclimateError(f"{folder} holds no weights but zeros ({spec['use']}); it was never trained")


def own(folder: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Name, make and weights of the one adapter in a folder of ours; the weights' names begin at ``adapters``, ``common`` or ``heads``."""
    about = read_json(folder / CONFIG)
    try:
        ((name, spec),) = about["adapters"].items()
        spec = {"use": spec["use"], "with": dict(spec["with"]), "head": spec.get("head")}
    except (KeyError, TypeError, AttributeError) as error:
        raise AcclimateError(f"{folder / CONFIG} does not describe adapters; save the adapter again") from error
    except ValueError as error:
        raise AcclimateError(
            f"{folder} holds {len(about['adapters'])} adapters, but a bank takes them one by one; save each alone"
        ) from error
    tensors = {}
    for key, values in read_tensors(folder / WEIGHTS):
        held, _, rest = key.partition(f".{name}.")
        if held not in ("adapters", "common", "heads"):
            raise AcclimateError(f"{folder} holds {key}, which is no weight of adapter {name!r}; a bank takes one adapter without fusions")
        tensors[f"{held}.{rest}"] = values
    if not tensors:
        raise AcclimateError(f"{folder} holds no weights: the adapter is empty; save it again")
    return name, spec, tensors


def put(net: Injected, name: str, folder: Path, kind: str) -> None:
    """Put a stored adapter beside the network's layers, as the active one. Raises AcclimateError where it does not fit."""
    if kind == "peft":
        put_factors(net, name, stored(folder))
        return
    _, spec, tensors = own(folder)
    restore(net, name, spec)
    parts = {held: getattr(net, held)[name] for held in ("adapters", "common", "heads") if name in getattr(net, held)}
    have = {f"{held}.{key}": values for held, part in parts.items() for key, values in part.state_dict().items()}
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
