"""Maths of graphs: sparse products, normalised adjacency, random walks, co-occurrence, how often classes are joined.

Kipf & Welling 2017, equation 2 (normalisation), https://arxiv.org/abs/1609.02907; Perozzi et al. 2014 (random walks),
https://arxiv.org/abs/1403.6652; Levy & Goldberg 2014 (positive pointwise mutual information), https://papers.nips.cc/paper/5477;
Zhou & Scholkopf 2004 (smoothness over a graph), https://doi.org/10.1007/978-3-540-28649-3_29"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)

Spread = Callable[[Tensor], Tensor]  # features of all nodes [node, width] -> what each node gets from the others [node, width]


class Matrix(nn.Module):
    """A sparse matrix with given places [2, entry] (row, column), in any order; called with h [column, width] it gives the product.

    Entries may be given anew at every call, and gradients reach them and h, twice if need be.

    >>> swap = Matrix(torch.tensor([[1, 0], [0, 1]]), torch.tensor([3.0, 2.0]), 2)
    >>> swap(torch.tensor([[1.0], [10.0]])).tolist()
    [[20.0], [3.0]]
    """

    def __init__(self, places: Tensor, values: Tensor, rows: int, columns: int = 0):
        super().__init__()
        self.shape = (rows, columns or rows)
        order = (places[0] * self.shape[1] + places[1]).argsort(stable=True)
        places = places[:, order]
        turned = (places[1] * self.shape[0] + places[0]).argsort(stable=True)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("values", values[order], persistent=False)
        self.register_buffer("turned", turned, persistent=False)  # the entries of the transposed matrix, in its order
        for name, index, size in (("starts", places[0], self.shape[0]), ("turned_starts", places[1], self.shape[1])):
            self.register_buffer(name, row_starts(index, size), persistent=False)

    places: Tensor
    values: Tensor
    turned: Tensor
    starts: Tensor
    turned_starts: Tensor

    def forward(self, h: Tensor, values: Tensor | None = None) -> Tensor:
        """[column, width] -> [row, width]."""
        return _Product.apply(self.values if values is None else values, h, self, False)

    def dense(self) -> Tensor:
        """The whole matrix [row, column]."""
        return self.values.new_zeros(self.shape).index_put((self.places[0], self.places[1]), self.values)

    def product(self, values: Tensor, h: Tensor, turned: bool) -> Tensor:
        """Without gradients; ``turned`` multiplies by the transposed matrix."""
        starts, columns, shape = self.starts, self.places[1], self.shape
        if turned:
            starts, columns, values, shape = self.turned_starts, self.places[0][self.turned], values[self.turned], shape[::-1]
        kind = torch.float64 if h.dtype == torch.float64 else torch.float32
        given = torch.sparse_csr_tensor(starts, columns, values.to(kind), shape, check_invariants=False)
        return (given @ h.to(kind)).to(h.dtype)


def row_starts(index: Tensor, size: int) -> Tensor:
    """Where each row begins among sorted entries [size + 1]; the last number is how many there are."""
    return torch.cat([index.new_zeros(1), torch.bincount(index, minlength=size).cumsum(0)])


def spans(starts: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Entries of some rows, given where each row begins [size + 1]: their places, and which of the rows each is of, both [entry].

    >>> [each.tolist() for each in spans(torch.tensor([0, 2, 3, 6]), torch.tensor([2, 0]))]
    [[3, 4, 5, 0, 1], [0, 0, 0, 1, 1]]
    """
    lengths = starts[which + 1] - starts[which]
    owner = torch.arange(len(which), device=which.device).repeat_interleave(lengths)
    before = lengths.cumsum(0) - lengths
    return (starts[which] - before)[owner] + torch.arange(len(owner), device=which.device), owner


def pooled(h: Tensor, owner: Tensor, count: int, how: str = "mean") -> Tensor:
    """One row for each of so many graphs: mean, sum or max of its nodes' features h [node, width], ``owner`` [node] -> [graph, width].

    >>> [pooled(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 2, how).flatten().tolist() for how in ("mean", "sum", "max")]
    [[2.0, 5.0], [4.0, 5.0], [3.0, 5.0]]
    """
    if how == "max":
        return h.new_zeros(count, h.shape[1]).scatter_reduce(0, owner[:, None].expand_as(h), h, "amax", include_self=False)
    total = h.new_zeros(count, h.shape[1]).index_add(0, owner, h)
    return total if how == "sum" else total / torch.bincount(owner, minlength=count).clamp(min=1)[:, None]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, h: Tensor, matrix: Matrix, turned: bool) -> Tensor:
        ctx.save_for_backward(values, h)
        ctx.matrix, ctx.turned = matrix, turned
        return matrix.product(values, h, turned)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        values, h = ctx.saved_tensors
        to_values, to_h = None, None
        if ctx.needs_input_grad[0]:
            rows, columns = ctx.matrix.places.flip(0) if ctx.turned else ctx.matrix.places
            to_values = (grads[0][rows] * h[columns]).sum(1).to(values.dtype)
        if ctx.needs_input_grad[1]:
            to_h = _Product.apply(values, grads[0], ctx.matrix, not ctx.turned)
        return to_values, to_h, None, None


