"""Six networks that have nothing in common, each with inputs and the addresses where adapters go: for conformance of adapters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from ..model import Model


@dataclass
class Backbone:
    """A network, a call with fixed inputs that gives one tensor, and its places: of plain layers and of what outputs whole states."""

    net: nn.Module
    call: Callable[[nn.Module], Tensor]
    layers: str | list[str]
    states: str | list[str]


class GraphLayer(nn.Module):
    """Nodes [node, width] and the mean of their neighbours, each through a linear map; gives nodes and edges, as a pair."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.own, self.neighbours = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs, bias=False)

    def forward(self, nodes: Tensor, *, edges: Tensor) -> tuple[Tensor, Tensor]:
        """edges [2, edge]: from, to."""
        source, target = edges
        sums = torch.zeros_like(nodes).index_add_(0, target, nodes[source])
        count = torch.zeros(len(nodes)).index_add_(0, target, torch.ones(len(target))).clamp(min=1)
        return functional.relu(self.own(nodes) + self.neighbours(sums / count[:, None])), edges


class GraphNet(nn.Module):
    """Two such layers and a class for each node."""

    def __init__(self, width: int = 16, classes: int = 4):
        super().__init__()
        self.layers = nn.ModuleList([GraphLayer(8, width), GraphLayer(width, width)])
        self.head = nn.Linear(width, classes)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """Scores [node, class]."""
        for layer in self.layers:
            nodes, edges = layer(nodes, edges=edges)
        return self.head(nodes)


class TwoTowers(nn.Module):
    """Users and items, each with an embedding and a small network; the score is the product of both vectors."""

    def __init__(self, users: int = 20, items: int = 30, width: int = 16):
        super().__init__()

        def tower(count: int) -> nn.Sequential:
            return nn.Sequential(nn.Embedding(count, width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

        self.user, self.item = tower(users), tower(items)

    def forward(self, *, user: Tensor, item: Tensor) -> Tensor:
        """Scores of pairs [row]."""
        return (self.user(user) * self.item(item)).sum(-1)


def backbones(encoder: "Model", decoder: "Model") -> dict[str, Backbone]:
    """The two text models that are given, and four networks with weights drawn from a fixed seed."""
    from transformers import ViTConfig, ViTModel

    from ..models.convnet import ConvNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision = ViTModel(ViTConfig(image_size=16, patch_size=4, **size), add_pooling_layer=False)
        images, graph, towers = ConvNet(), GraphNet(), TwoTowers()
        pixels, nodes = torch.randn(2, 3, 16, 16), torch.randn(12, 8)
        edges = torch.randint(0, 12, (2, 40))
    users, items = torch.arange(6), torch.arange(6) + 3

    def words(model: "Model", field: str) -> Callable[[nn.Module], Tensor]:
        ids = model.tokenizer(["the court of appeal held that the clause is void"], return_tensors="pt").input_ids
        return lambda net: getattr(net(input_ids=ids, attention_mask=torch.ones_like(ids)), field)

    field = "last_hidden_state" if encoder.kind == "encoder" else "logits"
    made: dict[str, Any] = {
        "encoder": Backbone(encoder.net, words(encoder, field), ["attn.out", "ff.out"], "block"),
        "decoder": Backbone(decoder.net, words(decoder, "logits"), ["attn.out", "ff.out"], "block"),
        "convolutions": Backbone(images, lambda net: net(pixels), "second.0", "[r]blocks\\.\\d\\.second\\.0"),
        "graph": Backbone(graph, lambda net: net(nodes, edges), ["own", "layers.1.neighbours"], "[r]layers\\.\\d"),
        "vision": Backbone(vision, lambda net: net(pixel_values=pixels).last_hidden_state, ["attn.out", "ff.out"], "block"),
        "two towers": Backbone(towers, lambda net: net(user=users, item=items), ["user.3", "item.3"], ["user", "item"]),
    }
    for backbone in made.values():
        backbone.net.eval().requires_grad_(False)
    return made
