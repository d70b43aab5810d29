"""TransE: embeddings of a knowledge graph in which a relation is a step from the head to the tail.

Bordes et al. 2013, Algorithm 1, https://papers.nips.cc/paper/5071: entities of length 1, score -|h + r - t|, a margin between each fact
and one whose head or tail is drawn anew. The step sizes are Adam's instead of plain gradient descent.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..domain import Domain
from ..errors import AcclimateError
from ..model.knowledge import Knowledge

Triple = tuple[str, str, str]  # head, relation, tail


def distance(head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
    """|h + r - t| [...] in the 2-norm.

    >>> distance(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 4.0]), torch.tensor([0.0, 0.0])).item()
    5.0
    """
    return (head + relation - tail).norm(dim=-1)


def train(
    triples: Sequence[Triple],
    *,
    width: int = 128,
    epochs: int = 50,
    margin: float = 1.0,
    lr: float = 1e-2,
    batch: int = 1024,
    seed: int = 0,
) -> Knowledge:
    """Embeddings of all entities, of length 1. The same seed gives the same; the caller's random state is left as it was."""
    if not triples:
        raise AcclimateError("TransE was given no facts; give triples of head, relation, tail")
    names = sorted({end for head, _, tail in triples for end in (head, tail)})
    relations = sorted({relation for _, relation, _ in triples})
    number, kind = ({name: i for i, name in enumerate(some)} for some in (names, relations))
    facts = torch.tensor([[number[head], kind[relation], number[tail]] for head, relation, tail in triples])
    draw = torch.Generator().manual_seed(seed)
    entities, steps = (
        nn.Parameter(functional.normalize(torch.rand(len(some), width, generator=draw) - 0.5, dim=1)) for some in (names, relations)
    )
    optimizer = torch.optim.Adam([entities, steps], lr=lr)
    for epoch in range(epochs):
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(facts)))
        for rows in order.split(batch):
            head, relation, tail = facts[rows].T
            other = torch.randint(len(names), (len(rows),), generator=draw)
            side = torch.rand(len(rows), generator=draw) < 0.5
            own = functional.normalize(entities, dim=1)
            right = distance(own[head], steps[relation], own[tail])
            wrong = distance(own[torch.where(side, other, head)], steps[relation], own[torch.where(side, tail, other)])
            optimizer.zero_grad()
            (margin + right - wrong).relu().mean().backward()
            optimizer.step()
    return Knowledge(names, functional.normalize(entities.detach(), dim=1))


def embedded(facts: Domain, *, width: int, epochs: int, seed: int) -> Knowledge:
    """The entities of a domain of facts (all its splits) with embeddings learned from them. Raises AcclimateError for another form."""
    if facts.form != "facts":
        raise AcclimateError(f"domain {facts.name!r} holds {facts.form}, but knowledge is facts: rows with head, relation and tail")
    triples = [(row["head"], row["relation"], row["tail"]) for rows in facts.splits.values() for row in rows]
    return train(triples, width=width, epochs=epochs, seed=seed)
