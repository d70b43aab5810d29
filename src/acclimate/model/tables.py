"""The tables of a network, which have a row per token: the embedding and, where there is one, the output layer."""

from typing import Any

from torch import nn


def tables(net: Any) -> list[str]:
    """Names of the weights that have a row per token; a table that serves both sides is named once."""
    layers = [layer for layer in (net.get_input_embeddings(), net.get_output_embeddings()) if layer is not None]
    ids = {id(weight) for layer in layers for weight in layer.parameters()}
    return [name for name, weight in net.named_parameters() if id(weight) in ids]


def tied(net: Any) -> bool:
    """Whether the output layer is the embedding."""
    head = net.get_output_embeddings()
    return head is not None and getattr(head, "weight", None) is net.get_input_embeddings().weight


def untie(net: Any) -> None:
    """Give a network whose embedding is its output layer too a table for each."""
    net.config.tie_word_embeddings = False
    head = net.get_output_embeddings()
    head.weight = nn.Parameter(net.get_input_embeddings().weight.detach().clone())
    if hasattr(net, "all_tied_weights_keys"):
        net.all_tied_weights_keys = {}
