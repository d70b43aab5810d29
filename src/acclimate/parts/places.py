"""Places in a network: where its stages end, and what passes there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import AcclimateError, nearest


def stages(net: nn.Module, most: int = 5) -> list[str]:
    """Layers by name: the first with weights, and the last of each stage but the last; ``most`` of them, spread evenly.

    A stage is a layer with a matrix of weights and what follows it up to the next one. Where there is none, the network's own output.

    >>> stages(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()))
    ['0', '2']
    """
    units = list(_units(net)) or [("", net)]
    starts = _starts(units)
    if not starts:
        return [units[-1][0]]
    return _spread(units, sorted({starts[0], *(start - 1 for start in starts[1:])}), most)


def ends(net: nn.Module, most: int = 4) -> list[str]:
    """Layers by name: the last of each stage, the last stage too; ``most`` of them, spread evenly.

    >>> ends(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()))
    ['2', '4']
    """
    units = list(_units(net)) or [("", net)]
    return _spread(units, [*(start - 1 for start in _starts(units)[1:]), len(units) - 1], most)


def blocks(net: nn.Module) -> list[str]:
    """Layers by name: the units of a network that hold several layers with weights; where there is none, the ends of its stages.

    >>> blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.TransformerEncoderLayer(2, 1), nn.TransformerEncoderLayer(2, 1)))
    ['2', '3']
    """
    found = [name for name, unit in _units(net) if sum(any(True for _ in part.parameters(False)) for part in unit.modules()) > 1]
    return found or ends(net)


def as_tokens(net: nn.Module, x: Tensor) -> Tensor:
    """What passes in a network as [row, token, width]: vectors are one token, maps [row, width, *place] have one for each place.

    [row, a, b] are tokens of width b where the network has attention, or else a series of width a.

    >>> as_tokens(nn.Identity(), torch.zeros(2, 3, 4, 5)).shape, as_tokens(nn.Identity(), torch.zeros(2, 3)).shape
    (torch.Size([2, 20, 3]), torch.Size([2, 1, 3]))
    """
    if x.ndim == 2:
        return x[:, None]
    return x if _attends(net, x) else x.flatten(2).transpose(1, 2)


def from_tokens(net: nn.Module, tokens: Tensor, like: Tensor) -> Tensor:
    """The way back to the shape of what passed there."""
    return (tokens if like.ndim == 2 or _attends(net, like) else tokens.transpose(1, 2)).reshape(like.shape)


def _attends(net: nn.Module, x: Tensor) -> bool:
    return x.ndim == 3 and any("attention" in type(module).__name__.lower() for module in net.modules())


def _starts(units: Sequence[tuple[str, nn.Module]]) -> list[int]:
    return [place for place, (_, unit) in enumerate(units) if any(weight.ndim > 1 for weight in unit.parameters())]


def _spread(units: Sequence[tuple[str, nn.Module]], places: Sequence[int], most: int) -> list[str]:
    chosen = np.unique(np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int))
    return [units[places[place]][0] for place in chosen]


def _units(net: nn.Module, before: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in net.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from _units(child, f"{before}{name}.")
        else:
            yield before + name, child


@contextmanager
def passing(net: nn.Module, names: Sequence[str], change: Callable[[str, Tensor], Tensor] | None = None) -> Iterator[dict[str, Tensor]]:
    """What the last pass inside let out of these layers, by name; ``change`` (name, output) gives what passes on instead.

    Raises AcclimateError at the end for a layer that is not there or lets nothing out, as those of graphs: nothing would be changed there.

    >>> net = nn.Sequential(nn.Identity(), nn.ReLU())
    >>> with passing(net, ["0"], lambda name, x: x + 1) as seen:
    ...     net(torch.tensor([1.0])).item(), seen["0"].item()
    (2.0, 2.0)
    """
    known = dict(net.named_modules())
    if missing := [name for name in names if name not in known]:
        raise AcclimateError(f"this network has no layer {missing[0]!r}{nearest(missing[0], list(known))}")
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Callable:
        def keep(_: nn.Module, __: tuple, output: Tensor) -> Tensor:
            seen[name] = output if change is None else change(name, output)
            return seen[name]

        return keep

    hooks = [known[name].register_forward_hook(hook(name)) for name in names]
    try:
        yield seen
    finally:
        for each in hooks:
            each.remove()
    if silent := [name for name in names if name not in seen]:
        raise AcclimateError(
            f"rows do not pass layer {silent[0]!r} of {type(net).__name__} by itself, so that no method can reach them there; "
            "name another layer (at), or choose another method"
        )


@contextmanager
def adding(net: nn.Module, beside: Mapping[str, Callable[[Any, Tensor], Tensor]]) -> Iterator[None]:
    """Inside, each of these layers, by name, gives what ``beside`` makes of the layer and its input on top of its own output.

    >>> net = nn.Sequential(nn.Identity())
    >>> with adding(net, {"0": lambda layer, x: 2 * x}):
    ...     net(torch.ones(1)).item()
    3.0
    """
    layers = dict(net.named_modules())
    with ExitStack() as stack:
        for name, made in beside.items():
            hook = layers[name].register_forward_hook(lambda layer, given, output, made=made: output + made(layer, given[0]))
            stack.callback(hook.remove)
        yield


@torch.no_grad()
def widths(net: nn.Module, names: Sequence[str], row: Tensor) -> dict[str, torch.Size]:
    """Shapes of what a row [1, *shape] becomes at these layers, by name; the network stays in its mode.

    >>> widths(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), ["0"], torch.zeros(1, 3, 8, 8))["0"]
    torch.Size([1, 4, 6, 6])
    """
    was = net.training
    net.eval()
    with passing(net, names) as seen:
        net(row)
    net.train(was)
    return {name: output.shape for name, output in seen.items()}
