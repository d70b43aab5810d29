"""Language models that learn domains in turn: what a table of losses tells of transfer and forgetting, and domains by similarity.

Yildiz et al. 2024, https://arxiv.org/abs/2402.17400. Lower is better here; of success, where higher is, parts/continual.py tells."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import AcclimateError


def transfers(matrix: ArrayLike, recent: int) -> dict[str, Any]:
    """What checkpoints 0 (the start) to n lose or gain on n domains: matrix P [checkpoint, domain], domains in the order of learning.

    By domain j: ``start`` P[0, j], ``learned`` P[j, j], ``last`` P[n, j], ``backward`` P[n, j] - P[j, j] for all but the last (above 0
    where it was forgotten), ``forward`` P[j-1, j] - P[0, j] from the second on (below 0 where the domains before it helped). By checkpoint
    k from the second on: ``recent``, mean P[k, j] - P[j, j] over the ``recent`` domains before it. ``forgetting``: mean max(0, backward).

    >>> found = transfers([[9.0, 8.0, 7.0], [4.0, 6.0, 9.0], [5.0, 3.0, 6.0], [3.5, 4.0, 2.0]], recent=1)
    >>> found["learned"], found["backward"], found["forward"]
    ([4.0, 3.0, 2.0], [-0.5, 1.0], [-2.0, -1.0])
    >>> found["recent"], found["forgetting"]  # 5 - 4 and 4 - 3; (0 + 1) / 2
    ([1.0, 1.0], 0.5)
    """
    held = np.asarray(matrix, dtype=float)
    if held.ndim != 2 or len(held) != held.shape[1] + 1 or len(held) < 3 or np.isnan(held).any():
        raise AcclimateError(
            f"the matrix has the shape {list(held.shape)}, but must be whole, [domain + 1, domain], for at least two domains: "
            "a row for the start model, then one for each domain learned"
        )
    start, rows = held[0], held[1:]
    learned, count = rows.diagonal(), len(rows)
    change = rows - learned  # [checkpoint 1 to n, domain]
    backward = change[-1, :-1]
    near = [change[k, max(0, k - recent) : k].mean() for k in range(1, count)]
    before = [rows[j - 1, j] - start[j] for j in range(1, count)]
    lists = {"start": start, "learned": learned, "last": rows[-1], "backward": backward, "forward": before, "recent": near}
    return {**{name: np.asarray(each).tolist() for name, each in lists.items()}, "forgetting": float(np.maximum(0, backward).mean())}


def cosines(vectors: ArrayLike) -> np.ndarray:
    """Cosine of each pair of rows [row, row].

    >>> cosines([[2.0, 0.0], [3.0, 4.0]]).round(4).tolist()
    [[1.0, 0.6], [0.6, 1.0]]
    """
    unit = np.asarray(vectors, dtype=float)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    return unit @ unit.T


def nearest_chain(similarity: ArrayLike, first: int) -> list[int]:
    """From one item to the most similar that was not yet visited, until all were: similarity [item, item] -> places.

    >>> nearest_chain([[1, 0.2, 0.9, 0.1], [0.2, 1, 0.3, 0.8], [0.9, 0.3, 1, 0.4], [0.1, 0.8, 0.4, 1]], 1)
    [1, 3, 2, 0]
    """
    table = np.array(similarity, dtype=float)
    chain = [first]
    while len(chain) < len(table):
        row = table[chain[-1]].copy()
        row[chain] = -np.inf
        chain.append(int(row.argmax()))
    return chain
