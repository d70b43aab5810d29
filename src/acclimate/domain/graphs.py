"""Domains that are graphs: nodes with features, and undirected edges between them.

What is learned is the class of each node of one graph, or the class of each of many small graphs (``member`` says which node is of which).
"""

from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile, is_zipfile

import numpy as np

from ..errors import AcclimateError
from ..files import atomic_file, digest
from ..progress import say

if TYPE_CHECKING:
    from torch import Tensor

ENDING = ".npz"  # of a file that holds a graph
INDICATOR = "_graph_indicator.txt"  # of a folder that holds many small graphs as the TU datasets do
KEYS = ("x", "edges", "y")
ABOUT = ("name", "source", "licence")


@dataclass
class Graph:
    """An undirected graph: x [node, feature] in fp32, edges [2, edge] of node numbers, y [node] of class numbers, the classes' names.

    With ``member`` [node] it is many small ones, whose numbers member holds and y has a class for [graph]; nodes are put in their order.

    Edges may be given in any order, in one direction or both, more than once: they are kept sorted, once, in both directions. Edges from a
    node to itself are taken out and counted (``loops``), since layers that want them add them. Nodes without edges may be. ``one_way``
    counts edges that were given in one direction only.

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
    member: np.ndarray | None = field(default=None, repr=False)
    loops: int = field(default=0, init=False)
    one_way: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.x, self.y = np.ascontiguousarray(self.x, np.float32), np.asarray(self.y).astype(np.int64)
        edges, count = np.asarray(self.edges), len(self.x)
        if self.x.ndim != 2:
            raise AcclimateError(f"{self.name} has x of shape {self.x.shape}; give [node, feature]")
        if self.y.ndim != 1 or (self.member is None and len(self.y) != count):
            raise AcclimateError(
                f"{self.name} has {count} nodes but y of shape {self.y.shape}; give one class per node, or with member "
                "[node] one per small graph"
            )
        if len(self.y) and not 0 <= self.y.min() <= self.y.max() < len(self.classes):
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
        if self.member is not None:
            edges = self._in_order(edges)
        loops = edges[0] == edges[1]
        self.loops = len(np.unique(edges[0, loops]))
        first, second = edges[:, ~loops]
        codes = np.unique(np.concatenate([first * count + second, second * count + first]))
        self.one_way = len(codes) - len(np.unique(first * count + second))
        self.edges = np.stack([codes // max(count, 1), codes % max(count, 1)])

    def _in_order(self, edges: np.ndarray) -> np.ndarray:
        """Nodes by the graph that they are of; the edges, named anew."""
        member = np.asarray(self.member)
        if member.shape != (len(self.x),) or member.dtype.kind not in "iu":
            raise AcclimateError(
                f"{self.name} has member of shape {member.shape} and type {member.dtype}; give the number of its graph for each node [node]"
            )
        held = np.bincount(member, minlength=len(self.y)) if member.min(initial=0) >= 0 else np.zeros(0, int)
        if len(held) != len(self.y) or not held.all():
            empty = int(np.flatnonzero(held == 0)[0]) if len(held) == len(self.y) else None
            wrong = f"but graph {empty} has no node" if empty is not None else f"but member goes from {member.min()} to {member.max()}"
            raise AcclimateError(f"{self.name} has a class for {len(self.y)} graphs, {wrong}; number graphs from 0 to {len(self.y) - 1}")
        order = member.argsort(kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        self.x, self.member, edges = self.x[order], member[order].astype(np.int64), place[edges]
        across = np.flatnonzero(self.member[edges[0]] != self.member[edges[1]])
        if len(across):
            one, other = (int(self.member[end]) for end in edges[:, across[0]])
            raise AcclimateError(f"{self.name} has an edge from graph {one} to graph {other}; edges join nodes of one graph")
        return edges

    def __len__(self) -> int:
        return len(self.x)

    @property
    def rows(self) -> int:
        """How many things have a class: nodes, or small graphs."""
        return len(self.y)

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
        graph = Graph(self.name, x, self.edges, self.y, self.classes, self.source, self.licence, self.member)
        graph.loops, graph.one_way = self.loops, self.one_way
        return graph

    def check(self) -> None:
        """Raise AcclimateError for what no network can spread over: no nodes, no edges, features that are not finite."""
        if not len(self):
            raise AcclimateError(f"{self.name} has no nodes; leave it out")
        if not self.edges.size:
            raise AcclimateError(f"{self.name} has no edges, so its nodes are plain rows; give edges, or its features to another backbone")
        finite = np.isfinite(self.x).all(1)
        if not finite.all():
            raise AcclimateError(f"{self.name}: features of node {np.flatnonzero(~finite)[0]} hold nan or infinity; fill them")

    @classmethod
    def load(cls, path: str | Path) -> "Graph":
        """A graph from a file of numpy (npz): x [node, feature], edges [2, edge], y [node] of numbers or names, perhaps ``classes``.

        With ``member`` [node] it is many small graphs, and y is [graph]; these may also lie in a folder of text files, as the TU datasets
        do (domain/tu.py). Classes without names are called by their number.

        Raises AcclimateError with one line for what is missing or unreadable.
        """
        path = Path(path).expanduser()
        if path.is_dir():
            from .tu import read

            return read(path)
        if not is_zipfile(path):
            raise AcclimateError(f"{path} is missing, or no npz file; write it with numpy.savez or Graph.save")
        try:
            with np.load(path, allow_pickle=False) as stored:
                found = {key: stored[key] for key in stored.files}
        except (OSError, ValueError, EOFError, BadZipFile, AttributeError) as error:
            raise AcclimateError(f"{path} cannot be read as arrays of numpy: {' '.join(str(error).split())[:200]}") from error
        if missing := [key for key in KEYS if key not in found]:
            raise AcclimateError(f"{path} lacks {missing[0]}; a graph is x [node, feature], edges [2, edge], y [node], and perhaps classes")
        x, edges, y = (found[key] for key in KEYS)
        about = {key: str(found[key]) for key in ABOUT if key in found}
        if x.dtype.kind not in "biuf":
            raise AcclimateError(f"{path} has x of type {x.dtype}; give numbers")
        if y.dtype.kind not in "iuU":
            raise AcclimateError(f"{path} has y of type {y.dtype}; give whole numbers or names of classes")
        if y.dtype.kind == "U":
            names = list(map(str, found["classes"].flat)) if "classes" in found else sorted({str(name) for name in y.flat})
            if unknown := sorted({str(name) for name in y.flat} - set(names)):
                raise AcclimateError(f"{path} has rows of class {unknown[0]!r}, which its classes do not name")
            y = np.array([names.index(str(name)) for name in y.flat], np.int64).reshape(y.shape)
        else:
            names = list(map(str, found.get("classes", np.arange(y.astype(np.int64).max(initial=-1) + 1)).flat))
        graph = cls(x=x, edges=edges, y=y, classes=names, member=found.get("member"), **{"name": str(path), "source": str(path), **about})
        if graph.one_way:
            say(f"{path}: {graph.one_way} edges are given in one direction only; they count in both")
        return graph

    def save(self, path: str | Path) -> None:
        """Write a file that :meth:`load` reads; whole or not at all."""
        about = {key: np.array(getattr(self, key)) for key in ABOUT} | ({} if self.member is None else {"member": self.member})
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, x=self.x, edges=self.edges, y=self.y, classes=np.array(self.classes, str), **about)  # type: ignore[arg-type]

    @cached_property
    def fingerprint(self) -> str:
        """A digest of features, edges, labels and names of classes."""
        arrays = (self.x, self.edges, self.y, *([] if self.member is None else [self.member]))
        parts = [sha256(part.tobytes()).hexdigest() for part in arrays]
        return digest([self.classes, self.x.shape, parts])
