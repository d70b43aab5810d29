"""Packing documents into rows of fixed room, and cutting those that are too long.

Best-fit decreasing (Johnson et al. 1974, https://doi.org/10.1137/0203025): longest first, each into the fullest row that
still holds it; never worse than 11/9 of the fewest possible rows (plus a constant).

>>> pack([5, 3, 4, 2, 6], capacity=10)
[[4, 2], [0, 1, 3]]
>>> cut(10, 4)
[(0, 4), (4, 8), (8, 10)]
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def pack(lengths: "Sequence[int] | np.ndarray", capacity: int) -> list[list[int]]:
    """Rows of indices into ``lengths``: every index once, the lengths of a row sum to ``capacity`` at most.

    Deterministic: equal lengths are placed in the order given. Raises ValueError for a length below 0 or over ``capacity``.
    """
    if capacity < 1:
        raise ValueError(f"capacity is {capacity}, but must be at least 1")
    sizes = np.asarray(lengths, dtype=np.int64)
    wrong = np.flatnonzero((sizes < 0) | (sizes > capacity))
    if wrong.size:
        raise ValueError(f"length {sizes[wrong[0]]} at index {wrong[0]} must lie in 0 to {capacity} (the capacity); cut it first")
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = defaultdict(list)  # room left -> rows with exactly that much
    rooms = 0  # the keys of open_rows as a bitmap: "the smallest room of at least n" is one shift and one lowest bit
    order = np.argsort(-sizes, kind="stable")
    for index, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        fitting = rooms >> size
        if fitting:
            left = (fitting & -fitting).bit_length() - 1  # what stays free in the fullest row that holds it
            room = left + size
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms ^= 1 << room
            rows[row].append(index)
        else:
            left, row = capacity - size, len(rows)
            rows.append([index])
        open_rows[left].append(row)
        rooms |= 1 << left
    return rows


def cut(length: int, capacity: int) -> list[tuple[int, int]]:
    """(start, end) of the pieces of a document: all of ``capacity`` but the last, which has the rest; none for length 0.

    Raises ValueError for a negative length or a capacity below 1.
    """
    if length < 0 or capacity < 1:
        raise ValueError(f"cannot cut length {length} into pieces of {capacity}: length must be at least 0, capacity at least 1")
    return [(start, min(start + capacity, length)) for start in range(0, length, capacity)]
