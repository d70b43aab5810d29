"""Architectures judged before they are trained, by one batch, and a search among them.

Abdelfattah et al. 2021 (zero-cost proxies), https://arxiv.org/abs/2101.08134; Mellor et al. 2021 (correlation of Jacobians, first version),
https://arxiv.org/abs/2006.04647; Tanaka et al. 2020 (SynFlow), https://arxiv.org/abs/2006.05467; Lee et al. 2019 (SNIP),
https://arxiv.org/abs/1810.02340"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

PROXIES = ("grad_norm", "snip", "synflow", "jacobian")
JITTER = 1e-5


def proxies(run: Callable[[Mapping[str, Tensor], Tensor], Tensor], weights: Mapping[str, Tensor], z: Tensor, y: Tensor) -> dict[str, float]:
    """What four proxies say of a network with its first weights, higher is better; ``run`` (weights, z [row, *shape]) gives scores.

    grad_norm: sum of the gradients' norms, tensor by tensor; snip: sum of |weight x gradient|; synflow: the same of the sum of outputs with
    absolute weights and an input of ones; jacobian: -sum of log v + 1 / v over the eigenvalues of the correlations between rows' Jacobians.

    >>> found = proxies(lambda w, z: z @ w["w"].T, {"w": torch.tensor([[1.0, 0.0], [0.0, -2.0]])}, torch.eye(2), torch.tensor([0, 1]))
    >>> round(found["snip"], 4), found["synflow"]  # (0.2689 x 1 + 0.8808 x 2) / 2, 1 + 2
    (1.0153, 3.0)
    """
    own = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}
    rows = z.detach().clone().requires_grad_()
    scores = run(own, rows)
    jacobian = torch.autograd.grad(scores.sum(), rows, retain_graph=True)[0].float()
    grads = torch.autograd.grad(functional.cross_entropy(scores, y), list(own.values()))
    size = {name: value.detach().abs().requires_grad_() for name, value in weights.items()}
    flow = torch.autograd.grad(run(size, torch.ones_like(z[:1])).sum(), list(size.values()))
    return {
        "grad_norm": sum(float(grad.norm()) for grad in grads),
        "snip": sum(float((value * grad).detach().abs().sum()) for value, grad in zip(own.values(), grads, strict=True)),
        "synflow": sum(float((value * grad).detach().abs().sum()) for value, grad in zip(size.values(), flow, strict=True)),
        "jacobian": spread_of(jacobian.flatten(1)),
    }


def spread_of(jacobian: Tensor) -> float:
    """-sum of log v + 1 / v over the eigenvalues v of the correlations between rows [row, width]: high where rows are told apart.

    >>> spread_of(torch.eye(4)) > spread_of(torch.ones(4, 4) + 0.01 * torch.eye(4)[:, [1, 0, 3, 2]].cumsum(0))
    True
    """
    centred = functional.normalize(jacobian - jacobian.mean(1, keepdim=True), dim=1)
    values = torch.linalg.eigvalsh(centred @ centred.T).clamp(min=0) + JITTER
    return float(-(values.log() + 1 / values).sum())


def judged(table: Sequence[Mapping[str, float]], sizes: Sequence[int], penalty: float) -> list[float]:
    """Mean rank over the proxies (0: worst of all, 1: best) less ``penalty`` x size as a share of the largest; equal values share a rank.

    >>> judged([{"a": 1.0, "b": 9.0}, {"a": 2.0, "b": 3.0}, {"a": 5.0, "b": 9.0}], [10, 10, 20], 0.5)
    [0.125, 0.0, 0.375]
    """
    values = torch.tensor([list(row.values()) for row in table], dtype=torch.float64)  # [candidate, proxy]
    under, level = (how(values[:, None], values).double().sum(1) for how in (torch.gt, torch.eq))
    rank = (under + (level - 1) / 2).mean(1) / max(1, len(table) - 1)
    return (rank - penalty * torch.tensor(sizes) / max(sizes)).tolist()


def evolved(
    space: Sequence[dict[str, Any]], look: Callable[[dict[str, Any]], tuple[dict[str, float], int]], count: int, penalty: float,
    draw: torch.Generator, first: int = 20, born: int = 10,
) -> tuple[dict[str, Any], list[tuple[dict[str, Any], float]]]:  # fmt: skip
    """The best of ``count`` members of a space, found by evolution, and all that were looked at with what they are worth.

    ``look`` gives a member's proxies and its number of weights. ``first`` members are drawn; then in each generation ``born`` are added,
    each of which differs in a single entry from one of the better half so far, or is drawn where none such is left.

    >>> space = [{"a": a, "b": b} for a in range(10) for b in range(10)]
    >>> evolved(space, lambda m: ({"x": float(m["a"] * m["b"])}, 1), 60, 0.0, torch.Generator().manual_seed(0))[0]
    {'a': 9, 'b': 9}
    """

    def one_of(places: Sequence[int]) -> int:
        return places[int(torch.randint(len(places), (1,), generator=draw))]

    count = min(count, len(space))
    left = torch.randperm(len(space), generator=draw).tolist()
    taken, left = left[: min(first, count)], left[min(first, count) :]
    told = [look(space[place]) for place in taken]
    while True:
        worth = judged([found for found, _ in told], [size for _, size in told], penalty)
        order = sorted(range(len(taken)), key=lambda i: -worth[i])
        if len(taken) == count:
            return space[taken[order[0]]], [(space[place], value) for place, value in zip(taken, worth, strict=True)]
        better = [taken[i] for i in order[: max(1, len(taken) // 2)]]
        for _ in range(min(born, count - len(taken))):
            parent = space[one_of(better)]
            near = [place for place in left if sum(space[place][key] != parent[key] for key in parent) == 1]
            taken.append(one_of(near or left))
            left.remove(taken[-1])
            told.append(look(space[taken[-1]]))
