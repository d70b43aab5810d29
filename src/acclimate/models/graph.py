"""Layers on graphs: each node's features, mixed with its neighbours', whose rows are nodes called by their number.

Kipf & Welling 2017, equation 2 (gcn), https://arxiv.org/abs/1609.02907; Velickovic et al. 2018, equations 1 to 4 with one head (gat),
https://arxiv.org/abs/1710.10903; Hamilton et al. 2017, algorithm 2 (a few neighbours a layer), https://arxiv.org/abs/1706.02216

A graph is given to the network, not to a method: a pool holds the numbers of its nodes, so that whatever works on rows works on nodes. Of
many small graphs a pool holds their numbers, and nodes' features are pooled into one row for each graph."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import AcclimateError, nearest
from ..parts.graphs import Matrix, Spread, normalised, pooled, row_starts, spans, with_loops

if TYPE_CHECKING:
    from ..domain.graphs import Graph
    from ..engines.shift import Pool

READOUTS = ("mean", "sum", "max")
SPARSE = 0.1  # share of entries above which features are kept dense


class Structure(nn.Module):
    """A domain's graph for a network: features, edges, and the normalised matrix with loops that spreads features over it.

    ``count`` nodes and ``rows`` things with a class: the nodes, or small graphs, where ``member`` says which of them each node is of.
    """

    def __init__(self, graph: "Graph"):
        super().__init__()
        self.name, self.count, self.rows, self.fingerprint = graph.name, len(graph), graph.rows, graph.fingerprint
        graph.check()
        x, edges, _ = graph.tensors()
        self.register_buffer("edges", edges, persistent=False)
        member = None if graph.member is None else torch.from_numpy(graph.member)
        self.register_buffer("member", member, persistent=False)
        self.register_buffer("firsts", None if member is None else row_starts(member, self.rows), persistent=False)
        places = with_loops(edges, self.count)
        self.matrix = Matrix(places, normalised(places, torch.ones(places.shape[1]), self.count), self.count)
        filled = x.nonzero().T
        thin = filled.shape[1] < SPARSE * x.numel()
        self.x = Matrix(filled, x[filled[0], filled[1]], *x.shape) if thin else None
        self.register_buffer("dense", None if thin else x, persistent=False)

    edges: Tensor
    dense: Tensor | None
    member: Tensor | None
    firsts: Tensor | None  # where each small graph's nodes begin [graph + 1]

    @property
    def features(self) -> Tensor:
        """Features of all nodes, dense [node, inputs]."""
        return self.x.dense() if self.x is not None else self.dense  # type: ignore[return-value]

    def times(self, weight: Tensor, moved: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        """Features [node, inputs], ``moved`` by as many and in another ``order``, times a weight [width, inputs] -> [node, width]."""
        if self.dense is not None and moved is None and order is not None:
            return self.dense[order].to(weight.dtype) @ weight.T
        found = self.x(weight.T) if self.x is not None else self.dense.to(weight.dtype) @ weight.T  # type: ignore[union-attr]
        found = found if moved is None else found + moved.to(weight.dtype) @ weight.T
        return found if order is None else found[order]

    def parts(self, graphs: Tensor) -> tuple[Tensor, Matrix, Tensor]:
        """Nodes of some of its small graphs, the normalised matrix among them, and which of these graphs each node is of."""
        assert self.firsts is not None
        inside, owner = spans(self.firsts, graphs)
        entries, rows = spans(self.matrix.starts, inside)
        place = torch.empty(self.count, dtype=torch.long, device=graphs.device)
        place[inside] = torch.arange(len(inside), device=graphs.device)
        places = torch.stack([rows, place[self.matrix.places[1, entries]]])
        return inside, Matrix(places, self.matrix.values[entries], len(inside)), owner

    def around(self, nodes: Tensor, hops: int, most: int) -> tuple[Tensor, Matrix]:
        """Nodes within some hops of these, at most so many new edges a node and hop, and the normalised matrix among them."""
        starts, inside, taken = row_starts(self.edges[0], self.count), nodes.unique(), []
        for _ in range(hops):
            degrees = starts[inside + 1] - starts[inside]
            drawn = (torch.rand(len(inside), most, device=inside.device) * degrees[:, None]).long()
            few = torch.arange(most, device=inside.device).expand_as(drawn)
            drawn = torch.where(degrees[:, None] <= most, few, drawn)  # all of them where there are no more
            places = (starts[inside][:, None] + drawn)[drawn < degrees[:, None]]
            taken.append(self.edges[:, places])
            inside = torch.cat([inside, self.edges[1, places]]).unique()
        both = torch.cat([*taken, *(each.flip(0) for each in taken)], 1).unique(dim=1)
        places = with_loops(torch.searchsorted(inside, both.contiguous()), len(inside))
        return inside, Matrix(places, normalised(places, torch.ones(places.shape[1], device=places.device), len(inside)), len(inside))


class GraphNet(nn.Module):
    """Node numbers [row] -> features [row, width]: ``depth`` layers, each with ReLU and dropout, over the whole graph of the nodes.

    ``attach`` gives it graphs; nodes are numbered through, graph after graph. Rows [row, inputs] of numbers are nodes without neighbours.
    Of a domain of many small graphs these are numbered through instead, and ``readout`` (mean, sum, max) makes one row of a graph's nodes.
    ``neighbours`` above 0 trains on so many neighbours a node and layer, for graphs that are too large to be spread over at every step.
    """

    block = 1_000_000_000  # rows at a time where nothing learns: all, since each pass goes over the whole graph

    def __init__(
        self,
        inputs: int = 16,
        width: int = 128,
        depth: int = 2,
        layer: str = "gcn",
        dropout: float = 0.0,
        neighbours: int = 0,
        readout: str = "mean",
    ):
        super().__init__()
        if readout not in READOUTS:
            raise AcclimateError(f"readout = {readout!r}{nearest(readout, READOUTS)}")
        if layer not in ("gcn", "gat"):
            raise AcclimateError(f"layer = {layer!r}, but must be gcn or gat")
        self.settings = {
            "inputs": inputs, "width": width, "depth": depth, "layer": layer, "dropout": dropout, "neighbours": neighbours,
            "readout": readout,
        }  # fmt: skip
        self.inputs, self.features, self.neighbours, self.readout = (inputs,), width, neighbours, readout
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(width, width if number else inputs)) for number in range(depth))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(depth))
        self.attention = nn.ParameterList(nn.Parameter(torch.empty(2, width)) for _ in range(depth if layer == "gat" else 0))
        for weight in (*self.weights, *self.attention):
            nn.init.xavier_uniform_(weight)
        self.dropout, self.graphs = nn.Dropout(dropout), nn.ModuleList()

    def attach(self, graphs: "Sequence[Graph]") -> "list[Pool]":
        """Add graphs; the nodes of each, or the small graphs it consists of, as a pool with labels."""
        from ..engines.shift import Pool

        found = []
        for graph in graphs:
            if graph.x.shape[1] != self.inputs[0]:
                raise AcclimateError(f"{graph.name} has {graph.x.shape[1]} features a node, but the network takes {self.inputs[0]}")
            first = sum(each.rows for each in self.graphs)  # type: ignore[misc]
            self.graphs.append(Structure(graph))
            found.append(Pool(graph.name, first + torch.arange(graph.rows), torch.from_numpy(graph.y)))
        return found

    @property
    def fingerprint(self) -> str:
        """What the graphs are, beside the weights."""
        return " ".join(str(graph.fingerprint) for graph in self.graphs)

    def owners(self, x: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """The graphs that rows are of: {graph: (places among these rows, nodes' (or small graphs') numbers within the graph)}."""
        ends = torch.tensor([graph.rows for graph in self.graphs], device=x.device).cumsum(0)
        if not len(ends) or (len(x) and not 0 <= int(x.min()) <= int(x.max()) < int(ends[-1])):
            raise AcclimateError(f"rows go up to {int(x.max())}, but the network's graphs have {int(ends[-1]) if len(ends) else 0} of them")
        owner = torch.bucketize(x, ends, right=True)
        first = ends - torch.tensor([graph.rows for graph in self.graphs], device=x.device)
        return {number: ((owner == number).nonzero()[:, 0], x[owner == number] - first[number]) for number in owner.unique().tolist()}

    def forward(self, x: Tensor, **how: object) -> Tensor:
        """Features of the last layer [row, width]; ``how`` as in :meth:`layers`."""
        return self.layers(x, **how)[-1]  # type: ignore[arg-type]

    def layers(
        self,
        x: Tensor,
        steps: int = 1,
        through: Mapping[int, Spread] | None = None,
        moved: Mapping[int, Tensor] | None = None,
        order: Mapping[int, Tensor] | None = None,
    ) -> list[Tensor]:
        """What each layer gives [row, width], pooled over a small graph's nodes where rows are graphs.

        ``steps``: how often each layer spreads; 0 looks at no edge. ``through``: what spreads over a graph (by number) instead of its
        normalised matrix. ``moved``: what a graph's features are moved by [node, inputs]. ``order``: whose features each node gets [node].
        """
        if x.is_floating_point():
            return self._stack(lambda weight: x @ weight.T, None, 0)
        found: list[list[Tensor]] = []
        places = []
        for number, (rows, nodes) in self.owners(x).items():
            graph, spread, change = self.graphs[number], (through or {}).get(number), (moved or {}).get(number)
            who, member = (order or {}).get(number), graph.member
            as_it_is = spread is None and change is None and who is None
            if member is not None and as_it_is:
                chosen, nodes = nodes.unique(return_inverse=True)
                who, spread, member = graph.parts(chosen)  # type: ignore[operator]
            elif self.training and self.neighbours and as_it_is and steps:
                who, spread = graph.around(nodes, len(self.weights) * steps, self.neighbours)
                nodes = torch.searchsorted(who, nodes)
            outs = self._stack(lambda weight, g=graph, c=change, w=who: g.times(weight, c, w), spread or graph.matrix, steps)  # type: ignore[misc, arg-type]
            if member is not None:
                outs = [pooled(out, member, int(member[-1]) + 1, self.readout) for out in outs]  # type: ignore[arg-type, index]
            found.append([out[nodes] for out in outs])
            places.append(rows)
        back = torch.cat(places).argsort()
        return [torch.cat(parts)[back] if len(parts) > 1 else parts[0] for parts in zip(*found, strict=True)]

    def _stack(self, first: Spread, spread: Spread | None, steps: int) -> list[Tensor]:
        outs: list[Tensor] = []
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = functional.linear(outs[-1], weight) if outs else first(weight)
            seen = spread
            if self.attention:
                if not isinstance(spread, Matrix | None):
                    raise AcclimateError("gat weighs edges by itself, so a method cannot; set layer = gcn")
                seen = spread and partial(spread, values=attention(h, spread.places, self.attention[number]))
            for _ in range(steps if seen else 0):
                h = seen(h)  # type: ignore[misc]
            outs.append(self.dropout(functional.relu(h + bias)))
        return outs


def attention(h: Tensor, places: Tensor, vectors: Tensor) -> Tensor:
    """How much each node looks at each neighbour: softmax over a node's entries of LeakyReLU(a1 h_i + a2 h_j), slope 0.2. [entry]

    >>> attention(torch.zeros(2, 3), torch.tensor([[0, 0, 1], [0, 1, 1]]), torch.ones(2, 3)).tolist()
    [0.5, 0.5, 1.0]
    """
    to, of = (h @ vectors.T).unbind(1)
    scores = functional.leaky_relu(to[places[0]] + of[places[1]], 0.2)
    top = scores.detach().new_full((len(h),), -torch.inf).scatter_reduce(0, places[0], scores.detach(), "amax")
    shares = (scores - top[places[0]]).exp()
    return shares / shares.new_zeros(len(h)).index_add(0, places[0], shares)[places[0]]


BACKBONE = GraphNet
