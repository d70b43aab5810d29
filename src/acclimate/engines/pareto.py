"""Search with several metrics: NSGA-II keeps the genomes that no other beats in every metric, spread along that front.

Deb et al. 2002, https://doi.org/10.1109/4235.996017 : fast sorting by dominance, crowding distance, simulated binary crossover, with
Gaussian mutation for unbounded genes. It shares the trial log and its resuming with engines/search.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import AcclimateError
from ..progress import bar
from .search import Genome, TrialLog, check, named, population_size


@dataclass
class Front:
    """Genomes that no other trial beats in every metric, sorted by the first one."""

    genomes: np.ndarray  # [member, gene]
    scores: np.ndarray  # [member, metric]
    start_scores: np.ndarray  # [metric]
    trials: int
    seconds: float
    names: list[str] = field(default_factory=list)

    @property
    def best(self) -> Genome:
        """The member with the lowest mean over the metrics."""
        return self.genomes[int(self.scores.mean(1).argmin())]


def fronts(scores: np.ndarray) -> np.ndarray:
    """The number of each genome's front, 0 the best [genome], from scores [genome, metric], lower is better.

    >>> fronts(np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [3.0, 3.0]])).tolist()
    [0, 0, 1, 2]
    """
    beats = np.all(scores[:, None] <= scores[None], axis=2) & np.any(scores[:, None] < scores[None], axis=2)  # [better, worse]
    rank = np.full(len(scores), -1)
    level = 0
    while (rank < 0).any():
        left = rank < 0
        rank[left & ~np.any(beats[left], axis=0)] = level
        level += 1
    return rank


def crowding(scores: np.ndarray) -> np.ndarray:
    """How far each genome's neighbours in one front are apart, summed over the metrics; infinite at the ends [genome].

    >>> crowding(np.array([[0.0, 4.0], [1.0, 2.0], [4.0, 0.0]])).tolist()
    [inf, 2.0, inf]
    """
    distance = np.zeros(len(scores))
    for column in scores.T:
        order = np.argsort(column, kind="stable")
        distance[order[[0, -1]]] = np.inf
        span = column[order[-1]] - column[order[0]]
        if span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance


def pareto(
    fitness: Callable[[Genome], list[float]],
    start: Genome,
    *,
    metrics: int,
    sigma: float,
    trials: int,
    population: int = 0,
    seed: int = 0,
    log: Path,
    names: list[str] | None = None,
) -> Front:
    """The front of NSGA-II after ``trials`` trials; ``fitness`` gives one score per metric, lower is better.

    The first population is ``start`` and Gaussian neighbours at distance ``sigma``. Raises AcclimateError as ``search`` does.
    """
    start = check(start, sigma, trials, names)
    if metrics < 2:
        raise AcclimateError("a front needs two metrics or more; for one use engines.search")
    size = population or 2 * population_size(len(start))
    what = {"by": "nsga2", "start": start.tolist(), "sigma": sigma, "population": size, "seed": seed, "metrics": metrics}
    told = TrialLog(log, what, metrics)
    draw = np.random.Generator(np.random.PCG64(seed))
    genomes = np.concatenate([start[None], start + sigma * draw.standard_normal((size - 1, len(start)))])[:trials]
    seen: list[tuple[Genome, list[float]]] = []
    with bar(what="search", total=trials, unit="trial") as shown:

        def scored(some: np.ndarray) -> np.ndarray:
            found = []
            for genome in some:
                found.append(told.score(fitness, genome))
                seen.append((genome, found[-1]))
                shown.update(1)
            return np.array(found).reshape(len(some), metrics)

        scores = scored(genomes)
        while len(seen) < trials:
            children = _children(genomes, scores, sigma, draw)[: trials - len(seen)]
            both, values = np.concatenate([genomes, children]), np.concatenate([scores, scored(children)])
            kept = _survivors(values, size)
            genomes, scores = both[kept], values[kept]
    everything, values = np.array([genome for genome, _ in seen]), np.array([found for _, found in seen])
    _, first = np.unique(everything, axis=0, return_index=True)
    best = first[fronts(values[first]) == 0]
    best = best[np.argsort(values[best][:, 0], kind="stable")]
    return Front(everything[best], values[best], values[0], len(seen), told.seconds, named(names, start))


def _order(scores: np.ndarray) -> np.ndarray:
    """Genomes from best to worst: by front, and in it by crowding."""
    rank = fronts(scores)
    apart = np.zeros(len(scores))
    for level in range(rank.max() + 1):
        apart[rank == level] = crowding(scores[rank == level])
    return np.lexsort((-apart, rank))


def _survivors(scores: np.ndarray, size: int) -> np.ndarray:
    return _order(scores)[:size]


def _children(genomes: np.ndarray, scores: np.ndarray, sigma: float, draw: np.random.Generator, eta: float = 15.0) -> np.ndarray:
    """As many children as parents: tournaments of two, simulated binary crossover, mutation of one gene in n on average."""
    size, genes = genomes.shape
    place = np.empty(size, int)
    place[_order(scores)] = np.arange(size)
    pairs = draw.integers(size, size=(2, size, 2))
    mother, father = (genomes[np.where(place[pair[:, 0]] < place[pair[:, 1]], pair[:, 0], pair[:, 1])] for pair in pairs)
    u = draw.random((size, genes))
    spread = np.where(u < 0.5, (2 * u) ** (1 / (eta + 1)), (1 / (2 * (1 - u))) ** (1 / (eta + 1)))
    side = np.where(draw.random((size, genes)) < 0.5, 1, -1)
    children = 0.5 * (mother + father) + 0.5 * side * spread * (mother - father)
    mutated = draw.random((size, genes)) < 1 / genes
    return children + sigma * mutated * draw.standard_normal((size, genes))
