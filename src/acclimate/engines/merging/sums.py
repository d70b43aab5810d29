"""What is added up over the chunks of a merged tensor, for the report."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Sums:
    """Sums over some entries of one tensor."""

    merged: float = 0.0  # sum of squares
    parts: np.ndarray = field(default_factory=lambda: np.zeros(0))  # sums of squares of the inputs [part]
    dots: np.ndarray = field(default_factory=lambda: np.zeros(0))  # inner products with the merged tensor [part]
    changed: int = 0  # entries that differ from the base (or the first input)

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.merged + other.merged, self.parts + other.parts, self.dots + other.dots, self.changed + other.changed)
