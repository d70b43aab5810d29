"""What learns: a featurizer and a head, which never know the modality, and the parts that a method puts beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import AcclimateError, nearest
from ...parts.heads import HEADS

BLOCK = 512  # rows at a time where nothing learns
Players = str | Sequence[str] | None


@dataclass(frozen=True)
class Place:
    """Which domain rows are of: its number among the learner's domains (None: one that was not trained on) and its facts [fact]."""

    name: str = ""
    number: int | None = None
    about: Tensor | None = None


class Learner(nn.Module):
    """``features`` x -> [row, width], ``head`` -> [row, class]; what a method builds stands in ``parts``, what it remembers in ``memory``.

    ``step``, ``progress`` (0 to 1) and ``generator`` are set by the engine at every step. ``memory`` may hold tensors, numbers, text, and
    lists and dicts of these; it is stored and restored with the weights.
    """

    def __init__(
        self,
        featurizer: nn.Module,
        classes: Sequence[str] | int,
        *,
        width: int = 0,
        head: str | nn.Module = "linear",
        dropout: float = 0.0,
        smoothing: float = 0.0,
    ):
        super().__init__()
        self.names = list(map(str, range(classes) if isinstance(classes, int) else classes))
        self.width = width or int(featurizer.features)  # type: ignore[arg-type]
        if isinstance(head, str):
            if head not in HEADS:
                raise AcclimateError(f"no head {head!r}{nearest(head, HEADS)}")
            head = HEADS[head](self.width, max(1, len(self.names)))
        self.featurizer, self.head, self.parts = channels_last(featurizer), head, nn.ModuleDict()
        self.dropout, self.smoothing = nn.Dropout(dropout), smoothing
        self.memory: dict[str, Any] = {}
        self.domains: list[str] = []  # names by number: labelled domains, then the target
        self.sources = 0  # how many of the domains are labelled, the first ones
        self.about: Tensor | None = None  # facts of each domain [domain, fact]
        self.distances: Tensor | None = None  # between domains [domain, domain]
        self.sample: Tensor | None = None  # a row [1, *shape], for parts whose size depends on what passes in the network
        self.step, self.progress = 0, 0.0
        self.generator = torch.Generator().manual_seed(0)

    @property
    def classes(self) -> int:
        """How many classes there are; 0 where values are predicted."""
        return len(self.names)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    @property
    def block(self) -> int:
        """Rows at a time where nothing learns."""
        return getattr(self.featurizer, "block", BLOCK)

    def features(self, x: Tensor, **how: Any) -> Tensor:
        """Features of rows, dropout included [row, width]; ``how`` is for featurizers that take more than rows."""
        return self.dropout(self.featurizer(x, **how))

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes [row, class]."""
        return self.head(self.features(x))

    def loss(self, scores: Tensor, y: Tensor, each: bool = False) -> Tensor:
        """Cross-entropy (with the source model's label smoothing), or the squared error of values; the mean, or each row's.

        >>> Learner(nn.Identity(), 2, width=2).loss(torch.zeros(3, 2), torch.tensor([0, 1, 1])).item()  # log 2
        0.6931471824645996
        """
        kind = "none" if each else "mean"
        if not self.classes:
            error = functional.mse_loss(scores.squeeze(-1), y.to(scores.dtype), reduction=kind)
            return error
        return functional.cross_entropy(scores, y, reduction=kind, label_smoothing=self.smoothing)

    @torch.no_grad()
    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and scores of any number of rows, in evaluation mode: [row, width], [row, class]."""
        was = self.training
        self.eval()
        found = []
        for rows in x.split(self.block):
            z = self.features(rows)
            found.append((z, self.head(z)))
        self.train(was)
        features, scores = zip(*found, strict=True)
        return torch.cat(features), torch.cat(scores)

    def place(self, name: str, about: Tensor | None = None) -> Place:
        """Where a domain stands."""
        return Place(name, self.domains.index(name) if name in self.domains else None, about)

    def is_source(self, where: Place | None) -> bool:
        """Whether rows are of a labelled domain that was trained on."""
        return where is not None and where.number is not None and where.number < self.sources

    def players(self) -> dict[str, nn.Module]:
        """Who can learn, by name: featurizer, head, and each part."""
        return {"featurizer": self.featurizer, "head": self.head, **self.parts}

    def weights(self, players: Players = None) -> list[nn.Parameter]:
        """The weights of some players; all without a name. ``norms`` names the scales and shifts of normalisation layers."""
        if players is None:
            return [weight for weight in self.parameters() if weight.requires_grad]
        known, found = self.players(), {}
        for name in [players] if isinstance(players, str) else players:
            if name == "norms":
                modules: list[nn.Module] = [m for m in self.featurizer.modules() if isinstance(m, NORMS)]
            elif name in known:
                modules = [known[name]]
            else:
                raise AcclimateError(f"nobody here is called {name!r}{nearest(name, [*known, 'norms'])}")
            found.update({id(w): w for module in modules for w in module.parameters() if w.requires_grad})
        return list(found.values())


NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


@cache
def _intel() -> bool:
    facts = Path("/proc/cpuinfo")
    return facts.is_file() and "GenuineIntel" in facts.read_text(encoding="utf-8")


def channels_last(net: nn.Module) -> nn.Module:
    """The same network, whose weights of convolutions over images lie with the channel last, in which they are fastest.

    On Intel's processors alone: on an AMD EPYC the backward passes of some small networks end in "malloc assertion failure" or a
    segmentation fault then (torch 2.13), and with the plain layout they do not. Single convolutions do not show it.

    >>> channels_last(nn.Conv2d(2, 3, 5)).weight.stride() == ((50, 1, 10, 2) if _intel() else (50, 25, 5, 1))
    True
    """
    for layer in net.modules() if _intel() else ():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):  # not the whole network: torch refuses weights of five dimensions
            layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net
