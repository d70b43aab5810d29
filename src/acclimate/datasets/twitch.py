"""Twitch: who is friends with whom among people who stream games in German, English and Spanish, and who uses mature language.

Rozemberczki, Allen & Sarkar 2021 (multi-scale attributed node embedding, https://arxiv.org/abs/1909.13021);
github.com/benedekrozemberczki/MUSAE, GPL-3.0 (repository). ``de`` 9,498 people and 153,138 friendships, ``engb`` 7,126 and 35,324,
``es`` 4,648 and 59,382. Each loads as ``acclimate.domain.graphs.Graph``: x [node, 3170] of 0 and 1 in fp32 (games that are liked,
place, habits; the same columns in all); undirected edges; y [node], plain or mature.

What for: node classification across graphs, language community = domain.

Traps. The share of mature differs (60, 55 and 29 %), so accuracy across communities rests on label shift: report macro-F1 too. Columns
have no names. Three of six communities. x of ``de`` takes 120 MB in memory.
"""

from typing import Any

import numpy as np

from ..domain.graphs import Graph
from . import known_domain, locate

COMMUNITIES = ("de", "engb", "es")
WIDTH = 3170
CARD: dict[str, Any] = {
    "source": "github.com/benedekrozemberczki/MUSAE, input",
    "licence": "GPL-3.0 (repository)",
    "size": "9,498, 7,126 and 4,648 nodes of 3,170 features, 153,138, 35,324 and 59,382 edges, 2 classes; 1.5 MB",
    "columns": {"x": "0 or 1", "edges": "friendships, undirected", "y": "plain or mature"},
    "form": "graph",
    "hub": None,
}


def domains() -> list[str]:
    """The communities by language."""
    return list(COMMUNITIES)


def load(domain: str) -> Graph:
    """The friendships of one community."""
    known_domain("twitch", domain, COMMUNITIES)
    with np.load(locate(f"other/graph_twitch/{domain.upper()}.npz"), allow_pickle=False) as stored:
        x = np.zeros((int(stored["n"]), WIDTH), np.float32)
        x[stored["feat_row"], stored["feat_col"]] = 1
        edges, y = stored["edges"].T, stored["mature"].astype(np.int64)
    return Graph(f"twitch/{domain}", x, edges, y, ["plain", "mature"], CARD["source"], CARD["licence"])
