"""Domains as leaves of a tree, each named by its path: "goods/media/books"."""

from collections.abc import Sequence

import torch
from torch import Tensor


def hops(paths: Sequence[str]) -> Tensor:
    """How many edges lie between the leaves of a tree: [leaf, leaf].

    >>> hops(["media/books", "media/music", "kitchen"]).tolist()
    [[0.0, 2.0, 3.0], [2.0, 0.0, 3.0], [3.0, 3.0, 0.0]]
    """
    steps = [path.strip("/").split("/") for path in paths]
    found = torch.zeros(len(steps), len(steps))
    for i, one in enumerate(steps):
        for j, other in enumerate(steps):
            shared = next(
                (depth for depth, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
            )
            found[i, j] = len(one) + len(other) - 2 * shared
    return found
