"""Routes through the layers of two models: which layer comes next, and how its input is scaled (Akiba et al. 2024, section 3.2).

A pool holds the layers of model A and then those of model B, M in all. The candidates are the pool in its order, ``repeats`` times
over; each has a switch. The path is A's first layer, the candidates that are on, in order, and A's last layer.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..errors import AcclimateError

HIDDEN = 8  # units of the network that gives the scales of large pools


@dataclass(frozen=True)
class Route:
    """A path: layers of the pool in the order they run, and what the input of each is multiplied with."""

    layers: tuple[int, ...]
    scales: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.layers or len(self.layers) != len(self.scales):
            raise AcclimateError(f"a route needs a layer and a scale for each slot, but has {len(self.layers)} and {len(self.scales)}")
        if not np.isfinite(self.scales).all():
            raise AcclimateError("a route has a scale that is no finite number")

    @property
    def plain(self) -> bool:
        """Whether it only stacks layers, with no scale other than 1."""
        return all(scale == 1.0 for scale in self.scales)


def genes(pool: int, repeats: int, scales: str = "matrix") -> list[str]:
    """Names of the genes: a switch per candidate, then a scale per pair of layers (``matrix``), or the weights of a network (``network``).

    >>> len(genes(6, 2)), len(genes(64, 2, "network"))
    (48, 168)
    """
    names = [f"on: layer {i % pool} at {i}" for i in range(pool * repeats)]
    if scales == "matrix":
        return names + [f"scale: layer {i} to {j}" for i in range(pool) for j in range(pool)]
    return names + [f"scale network: {i}" for i in range(5 * HIDDEN)]


def start(first: int, pool: int, repeats: int, scales: str = "matrix", margin: float = 0.25) -> np.ndarray:
    """The genome whose route is model A itself, ``first`` layers long; ``margin`` is how far the switches stand from turning.

    >>> decode(start(3, 6, 2), 3, 6, 2)
    Route(layers=(0, 1, 2), scales=(1.0, 1.0, 1.0))
    """
    genome = np.full(pool * repeats, -margin)
    genome[1 : first - 1] = margin
    rest = np.ones(pool * pool) if scales == "matrix" else _network_start()
    return np.concatenate([genome, rest])


def decode(genome: np.ndarray, first: int, pool: int, repeats: int, scales: str = "matrix") -> Route:
    """The route of a genome; layer 0 and layer ``first`` - 1, the ends of model A, are always its ends, and its first input is unscaled."""
    on = np.flatnonzero(genome[: pool * repeats] > 0)
    slots = [(0, 0), *((int(place) % pool, int(place)) for place in on)]
    if first > 1:
        slots.append((first - 1, pool * repeats))
    rest = genome[pool * repeats :]
    if scales == "matrix":
        matrix = rest.reshape(pool, pool)
        found = [float(matrix[i, j]) for (i, _), (j, _) in pairwise(slots)]
    else:
        pairs = np.array([[i / pool, j / pool, t / (pool * repeats)] for (i, _), (j, t) in pairwise(slots)])
        found = _network(pairs.reshape(-1, 3), rest).tolist()
    return Route(tuple(layer for layer, _ in slots), (1.0, *found))


def _network_start() -> np.ndarray:
    """Fixed pseudo-random first layer, zero last layer: every scale is 1."""
    return np.concatenate([np.sin(np.arange(1, 4 * HIDDEN + 1) * 1.7), np.zeros(HIDDEN)])


def _network(pairs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """1 + v tanh(W [from, to, place] + b) [pair], from pairs [pair, 3] in 0..1."""
    inner = weights[: 3 * HIDDEN].reshape(3, HIDDEN)
    return 1 + np.tanh(pairs @ inner + weights[3 * HIDDEN : 4 * HIDDEN]) @ weights[4 * HIDDEN :]
