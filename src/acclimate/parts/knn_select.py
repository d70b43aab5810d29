"""Selection of domain text for a task: nearest neighbours (kNN-TAPT) or the same amount at random (RAND-TAPT).

Gururangan et al. 2020, section 5.2, https://arxiv.org/abs/2004.10964
"""

import numpy as np

from ..errors import AcclimateError


def knn_select(
    task_vectors: np.ndarray, pool_vectors: np.ndarray, k: int, *, exclude: np.ndarray | None = None, memory_mb: int = 64
) -> np.ndarray:
    """Indices into the pool: the union of every task vector's ``k`` nearest by cosine, without duplicates.

    ``task_vectors`` [task, width], ``pool_vectors`` [document, width]; ``exclude`` [document] is True where a document may not be
    chosen (a copy of a task text, say). First come all nearest neighbours, then all second nearest, and so on, each group in pool
    order; so the selection for a smaller k is the beginning of the one for a larger k. A vector of zeros has cosine 0 with all.
    Similarities are held for about ``memory_mb`` megabytes of task-document pairs at a time. A k beyond the pool takes the pool.

    >>> pool = np.array([[0, 1], [3, 1], [9, 1], [-1, 0]])
    >>> knn_select(np.array([[1, 0], [2, 0]]), pool, k=1), knn_select(np.array([[1, 0], [0, 5]]), pool, k=2)
    (array([2]), array([0, 2, 1]))
    >>> knn_select(np.array([[1, 0]]), pool, k=2, exclude=np.array([False, False, True, False]))
    array([1, 0])
    """
    from sklearn import config_context
    from sklearn.neighbors import NearestNeighbors

    if k < 1:
        raise AcclimateError(f"k = {k}, but at least one neighbour must be taken")
    allowed = np.flatnonzero(_allowed(len(pool_vectors), exclude))
    if not len(allowed):
        raise AcclimateError("no document is left to choose from: the pool is empty or wholly excluded")
    with config_context(working_memory=memory_mb):
        index = NearestNeighbors(n_neighbors=min(k, len(allowed)), algorithm="brute", metric="cosine").fit(pool_vectors[allowed])
        nearest = allowed[index.kneighbors(task_vectors, return_distance=False)]  # [task, rank]
    best = np.full(len(pool_vectors), k)
    for rank in reversed(range(nearest.shape[1])):
        best[nearest[:, rank]] = rank
    return np.argsort(best, kind="stable")[: np.count_nonzero(best < k)]


def random_select(size: int, count: int, generator: np.random.Generator, *, exclude: np.ndarray | None = None) -> np.ndarray:
    """``count`` different indices below ``size``, drawn evenly among those not excluded, in rising order.

    >>> random_select(5, 3, np.random.default_rng(0), exclude=np.array([0, 1, 0, 1, 0], bool))
    array([0, 2, 4])
    """
    allowed = np.flatnonzero(_allowed(size, exclude))
    if not 0 <= count <= len(allowed):
        raise AcclimateError(f"{count} documents wanted, but the pool has {len(allowed)} to choose from")
    return np.sort(generator.choice(allowed, count, replace=False))


def _allowed(size: int, exclude: np.ndarray | None) -> np.ndarray:
    if exclude is None:
        return np.ones(size, bool)
    if np.shape(exclude) != (size,):
        raise AcclimateError(f"exclude has shape {np.shape(exclude)}, but the pool has {size} documents: one flag for each")
    return ~np.asarray(exclude, bool)
