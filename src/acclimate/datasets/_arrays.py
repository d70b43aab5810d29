"""Rows of numbers with labels: what loaders of images give."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Arrays:
    """Labelled rows of one domain: x [row, channel, side, side] in fp32 from 0 to 1, y [row] of class numbers, the classes' names."""

    name: str
    x: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    classes: list[str]
    source: str = ""
    licence: str = ""

    def tensors(self) -> "tuple[Tensor, Tensor]":
        """x and y for torch."""
        import torch

        return torch.from_numpy(self.x), torch.from_numpy(self.y)

    def only(self, classes: list[str]) -> "Arrays":
        """The rows of some classes, numbered anew in the order given."""
        number = {self.classes.index(name): place for place, name in enumerate(classes)}
        rows = np.isin(self.y, list(number))
        y = np.array([number[old] for old in self.y[rows]], np.int64)
        return Arrays(self.name, self.x[rows], y, list(classes), self.source, self.licence)
