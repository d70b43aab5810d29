"""Adapters beside a network in a folder: what each is made of, its head, fusions, and the weights; nothing of the network."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AcclimateError
from ..files import read_json, write_json
from ..method import load
from .composition import Rows, parse

if TYPE_CHECKING:
    from .injected import Injected

CONFIG, WEIGHTS = "adapters.json", "adapters.safetensors"


def write(net: "Injected", folder: Path) -> None:
    """Configuration and weights of all adapters."""
    from safetensors.torch import save_file

    about = {
        "adapters": net.specs,
        "fusions": net.fusion_names,
        "active": None if net.active is None or isinstance(net.active, Rows) else str(net.active),
    }
    write_json(folder / CONFIG, about)
    weights = {key: value.contiguous().clone() for key, value in net.state_dict().items()}  # a copied output layer may be tied in itself
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def read(net: "Injected", folder: Path) -> "Injected":
    """Put stored adapters on a network without any. Raises AcclimateError for weights that do not fit it, or are missing."""
    from safetensors.torch import load_file

    about = read_json(folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        raise AcclimateError(f"{folder} holds no {WEIGHTS}; save the adapters again")
    try:
        for name, spec in about["adapters"].items():
            restore(net, name, spec)
        for text in about["fusions"]:
            net._fusion(parse(text))  # type: ignore[arg-type]
        net.load_state_dict(load_file(folder / WEIGHTS))
    except AcclimateError as error:
        raise AcclimateError(f"{folder}: {error}") from error
    except (RuntimeError, OSError) as error:
        raise AcclimateError(f"the adapters in {folder} do not fit this network: {str(error).splitlines()[-1].strip()}") from error
    return net.activate(about["active"]).requires_grad_(False)


def restore(net: "Injected", name: str, spec: dict[str, Any]) -> None:
    """An adapter as its configuration says, with its head where it has one, and fresh weights."""
    net.add(name, load(spec["use"], **spec["with"]))
    if spec.get("head"):
        try:
            net.put_head(name, **spec["head"])
        except (AcclimateError, TypeError) as error:
            net.delete(name)
            raise AcclimateError(f"the head of adapter {name!r} is not as it should be: {error}") from error
