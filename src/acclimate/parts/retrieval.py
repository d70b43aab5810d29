"""How well a ranking finds what belongs to a query: average precision (MAP is its mean) and recall among the first k.

Manning, Raghavan & Schütze 2008, "Introduction to Information Retrieval", sections 8.3 and 8.4, https://nlp.stanford.edu/IR-book/
Candidates of equal score keep their order. Hide a candidate (the query itself) with a score of -inf.
"""

import numpy as np
from numpy.typing import ArrayLike

from ..errors import AcclimateError


def average_precision(scores: ArrayLike, relevant: ArrayLike, k: int = 0) -> np.ndarray:
    """Mean of the precision at each relevant candidate: scores and relevant [query, candidate] -> [query].

    With ``k`` the ranking ends after k candidates, and the sum is divided by the relevant ones that could stand there (MAP@k).
    Raises AcclimateError where a query has nothing relevant.

    >>> average_precision([[0.9, 0.8, 0.7, 0.6]], [[1, 0, 1, 0]])  # (1/1 + 2/3) / 2
    array([0.83333333])
    >>> average_precision([[0.9, 0.8, 0.7, 0.6]], [[0, 1, 0, 1]], k=2)  # (1/2) / 2
    array([0.25])
    """
    ranked, count = _ranked(scores, relevant, k)
    precision = ranked.cumsum(1) / np.arange(1, ranked.shape[1] + 1)
    return (precision * ranked).sum(1) / (np.minimum(count, k) if k else count)


def recall_at(scores: ArrayLike, relevant: ArrayLike, k: int = 10) -> np.ndarray:
    """Share of what is relevant that stands among the first k: scores and relevant [query, candidate] -> [query].

    >>> recall_at([[0.9, 0.8, 0.7, 0.6]], [[1, 0, 1, 1]], k=3)
    array([0.66666667])
    """
    ranked, count = _ranked(scores, relevant, k)
    return ranked.sum(1) / count


def pair_precision(scores: ArrayLike, same: ArrayLike) -> float:
    """Average precision of one list of pairs by their score (paraphrase or not): both [pair]; equal scores count as one step.

    >>> round(pair_precision([0.9, 0.8, 0.7], [1, 0, 1]), 4)
    0.8333
    """
    from sklearn.metrics import average_precision_score

    if not np.any(same):
        raise AcclimateError("average precision needs one pair at least that belongs together")
    return float(average_precision_score(np.asarray(same), np.asarray(scores)))


def _ranked(scores: ArrayLike, relevant: ArrayLike, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Relevance in the order of the ranking, its first k; and how much there is for each query."""
    scores, relevant = np.asarray(scores, float), np.asarray(relevant, bool)
    if scores.ndim != 2 or scores.shape != relevant.shape:
        raise AcclimateError(f"scores {scores.shape} and relevance {relevant.shape} must be of one shape, [query, candidate]")
    count = relevant.sum(1)
    if not count.all():
        raise AcclimateError(f"query {int((count == 0).argmax())} has nothing relevant among its candidates; leave it out")
    order = np.argsort(-scores, axis=1, kind="stable")[:, : k or None]
    return np.take_along_axis(relevant, order, 1), count
