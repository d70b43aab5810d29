"""Graphs as domains: what is refused, what is mended, and the published sizes of the named ones."""

import numpy as np
import pytest

from acclimate import datasets
from acclimate.datasets import citation
from acclimate.domain.arrays import open_domain
from acclimate.domain.graphs import Graph
from acclimate.errors import AcclimateError
from worlds import needs_data


def triangle(**changed):
    """Three nodes in a ring and a fourth alone."""
    edges = np.array([[0, 1, 2], [1, 2, 0]])
    return Graph(**{"name": "ring", "x": np.eye(4), "edges": edges, "y": np.array([0, 1, 0, 1]), "classes": ["a", "b"], **changed})


def test_order_direction_and_repeats_of_edges_do_not_matter():
    graph = triangle()
    shuffled = triangle(edges=np.array([[2, 0, 1, 1, 0, 2], [0, 2, 2, 0, 1, 2]], np.int32))
    assert graph.edges.tolist() == [[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]]
    assert graph.fingerprint == shuffled.fingerprint != triangle(y=np.array([1, 1, 0, 1])).fingerprint
    assert (graph.loops, shuffled.loops, graph.isolated, len(graph)) == (0, 1, 1, 4)
    x, edges, y = graph.tensors()
    assert (str(x.dtype), str(edges.dtype), str(y.dtype)) == ("torch.float32", "torch.int64", "torch.int64")
    assert triangle(edges=np.zeros((2, 0), np.int64)).isolated == 4


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"edges": np.array([[0, -1], [1, 2]])}, "ring has 4 nodes, but edges name nodes from -1 to 2; number nodes from 0 to 3"),
        ({"edges": np.array([[0, 1, 2]])}, "ring has edges of shape (1, 3) and type int64; give node numbers as [2, edge]"),
        ({"edges": np.array([[0.0], [1.0]])}, "ring has edges of shape (2, 1) and type float64; give node numbers as [2, edge]"),
        ({"y": np.array([0, 1, 2, 1])}, "ring has 2 classes, but y goes from 0 to 2; number classes from 0"),
        (
            {"y": np.array([0, 1])},
            "ring has 4 nodes but y of shape (2,); give one class per node, or with member [node] one per small graph",
        ),
        ({"x": np.ones(4)}, "ring has x of shape (4,); give [node, feature]"),
    ],
)
def test_what_is_no_graph_is_one_line(changed, line):
    with pytest.raises(AcclimateError) as caught:
        triangle(**changed)
    assert str(caught.value) == line


@needs_data
@pytest.mark.parametrize(
    ("name", "nodes", "edges", "features", "counts", "loops"),
    [
        ("citation/acm", 9360, 15556, 6775, [1916, 2767, 2110, 803, 1764], 46),
        ("citation/dblp", 5484, 8117, 6775, [1188, 1808, 1307, 332, 849], 13),
        ("airports/brazil", 131, 1003, 239, [32, 32, 32, 35], 71),
        ("airports/usa", 1190, 13599, 239, [297, 297, 297, 299], 0),
        ("twitch/de", 9498, 153138, 3170, [3756, 5742], 0),
        ("twitch/engb", 7126, 35324, 3170, [3238, 3888], 0),
        ("twitch/es", 4648, 59382, 3170, [3288, 1360], 0),
    ],
)
def test_graphs_have_their_published_sizes(name, nodes, edges, features, counts, loops):
    graph = datasets.load(name)
    assert (graph.name, graph.x.shape, graph.edges.shape) == (name, (nodes, features), (2, 2 * edges))
    assert (np.bincount(graph.y).tolist(), graph.loops, graph.isolated) == (counts, loops, 0)
    assert (graph.x.dtype, graph.edges.dtype) == (np.float32, np.int64)
    back = graph.edges[::-1]
    assert np.array_equal(back[:, np.lexsort(back[::-1])], graph.edges)


@needs_data
def test_busy_airports_have_many_neighbours():
    for country in datasets.domains("airports"):
        graph = datasets.load(f"airports/{country}")
        means = [graph.degrees[graph.y == quarter].mean() for quarter in range(4)]
        assert means == sorted(means, reverse=True)
        assert (graph.x.argmax(1) == graph.degrees).all()


@needs_data
def test_papers_may_have_two_fields():
    assert [int((citation.fields(name).sum(1) == 2).sum()) for name in citation.FILES] == [581, 15]


@needs_data
@pytest.mark.parametrize("name", ["citation/dblp", "spoken_digits/george"])
def test_a_recipe_cannot_take_them_and_says_so(name):
    with pytest.raises(AcclimateError, match="neither text nor arrays"):
        open_domain("graph", name)