def normalised(places: Tensor, weights: Tensor, count: int) -> Tensor:
    """Entries of D^-1/2 A D^-1/2, D the sums of A's rows: weights [entry] at places [2, entry] -> [entry]; 0 where a sum is 0.

    >>> normalised(torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]]), torch.tensor([1.0, 3.0, 3.0, 1.0]), 2).tolist()
    [0.25, 0.75, 0.75, 0.25]
    """
    sums = weights.new_zeros(count).index_add(0, places[0], weights)
    scale = torch.where(sums > 0, sums.clamp(min=1e-12).rsqrt(), torch.zeros_like(sums))
    return scale[places[0]] * weights * scale[places[1]]


def with_loops(edges: Tensor, count: int) -> Tensor:
    """Edges [2, edge] and after them one from each node to itself [2, edge + node]."""
    return torch.cat([edges, torch.arange(count, device=edges.device).expand(2, -1)], 1)


def walks(edges: Tensor, begin: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Random walks from some nodes: [walk] -> [walk, length + 1], the first node included; a node without neighbours is stayed at.

    ``edges`` are sorted by their first node.

    >>> walks(torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 2]), 3, torch.Generator()).tolist()
    [[0, 1, 0, 1], [2, 2, 2, 2]]
    """
    count = int(max(edges.max() if edges.numel() else 0, begin.max())) + 1
    starts = row_starts(edges[0], count)
    degrees, places = starts.diff(), [begin]
    for _ in range(length):
        at = places[-1]
        drawn = (torch.rand(len(at), generator=generator).to(at.device) * degrees[at]).long()
        moved = starts[at] + drawn.minimum((degrees[at] - 1).clamp(min=0))
        places.append(torch.where(degrees[at] > 0, edges[1][moved.clamp(max=max(edges.shape[1] - 1, 0))], at) if edges.numel() else at)
    return torch.stack(places, 1)


def visits(edges: Tensor, count: int, length: int, repeats: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """How often walks of 1 to ``length`` steps from a node visit another one: places [2, entry] and shares of the node's visits [entry].

    ``repeats`` walks from each node; 0 gives the expected shares, by powers of the transition matrix (dense: for small graphs).
    """
    if repeats:
        begin = torch.arange(count).repeat(repeats)
        paths = walks(edges, begin, length, generator)[:, 1:]
        lengths = torch.randint(1, length + 1, (len(begin),), generator=generator)
        seen = (torch.arange(length) < lengths[:, None]) & (paths != begin[:, None])
        codes, times = torch.unique((begin[:, None] * count + paths)[seen], return_counts=True)
        places, found = torch.stack([codes // count, codes % count]), times.float()
    else:
        step = torch.zeros(count, count).index_put((edges[0], edges[1]), torch.ones(edges.shape[1]))
        step = step / step.sum(1, keepdim=True).clamp(min=1)
        power, every = torch.eye(count), torch.zeros(count, count)
        for number in range(length):
            power = power @ step
            every = every + (length - number) * power
        every.fill_diagonal_(0)
        places = every.nonzero().T
        found = every[places[0], places[1]]
    return places, found / found.new_zeros(count).index_add(0, places[0], found)[places[0]]


def ppmi(edges: Tensor, count: int, length: int = 10, repeats: int = 40, generator: torch.Generator | None = None) -> Matrix:
    """Which nodes walks visit more often than chance, max(0, log(share / (mean share of the visited node))), with loops and normalised.

    >>> path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    >>> [round(each, 3) for each in ppmi(path, 3, 1, 0)(torch.eye(3))[1].tolist()]  # log 3 to both ends and 1 to itself, normalised
    [0.518, 0.313, 0.518]
    """
    places, shares = visits(edges, count, length, repeats, generator or torch.Generator())
    into = shares.new_zeros(count).index_add(0, places[1], shares)
    found = (shares * count / into[places[1]]).log().clamp(min=0)
    places, found = with_loops(places, count), torch.cat([found, torch.ones(count)])
    return Matrix(places, normalised(places, found, count), count)


def joined(edges: Tensor, shares: Tensor) -> Tensor:
    """How often nodes of two classes are joined, as a share of their pairs, from class shares [node, class]: [class, class].

    >>> joined(torch.tensor([[0, 1], [1, 0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])).tolist()
    [[0.0, 0.5], [0.5, 0.0]]
    """
    sizes = shares.sum(0)
    return shares[edges[0]].T @ shares[edges[1]] / (sizes[:, None] * sizes)


def roughness(edges: Tensor, z: Tensor) -> Tensor:
    """Sum over edges [2, edge] of half the squared difference of features [node, width], each over the root of its degree: scalar.

    >>> roughness(torch.tensor([[0, 1], [1, 0]]), torch.tensor([[1.0], [3.0]])).item()
    4.0
    """
    degrees = torch.bincount(edges[0], minlength=len(z)).to(z.dtype)
    scaled = z * torch.where(degrees > 0, degrees.clamp(min=1).rsqrt(), torch.zeros_like(degrees))[:, None]
    return (scaled[edges[0]] - scaled[edges[1]]).square().sum() / 2
