"""Batch normalisation and what it remembers.

Ioffe & Szegedy 2015, algorithms 1 and 2, https://arxiv.org/abs/1502.03167"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(net: nn.Module) -> list[_BatchNorm]:
    """The batch-norm layers of a network, in order."""
    return [module for module in net.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def still_statistics(net: nn.Module, still: bool = True) -> Iterator[None]:
    """Layers in training mode normalise by the batch inside, but their running statistics stay as they are."""
    layers = batch_norms(net) if still else []
    kept = [(m.momentum, None if m.num_batches_tracked is None else m.num_batches_tracked.clone()) for m in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, (momentum, count) in zip(layers, kept, strict=True):
            layer.momentum = momentum
            if count is not None:
                layer.num_batches_tracked = count


@contextmanager
def batch_statistics(net: nn.Module) -> Iterator[None]:
    """Every batch-norm layer normalises by the batch inside, whatever the network's mode; running statistics stay as they are.

    A layer that sees a single value per channel (one row, one place) has no statistics to take and normalises by its running ones.

    >>> import torch
    >>> layer = nn.BatchNorm1d(1).eval()
    >>> with batch_statistics(layer):
    ...     [round(v, 3) for v in layer(torch.tensor([[1.0], [3.0]])).flatten().tolist()]
    [-1.0, 1.0]
    >>> layer.training, layer.running_mean.item()
    (False, 0.0)
    """
    layers = batch_norms(net)
    modes = [layer.training for layer in layers]

    def choose(layer: nn.Module, given: tuple) -> None:
        layer.training = given[0].numel() > given[0].shape[1]

    hooks = [layer.register_forward_pre_hook(choose) for layer in layers]
    try:
        with still_statistics(net):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, mode in zip(layers, modes, strict=True):
            layer.train(mode)
