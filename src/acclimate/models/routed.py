"""A decoder that runs its layers by a route: in any order, more than once, those of two models mixed, with scaled inputs.

It is an ordinary network of its family (Llama, Mistral, Qwen: whatever runs ``model.layers`` one after the other) whose list of layers is
replaced, so masks, positions, generation and losses are the family's own. Layers are shared, not copied; the KV cache has an entry per
slot of the route, so a layer that runs twice remembers both runs apart.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AcclimateError
from ..files import atomic_dir, read_json, write_json
from ..model import Model, quiet
from ..parts.routes import Route

ROUTE, PARTS = "route.json", "parts"


class _Slot:
    """One place of the route: a shared layer with its own input scale and its own entry in the KV cache."""

    def __init__(self, layer: nn.Module, number: int, scale: float):
        self.layer, self.number, self.scale = layer, number, scale

    def __call__(self, hidden: Tensor, *given: Any, **more: Any) -> Any:
        told: dict[Any, Any] = {part: part.layer_idx for part in self.layer.modules() if hasattr(part, "layer_idx")}
        try:
            for part in told:
                part.layer_idx = self.number
            return self.layer(hidden if self.scale == 1.0 else hidden * self.scale, *given, **more)
        finally:  # the layer may belong to another model as well
            for part, number in told.items():
                part.layer_idx = number

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)


class RoutedLayers(nn.Module):
    """A pool of layers that looks like the list of a route's slots when it is iterated, indexed or measured."""

    def __init__(self, pool: nn.ModuleList, route: Route):
        super().__init__()
        wrong = [layer for layer in route.layers if not 0 <= layer < len(pool)]
        if wrong:
            raise AcclimateError(f"the route names layer {wrong[0]}, but the pool has layers 0 to {len(pool) - 1}")
        self.pool, self.route = pool, route
        self.register_buffer("layers", torch.tensor(route.layers))  # part of the state, so that another route is another fingerprint
        self.register_buffer("scales", torch.tensor(route.scales, dtype=torch.float64))
        path = zip(route.layers, route.scales, strict=True)
        self.slots = [_Slot(pool[layer], number, scale) for number, (layer, scale) in enumerate(path)]

    def __deepcopy__(self, memo: dict) -> "RoutedLayers":
        return RoutedLayers(copy.deepcopy(self.pool, memo), self.route)

    def __len__(self) -> int:
        return len(self.slots)

    def __iter__(self) -> Iterator[_Slot]:
        return iter(self.slots)

    def __getitem__(self, place: Any) -> Any:
        return self.slots[place]


def body_of(net: Any) -> Any:
    """The part of a network that holds its layers; raises AcclimateError for families that have none of that name."""
    body = getattr(net, "model", None)
    if body is None or not hasattr(body, "layers") or not hasattr(body, "embed_tokens"):
        raise AcclimateError(f"{type(net).__name__} does not run a list model.layers, as Llama does, so its layers cannot be routed")
    return body


def pool_of(first: Model, second: Model | None = None) -> nn.ModuleList:
    """The layers of one or two models as a pool, shared. Raises AcclimateError unless their hidden sizes are equal."""
    layers = list(body_of(first.net).layers)
    if second is not None:
        body_of(second.net)
        widths = [model.net.config.hidden_size for model in (first, second)]
        if widths[0] != widths[1] or first.net.config.model_type != second.net.config.model_type:
            raise AcclimateError(
                f"layers of {first.name} ({first.net.config.model_type}, width {widths[0]}) and {second.name} "
                f"({second.net.config.model_type}, width {widths[1]}) cannot follow each other; they need one family and one width"
            )
        layers += list(body_of(second.net).layers)
    return nn.ModuleList(layers)


def routed(first: Model, pool: nn.ModuleList, route: Route, name: str = "") -> Model:
    """A model that runs a pool by a route between the embedding and the head of ``first``; all weights are shared with their owners."""
    net = copy.copy(first.net)
    net._modules = dict(net._modules)
    body = net.model = copy.copy(body_of(first.net))
    body._modules = dict(body._modules)
    body.layers = RoutedLayers(pool, route)
    net.config = _config(first.net.config, len(route.layers))
    body.config = net.config
    return Model(name or first.name, net, first.tokenizer, first.kind, first.source, {"made": dict(first.notes.get("made", {}))})


