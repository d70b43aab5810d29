"""Adding what stands beside a layer to the layer's own weights, and taking it back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import AcclimateError
from ..parts.beside import Beside
from .roles import Site

if TYPE_CHECKING:
    from .injected import Injected

Kept = list[tuple[Any, Tensor, Tensor | None]]  # layer, its weight, its bias


def change_of(site: Site, part: Beside, name: str) -> tuple[Tensor, Tensor]:
    """What a part comes to as a change of its layer's weight [output, input] and bias [output].

    Raises AcclimateError, naming the adapter, where the layer has no matrix or the part is no linear map.
    """
    weight, bias = getattr(site.layer, "weight", None), getattr(site.layer, "bias", None)
    if weight is None or site.source != site.target or weight.ndim != 2 or isinstance(site.layer, nn.Embedding):
        raise AcclimateError(f"adapter {name!r} cannot be folded: {site.target} has no matrix for it")
    matrix = weight.T if type(site.layer).__name__ == "Conv1D" else weight
    change = part.delta(matrix.float(), torch.zeros(len(matrix), device=matrix.device) if bias is None else bias.float())
    if change is None:
        raise AcclimateError(f"adapter {name!r} cannot be folded: beside {site.target} it is no linear map")
    return change


def copy_of(layer: Any) -> tuple[Any, Tensor, Tensor | None]:
    """A layer with copies of its weight and bias."""
    return layer, layer.weight.detach().clone(), None if layer.bias is None else layer.bias.detach().clone()


@torch.no_grad()
def add_to(layer: Any, weight: Tensor, bias: Tensor) -> None:
    """Add a change [output, input] and [output] to a layer, which gets a bias if it needs one."""
    turned = weight.T if type(layer).__name__ == "Conv1D" else weight
    layer.weight.copy_(layer.weight.float() + turned)
    if bool(bias.any()):
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(len(bias), dtype=layer.weight.dtype, device=layer.weight.device))
        layer.bias.copy_(layer.bias.float() + bias)


@torch.no_grad()
def put_back(kept: Kept) -> None:
    """Weights and biases as they were, bit by bit."""
    for layer, weight, bias in kept:
        layer.weight.copy_(weight)
        if bias is None:
            layer.bias = None
        else:
            layer.bias.copy_(bias)


def changes(net: "Injected", name: str) -> list[tuple[Site, tuple[Tensor, Tensor]]]:
    """What an adapter comes to at every site, before any weight is touched."""
    with torch.no_grad():
        return [(net.sites[key], change_of(net.sites[key], part, name)) for key, part in net.parts(name).items()]


def fold(net: "Injected", name: str) -> nn.Module:
    """See :meth:`Injected.fold`."""
    for site, change in changes(net, name):
        add_to(site.layer, *change)
    net.delete(name)
    return net.net


@contextmanager
def folded(net: "Injected", name: str) -> Iterator[nn.Module]:
    """See :meth:`Injected.folded`."""
    found = changes(net, name)
    kept = [copy_of(site.layer) for site, _ in found]
    net.detach()
    try:
        for site, change in found:
            add_to(site.layer, *change)
        yield net.net
    finally:
        put_back(kept)
        net.attach()
