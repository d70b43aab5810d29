"""Domains that are one graph: nodes with features and a class each, and undirected edges between them."""

from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from ..errors import AcclimateError
from ..files import digest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Graph:
    """An undirected graph: x [node, feature] in fp32, edges [2, edge] of node numbers, y [node] of class numbers, the classes' names.

    Edges may be given in any order, in one direction or both, more than once: they are kept sorted, once, in both directions. Edges from a
    node to itself are taken out and counted (``loops``), since layers that want them add them. Nodes without edges may be.

    >>> graph = Graph("path", np.eye(4), np.array([[2, 1, 0, 3], [1, 2, 1, 3]]), np.array([0, 0, 1, 1]), ["left", "right"])
    >>> graph.edges.tolist(), graph.loops, graph.isolated, graph.degrees.tolist()
    ([[0, 1, 1, 2], [1, 0, 2, 1]], 1, 1, [1, 2, 1, 0])
    >>> Graph("path", np.eye(3), np.array([[0], [3]]), np.zeros(3), ["one"])
    Traceback (most recent call last):
    acclimate.errors.AcclimateError: path has 3 nodes, but edges name nodes from 0 to 3; number nodes from 0 to 2
    """

    name: str
    x: np.ndarray = field(repr=False)
    edges: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    classes: list[str]
    source: str = ""
    licence: str = ""
    loops: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.x, self.y = np.ascontiguousarray(self.x, np.float32), np.asarray(self.y).astype(np.int64)
        edges, count = np.asarray(self.edges), len(self.x)
        if self.x.ndim != 2:
            raise AcclimateError(f"{self.name} has x of shape {self.x.shape}; give [node, feature]")
        if self.y.shape != (count,):
            raise AcclimateError(f"{self.name} has {count} nodes but y of shape {self.y.shape}; give one class per node")
        if count and not 0 <= self.y.min() <= self.y.max() < len(self.classes):
            raise AcclimateError(
                f"{self.name} has {len(self.classes)} classes, but y goes from {self.y.min()} to {self.y.max()}; number classes from 0"
            )
        if edges.ndim != 2 or len(edges) != 2 or (edges.size and edges.dtype.kind not in "iu"):
            raise AcclimateError(f"{self.name} has edges of shape {edges.shape} and type {edges.dtype}; give node numbers as [2, edge]")
        if edges.size and not 0 <= edges.min() <= edges.max() < count:
            raise AcclimateError(
                f"{self.name} has {count} nodes, but edges name nodes from {edges.min()} to {edges.max()}; "
                f"number nodes from 0 to {count - 1}"
            )
        edges = edges.astype(np.int64)
        loops = edges[0] == edges[1]
        self.loops = len(np.unique(edges[0, loops]))
        first, second = edges[:, ~loops]
        codes = np.unique(np.concatenate([first * count + second, second * count + first]))
        self.edges = np.stack([codes // max(count, 1), codes % max(count, 1)])

    def __len__(self) -> int:
        return len(self.x)

    @property
    def degrees(self) -> np.ndarray:
        """[node]: how many neighbours each node has."""
        return np.bincount(self.edges[0], minlength=len(self))

    @property
    def isolated(self) -> int:
        """How many nodes have no neighbour."""
        return int((self.degrees == 0).sum())

    def tensors(self) -> "tuple[Tensor, Tensor, Tensor]":
        """x, edges and y for torch."""
        import torch

        return torch.from_numpy(self.x), torch.from_numpy(self.edges), torch.from_numpy(self.y)

    def with_features(self, x: np.ndarray) -> "Graph":
        """The same nodes and edges with other features [node, feature]."""
        graph = Graph(self.name, x, self.edges, self.y, self.classes, self.source, self.licence)
        graph.loops = self.loops
        return graph

    @cached_property
    def fingerprint(self) -> str:
        """A digest of features, edges, labels and names of classes."""
        parts = [sha256(part.tobytes()).hexdigest() for part in (self.x, self.edges, self.y)]
        return digest([self.classes, self.x.shape, parts])
