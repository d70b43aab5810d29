"""Small networks on what leaves the stages of a frozen encoder, described by plain data, and the space of such descriptions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .places import ends, passing
from .training_free import evolved, proxies

WIDTHS, DEPTHS = (4, 16, 64), (1, 2)


class Adaptor(nn.Module):
    """Outputs of stages by name, the last one's under no name -> features [row, outputs]; with ``residual`` added to the last ones.

    ``spec``: ``at`` which stage, ``kind`` (scale, linear, bottleneck, conv), ``width`` and ``depth`` of bottlenecks and convolutions,
    ``residual``. Convolutions see a stage's map [row, inputs, height, width], the others its mean over places.

    >>> spec = {"at": "", "kind": "bottleneck", "width": 4, "depth": 2, "residual": True}
    >>> sum(weight.numel() for weight in Adaptor(spec, 8, 8).parameters())  # 8 x 4 + 4, 4 x 4 + 4, 4 x 8 + 8
    96
    """

    def __init__(self, spec: Mapping[str, Any], inputs: int, outputs: int):
        super().__init__()
        self.at, self.residual, self.kind, width = spec["at"], spec["residual"], spec["kind"], spec["width"]
        if self.kind == "scale":
            self.scale, self.shift = nn.Parameter(torch.ones(inputs)), nn.Parameter(torch.zeros(inputs))
            return
        layers: list[nn.Module] = []
        for _ in range(spec["depth"] * (self.kind != "linear")):
            layers += [nn.Conv2d(inputs, width, 3, padding=1) if self.kind == "conv" else nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.layers, self.last = nn.Sequential(*layers), nn.Linear(inputs, outputs)

    def forward(self, seen: Mapping[str, Tensor]) -> Tensor:
        """[row, outputs]."""
        h = seen[self.at] if self.kind == "conv" else pooled(seen[self.at])
        h = h * self.scale + self.shift if self.kind == "scale" else self.last(pooled(self.layers(h)))
        return h + seen[""] if self.residual else h


def pooled(z: Tensor) -> Tensor:
    """Mean over places [row, width, *places] -> [row, width]."""
    return z.flatten(2).mean(2) if z.ndim > 2 else z


def adaptor_space(shapes: Mapping[str, Sequence[int]], outputs: int) -> list[dict[str, Any]]:
    """All descriptions for stages of these shapes, by name: scale only where the width is that of the output, conv only on maps.

    >>> len(adaptor_space({"": [8], "0": [4]}, 8))  # (scale + linear + 3 widths x 2 depths) + (linear + 6), with and without residual
    30
    """
    deep = [(kind, width, depth) for kind in ("bottleneck", "conv") for width in WIDTHS for depth in DEPTHS]
    return [
        {"at": at, "kind": kind, "width": width, "depth": depth, "residual": residual}
        for at, shape in shapes.items()
        for kind, width, depth in [("scale", 0, 1), ("linear", 0, 1), *deep]
        for residual in (True, False)
        if (kind != "scale" or shape[0] == outputs) and (kind != "conv" or len(shape) == 3)
    ]


@torch.no_grad()
def stage_outputs(net: nn.Module, x: Tensor, most: int) -> dict[str, Tensor]:
    """What leaves a network's stages, ``most`` of them, by name; the last one's, the network's own output, under no name.

    Maps [row, width, height, width] stay what they are; of series and texts the mean over time or tokens is taken.

    >>> {name: rows.shape[1] for name, rows in stage_outputs(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), torch.zeros(1, 2), 4).items()}
    {'0': 3, '': 4}
    """
    names = ends(net, most)[:-1]
    with passing(net, names) as seen:
        last = net(x)
    time = 2 if any(isinstance(layer, nn.Conv1d) for layer in net.modules()) else 1
    return {**{name: seen[name].mean(time) if seen[name].ndim == 3 else seen[name] for name in names}, "": last}


def banked(held: Mapping[str, Any], seen: Mapping[str, Tensor], outputs: int) -> Tensor:
    """Features after an adaptor that is kept as its description and its weights [row, outputs]; without description the last ones."""
    if not held["spec"]:
        return seen[""]
    with torch.device("meta"):
        made = Adaptor(held["spec"], seen[held["spec"]["at"]].shape[1], outputs)
    return functional_call(made, {name: value.to(seen[""]) for name, value in held["weights"].items()}, (seen,))


def columns(head: nn.Module, classes: int, new: Sequence[int], old: Sequence[int]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Weights of a head for so many classes, by name, each with the places that may not learn: all but those of the new classes' scores.

    Weights that all classes share learn only while there are no old classes.

    >>> [(name, kept.flatten().tolist()) for name, _, kept in columns(nn.Linear(2, 3), 3, [1], [0])]
    [('weight', [True, False, True]), ('bias', [True, False, True])]
    """
    for name, weight in head.named_parameters():
        if weight.ndim and len(weight) == classes:
            kept = ~torch.isin(torch.arange(classes), torch.tensor(new, dtype=torch.long)).view(-1, *[1] * (weight.ndim - 1))
        else:
            kept = torch.tensor(bool(old))
        yield name, weight, kept.to(weight.device)


def looked_at(spec: Mapping[str, Any], sample: Mapping[str, Tensor], y: Tensor, head: nn.Module) -> tuple[dict[str, float], int]:
    """Proxies of an adaptor with its first weights before a head, on outputs of stages, and the adaptor's number of weights."""
    made = Adaptor(spec, sample[spec["at"]].shape[1], sample[""].shape[1]).to(y.device, sample[""].dtype)
    net = nn.ModuleDict({"adaptor": made, "head": head})

    def run(weights: Mapping[str, Tensor], z: Tensor) -> Tensor:
        own, last = ({name.partition(".")[2]: v for name, v in weights.items() if name.startswith(part)} for part in ("adaptor.", "head."))
        beside = sample[""] if len(z) == len(y) else torch.ones_like(sample[""][:1])
        return functional_call(head, last, (functional_call(made, own, ({"": beside, spec["at"]: z},)),))

    found = proxies(run, dict(net.named_parameters()), sample[spec["at"]], y)
    return found, sum(weight.numel() for weight in made.parameters())


def searched(
    sample: Mapping[str, Tensor], y: Tensor, head: nn.Module, count: int, penalty: float, draw: torch.Generator
) -> tuple[dict[str, Any], list[tuple[dict[str, Any], float]]]:
    """The adaptor that the proxies think best of, and all that were looked at with what they are worth."""
    space = adaptor_space({name: rows.shape[1:] for name, rows in sample.items()}, sample[""].shape[1])
    return evolved(space, lambda spec: looked_at(spec, sample, y, head), count, penalty, draw)
