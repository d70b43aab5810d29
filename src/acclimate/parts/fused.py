"""Merges that go weight by weight, said as numbers: what compiled code (kernels.py) needs to run them in one pass.

Each model's change from the base (or each model's weight) is trimmed by its magnitude or thinned at random, multiplied by the model's
weight, left out where its sign is not the elected one, averaged, scaled, and added to the base. checkpoints.py has the same in torch.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Fused:
    """One merge of this family, for so many models."""

    weights: np.ndarray  # of each model, in fp32 [model]; with ``look = "gram"`` they are what the method settles on
    changes: bool = True  # of the changes from the base, to which the result is added; else of the weights themselves
    look: str = ""  # counts or gram: what is seen first over the whole tensor, counts of magnitudes, or inner products of the models
    shares: np.ndarray | None = None  # counts: share of each model's changes up to each border, largest first [model, rank]
    chances: np.ndarray | None = None  # to be kept, of the smallest change of a row [model]
    window: np.ndarray | None = None  # what the chance grows by from a row's smallest change to its largest [model]; None: no ranks
    rescale: str = "probability"  # or norm, or none: by what survivors grow
    elect: str = "none"  # or sum, or count: how the sign is elected
    mean: bool = False  # divide by the weights that took part, entry by entry where a sign is elected
    scale: float = 1.0  # of the result

    @property
    def factors(self) -> np.ndarray:
        """What each model is multiplied by [model]: its weight, or in a plain mean its share of the weights, if they do not add up to 0."""
        total = float(self.weights.sum(dtype=np.float64))
        plain = self.elect != "none" or not self.mean or abs(total) < 1e-8
        return self.weights if plain else (self.weights / np.float32(total)).astype(np.float32)

    def ranked_chances(self, width: int) -> np.ndarray:
        """The chance of each rank within rows of so many entries, or one for all of them [model, width or 1].

        >>> one = np.ones(1, np.float32)
        >>> Fused(weights=one, chances=0.25 * one, window=0.5 * one).ranked_chances(3)
        array([[0.25, 0.5 , 0.75]], dtype=float32)
        """
        assert self.chances is not None
        if self.window is None:
            return self.chances[:, None]
        place = np.arange(width, dtype=np.float32) / np.float32(max(1, width - 1))
        return self.chances[:, None] + place * self.window[:, None]
