"""Citation networks: papers of ACM and DBLP that cite each other, in five fields of computer science.

Tang et al. 2008 (ArnetMiner) in the form of Shen et al. 2020 (adversarial cross-network deep network embedding,
https://arxiv.org/abs/2002.07366); the files of github.com/shenxiaocam/ACDNE, licence not stated. ``acm`` is ACMv9 (9,360 papers, 15,556
edges), ``dblp`` DBLPv7 (5,484 papers, 8,117 edges). Each loads as ``acclimate.domain.graphs.Graph``: x [node, 6775] in fp32, how often
keywords occur in the title (0 to 3), the same columns in both; undirected edges; y [node].

What for: node classification across graphs.

Traps. Papers may have two fields (581 of ACM, 15 of DBLP): y holds the lower-numbered one; ``fields(domain)`` gives all as [node, 5] of
0 and 1, which the papers score by F1. The files do not name the fields (databases, artificial intelligence, computer vision, security
and networking, in an order that is not said). Publications count an edge from a paper to itself too (15,602 and 8,130); these are taken
out. The third network of the papers, Citationv1, is not here. Other releases under these names have other features and nodes.
"""

from typing import Any

import numpy as np

from ..domain.graphs import Graph
from . import known_domain, locate

FILES = {"acm": "acmv9", "dblp": "dblpv7"}
CARD: dict[str, Any] = {
    "source": "github.com/shenxiaocam/ACDNE, ACDNE_codes/input",
    "licence": "not stated",
    "size": "9,360 and 5,484 nodes of 6,775 features, 15,556 and 8,117 edges, 5 classes; 1.7 MB",
    "columns": {"x": "counts of keywords", "edges": "who cites whom, undirected", "y": "field of research"},
    "form": "graph",
    "hub": None,
}


def domains() -> list[str]:
    """The libraries."""
    return list(FILES)


def load(domain: str) -> Graph:
    """The graph of one library."""
    stored = _read(domain)
    edges = np.stack(stored["network"].nonzero())
    y = stored["group"].argmax(1)
    classes = [f"field_{number}" for number in range(1, 6)]
    return Graph(f"citation/{domain}", stored["attrb"], edges, y, classes, CARD["source"], CARD["licence"])


def fields(domain: str) -> np.ndarray:
    """[node, 5] of 0 and 1: all fields of each paper."""
    return _read(domain)["group"].astype(np.int64)


def _read(domain: str) -> dict[str, Any]:
    known_domain("citation", domain, FILES)
    from scipy.io import loadmat

    return loadmat(locate(f"other/graph_citation/{FILES[domain]}.mat"))