def _config(config: Any, slots: int) -> Any:
    made = copy.deepcopy(config)
    made.num_hidden_layers = slots
    kinds = getattr(config, "layer_types", None)
    if kinds:
        if len(set(kinds)) > 1:
            raise AcclimateError(f"a {config.model_type} mixes kinds of attention over its layers, which a route would disturb")
        made.layer_types = [kinds[0]] * slots
    return made


@torch.no_grad()
def plain(model: Model, name: str = "") -> Model:
    """A routed model as an ordinary one that stacks copies of its layers, for any other tool.

    Scales are folded into the weights: pre-normalised layers do not see the size of their input but for the epsilon of their
    normalisation, so instead of the stream the contributions are scaled, and a negative scale turns the normalisation's sign. Equal for
    scales of 1, equal up to that epsilon otherwise. Raises AcclimateError if a scale is 0.
    """
    layers = body_of(model.net).layers
    if not isinstance(layers, RoutedLayers):
        raise AcclimateError(f"{model.name} has no route; it is an ordinary model already")
    stream, stacked = 1.0, nn.ModuleList()
    net = copy.copy(model.net)
    net._modules = dict(net._modules)
    body = net.model = copy.copy(body_of(model.net))
    body._modules = dict(body._modules)
    for number, (layer, scale) in enumerate(zip(layers.route.layers, layers.route.scales, strict=True)):
        stream *= scale
        if abs(stream) < 1e-6:
            raise AcclimateError(f"{model.name} has scales whose product is {stream:.2g} and cannot be folded; save its route instead")
        made = copy.deepcopy(layers.pool[layer])
        inside: list[Any] = [part for part in made.modules() if hasattr(part, "layer_idx")]
        for part in inside:
            part.layer_idx = number
        if stream != 1.0:
            _fold(made, stream, model.name)
        stacked.append(made)
    body.layers = stacked
    if stream < 0:
        body.norm = copy.deepcopy(body.norm)
        body.norm.weight.neg_()
    found = copy.deepcopy(net)  # nothing is shared with the models whose layers these were
    return Model(name or model.name, found, model.tokenizer, model.kind, model.source, {"made": dict(model.notes.get("made", {}))})


def _fold(layer: Any, stream: float, name: str) -> None:
    """Divide what a layer adds to the stream by the stream's scale, and let its normalisations see the scale's sign."""
    try:
        added = [layer.self_attn.o_proj, layer.mlp.down_proj]
        norms = [layer.input_layernorm, layer.post_attention_layernorm]
    except AttributeError as error:
        raise AcclimateError(f"the layers of {name} are not built as Llama's, so no scale can be folded; save its route instead") from error
    for part in added:
        part.weight.div_(stream)
        if getattr(part, "bias", None) is not None:
            part.bias.div_(stream)
    if stream < 0:
        for norm in norms:
            norm.weight.neg_()


def save(model: Model, folder: str | Path) -> Path:
    """Save the layers that the route uses, once each, in ``save_pretrained`` layout under ``parts``, and the route beside them."""
    layers = body_of(model.net).layers
    if not isinstance(layers, RoutedLayers):
        raise AcclimateError(f"{model.name} has no route; save it as any model")
    used = sorted(set(layers.route.layers))
    route = Route(tuple(used.index(layer) for layer in layers.route.layers), layers.route.scales)
    stacked = plain(routed(model, layers.pool, Route(tuple(used), (1.0,) * len(used))))
    with atomic_dir(Path(folder)) as temporary:
        with quiet():
            stacked.net.save_pretrained(temporary / PARTS)
            model.tokenizer.save_pretrained(temporary / PARTS)
        write_json(temporary / ROUTE, {"layers": list(route.layers), "scales": list(route.scales), "name": model.name})
    return Path(folder)


def load(folder: str | Path, device: str | None = None) -> Model:
    """A routed model as ``save`` wrote it."""
    folder = Path(folder)
    told = read_json(folder / ROUTE)
    parts = Model.load(str(folder / PARTS), device=device)
    try:
        route = Route(tuple(map(int, told["layers"])), tuple(map(float, told["scales"])))
    except (KeyError, TypeError, ValueError) as error:
        raise AcclimateError(f"{folder / ROUTE} holds no route; it needs layers and scales, one of each per slot") from error
    return routed(parts, pool_of(parts), route, told.get("name", ""))
