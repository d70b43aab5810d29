"""Arcee Fusion: takes from one tune only the changes that matter most, by size and by how they shift a row's softmax.

Arcee 2025, https://www.arcee.ai/blog/meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration (a description without
equations; they follow the tool of that name). Importance is |change| times the divergence KL(softmax(tuned row) || softmax(base row));
what reaches median + 1.5 (q3 - q1) of the tensor's importances is taken whole. Quartiles are exact here, not sampled.
Use for one tune beside its base, to keep the base where the tune says little.

>>> from torch import tensor, zeros
>>> ArceeFusion().whole(zeros(1, 8), tensor([[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 3.0]]))
tensor([[0., 0., 0., 0., 0., 0., 0., 3.]])
"""

import itertools

import numpy as np
import torch
from torch import Tensor

from ...kinds import Merge
from ...parts import thresholds

QUARTILES = (0.75, 0.5, 0.25)


class ArceeFusion(Merge):
    """Changes above a dynamic threshold."""

    rows = True
    takes = (1, 1)
    exempt = dict.fromkeys(("equal_models", "one_model"), "a tune's changes below the threshold are left out by design")

    def look(self, base: Tensor | None, tuned: Tensor, seen: list[Tensor], bits: int = 32) -> Tensor | None:
        """Counts of importances."""
        return None if base is None else thresholds.look(self.importance(base, tuned), seen, self._shares(seen))

    def settle(self, seen: list[Tensor], models: int) -> np.ndarray:
        """The quartiles of the importances, largest first [3]."""
        return thresholds.magnitudes(seen, self._shares(seen))[0]

    def importance(self, base: Tensor, tuned: Tensor) -> Tensor:
        """How much each change matters [1, row, column]."""
        after, before = tuned.softmax(-1) + 1e-8, base.softmax(-1) + 1e-8
        return (tuned - base).abs() * (after * (after / before).log()).sum(-1, keepdim=True)

    def merge(self, base: Tensor, tuned: Tensor, seen: np.ndarray) -> Tensor:
        """base [row, column], tuned [1, row, column] -> [row, column]."""
        q3, median, q1 = seen.tolist()
        return torch.where(self.importance(base, tuned)[0] >= median + 1.5 * (q3 - q1), tuned[0], base)

    def _shares(self, seen: list[Tensor]) -> np.ndarray:
        """Shares of the entries from one quartile to the next, largest first [1, 3], counted as places in the sorted row."""
        size = int(seen[0].sum()) if seen else 1
        ranks = [0, *(size - int(q * (size - 1)) for q in QUARTILES)]
        return np.array([[(after - before + 0.5) / size for before, after in itertools.pairwise(ranks)]])
