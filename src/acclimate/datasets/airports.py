"""Airports: flights between airports of Brazil and of the USA, and how busy each airport is, told from the network alone.

Ribeiro, Saverese & Figueiredo 2017 (struc2vec, https://arxiv.org/abs/1704.03165); the copy in
github.com/wanglili-dartmouth/hyperbolic_struct, licence not stated. ``brazil`` 131 airports and 1,003 edges, ``usa`` 1,190 and 13,599.
Each loads as ``acclimate.domain.graphs.Graph``: undirected edges; y [node], four quarters by activity, the busiest first. Nodes have no
features of their own: x [node, 239] in fp32 is the degree as one-hot (column = number of neighbours, at most 238).

What for: node classification across graphs by structure alone.

Traps. The degree nearly gives the class away within a country, but the same degree means something else in the other: one-hot columns
above 79 never occur in Brazil. Brazil's file has 71 edges from an airport to itself, which are taken out and not counted in the degree.
The header of the USA's labels names its two columns the wrong way round, and its rows are not sorted by node.
"""

from typing import Any

import numpy as np

from ..domain.graphs import Graph
from . import known_domain, locate

COUNTRIES = ("brazil", "usa")
CLASSES = ("busiest_quarter", "second_quarter", "third_quarter", "quietest_quarter")
WIDTH = 239
CARD: dict[str, Any] = {
    "source": "github.com/wanglili-dartmouth/hyperbolic_struct, data",
    "licence": "not stated",
    "size": "131 and 1,190 nodes, 1,003 and 13,599 edges, 4 classes; 0.2 MB",
    "columns": {"x": "degree, one-hot", "edges": "flights, undirected", "y": "quarter by activity"},
    "form": "graph",
    "hub": None,
}


def domains() -> list[str]:
    """The countries."""
    return list(COUNTRIES)


def load(domain: str) -> Graph:
    """The flights of one country."""
    known_domain("airports", domain, COUNTRIES)
    folder = "other/graph_airports"
    labels = np.loadtxt(locate(f"{folder}/labels-{domain}-airports.txt"), np.int64, skiprows=1)
    edges = np.loadtxt(locate(f"{folder}/{domain}-airports.edgelist"), np.int64)[:, :2].T
    y = np.zeros(len(labels), np.int64)
    y[labels[:, 0]] = labels[:, 1]
    plain = Graph(f"airports/{domain}", np.zeros((len(y), 0)), edges, y, list(CLASSES), CARD["source"], CARD["licence"])
    return plain.with_features(np.eye(WIDTH)[plain.degrees])
