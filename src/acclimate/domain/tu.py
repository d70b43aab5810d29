"""Folders of text files that hold many small graphs with a class each, as the TU datasets come.

Morris et al. 2020, https://arxiv.org/abs/2007.08663, "file format" at chrsmrrs.github.io/datasets. Nodes, graphs and edges are numbered
from 1, one line each: NAME_A.txt (edges), NAME_graph_indicator.txt (each node's graph), NAME_graph_labels.txt, and where there are any
NAME_node_attributes.txt and NAME_node_labels.txt. A node's features are its attributes, and beside them its label as zeros and a one;
where it has neither, the logarithm of 1 + its degree.
"""

from pathlib import Path

import numpy as np

from ..errors import AcclimateError
from .graphs import INDICATOR, Graph


def read(folder: Path) -> Graph:
    """The graphs of a folder. Raises AcclimateError with one line for what is missing or does not fit."""
    found = sorted(folder.glob(f"*{INDICATOR}"))
    if len(found) != 1:
        raise AcclimateError(f"{folder} holds {len(found)} files NAME{INDICATOR}; graphs in text files have exactly one")
    name = found[0].name.removesuffix(INDICATOR)
    member = _numbers(folder, name, "graph_indicator")[:, 0].astype(np.int64) - 1
    edges = _numbers(folder, name, "A").astype(np.int64).T - 1
    labels = _numbers(folder, name, "graph_labels")[:, 0]
    kinds, y = np.unique(labels, return_inverse=True)
    parts = []
    if (folder / f"{name}_node_attributes.txt").is_file():
        parts.append(_numbers(folder, name, "node_attributes"))
    if (folder / f"{name}_node_labels.txt").is_file():
        own = _numbers(folder, name, "node_labels")[:, 0].astype(np.int64)
        parts.append(np.eye(own.max() + 1)[own])
    if wrong := [len(part) for part in parts if len(part) != len(member)]:
        raise AcclimateError(f"{folder} has {len(member)} nodes, but features of {wrong[0]}; give one line for each node")
    x = np.concatenate(parts, 1) if parts else np.zeros((len(member), 1))
    graph = Graph(name, x, edges, y, [f"{kind:g}" for kind in kinds], str(folder), member=member)
    return graph if parts else graph.with_features(np.log1p(graph.degrees)[:, None])


def _numbers(folder: Path, name: str, what: str) -> np.ndarray:
    path = folder / f"{name}_{what}.txt"
    try:
        return np.loadtxt(path, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        raise AcclimateError(f"{path} cannot be read as numbers with commas between: {' '.join(str(error).split())[:200]}") from error
