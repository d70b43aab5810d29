"""What a network is called with and made of: a layer's input, the texts in a batch, rows repeated, an outline of the modules."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import AcclimateError


def first_tensor(args: tuple, kwargs: dict) -> Tensor:
    """A layer's input: its first tensor."""
    for value in (*args, kwargs.get("hidden_states"), *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise AcclimateError("a layer with an adapter was called without any tensor")


def segments(mask: Any, positions: Any) -> Tensor | None:
    """The number of the text that each token belongs to, 0 for padding [row, token]; None where neither mask nor positions tell.

    >>> import torch
    >>> segments(torch.tensor([[1, 1, 0]]), None).tolist(), segments(None, torch.tensor([[0, 1, 0]])).tolist()
    ([[1, 1, 0]], [[1, 1, 2]])
    """
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask.long()
    if isinstance(positions, Tensor) and positions.ndim == 2:  # packed: each text begins at the lowest position
        return (positions == positions.min()).long().cumsum(1)
    return None


def repeated(value: Any, count: int) -> Any:
    """A tensor's rows ``count`` times, block by block; anything else as it is."""
    return value.repeat(count, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) and value.ndim else value


def outline(net: nn.Module, beside: Mapping[str, list[str]]) -> Iterator[str]:
    """A line for each module with weights of its own, indented by depth; with the names of what stands beside it."""
    for path, layer in net.named_modules():
        own = sum(weight.numel() for weight in layer.parameters(recurse=False))
        if own or path in beside:
            mark = f"  + {', '.join(beside[path])}" if path in beside else ""
            yield f"{'  ' * path.count('.')}{path.rpartition('.')[2]} {type(layer).__name__} {own:,}{mark}"
