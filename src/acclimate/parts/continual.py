"""Learning one task after another: the price of moving away from earlier ones, who may use which weight, what was carried over or lost.

Kirkpatrick et al. 2017, equation 3 (EWC), https://arxiv.org/abs/1612.00796; Schwarz et al. 2018, section 4 (one sum that fades, online
EWC), https://arxiv.org/abs/1805.06370; Mallya & Lazebnik 2018 (PackNet), https://arxiv.org/abs/1711.05769; Lopez-Paz & Ranzato 2017,
section 2 (success matrix, backward transfer), https://arxiv.org/abs/1706.08840; forward transfer as in Liu et al. 2023,
https://arxiv.org/abs/2310.05905; Chaudhry et al. 2018 (forgetting), https://arxiv.org/abs/1801.10112; Biondi et al. 2024 (queries of a
later network in an earlier one's gallery), https://arxiv.org/abs/2405.02581"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..errors import AcclimateError

Weights = Mapping[str, Tensor]


def ewc_penalty(weights: Weights, anchors: Weights, importance: Weights, strength: float) -> Tensor:
    """strength / 2 x sum of importance x (weight - anchor)^2 over the weights that have an importance: scalar.

    >>> one = torch.tensor([1.0, 2.0])
    >>> ewc_penalty({"w": one}, {"w": torch.zeros(2)}, {"w": torch.tensor([3.0, 0.5])}, 10.0).item()  # 5 x (3 x 1 + 0.5 x 4)
    25.0
    """
    if missing := [name for name in importance if name not in weights or name not in anchors]:
        raise AcclimateError(f"{missing[0]} has an importance, but no weight or no anchor; give all three the same names")
    if not importance:
        return torch.zeros(())
    pulls = [(value * (weights[name] - anchors[name]).square()).sum() for name, value in importance.items()]
    return 0.5 * strength * torch.stack(pulls).sum()


def faded(before: Weights, new: Weights, decay: float) -> dict[str, Tensor]:
    """Importance over all tasks so far: decay x what it was + that of the newest task.

    >>> faded({"w": torch.tensor([2.0])}, {"w": torch.tensor([1.0])}, 0.5)
    {'w': tensor([2.])}
    """
    return {name: value + decay * before[name] if name in before else value.clone() for name, value in new.items()}


def claimed(change: Tensor, free: Tensor, share: float) -> Tensor:
    """Which entries a task keeps for itself: of those that are free, the ones that changed most, ``share`` of the whole tensor (bool).

    >>> claimed(torch.tensor([0.1, -3.0, 2.0, 0.0]), torch.tensor([True, False, True, True]), 0.5).tolist()
    [True, False, True, False]
    """
    count = min(int(free.sum()), round(share * change.numel()))
    kept = torch.zeros(change.numel(), dtype=torch.bool, device=change.device)
    size = change.abs().masked_fill(~free, -1.0).flatten()
    kept[size.topk(count).indices] = True
    return kept.view(change.shape)


def forward_transfer(matrix: ArrayLike) -> float:
    """Mean success on each task right after it was learned. matrix [task learned last, task measured]; nan where nothing was measured.

    >>> forward_transfer([[0.8, np.nan], [0.2, 0.6]])
    0.7
    """
    return float(np.mean(np.diag(_measured(matrix, diagonal=True))))


def backward_transfer(matrix: ArrayLike) -> float:
    """Mean change of success on earlier tasks from when they were learned to the end; below 0 where they were forgotten.

    >>> round(backward_transfer([[0.8, np.nan], [0.2, 0.6]]), 4)
    -0.6
    """
    held = _measured(matrix, diagonal=True, last=True)
    if len(held) < 2:
        raise AcclimateError("backward transfer needs at least two tasks")
    return float(np.mean(held[-1, :-1] - np.diag(held)[:-1]))


def forgetting(matrix: ArrayLike) -> float:
    """Mean loss on earlier tasks from the best that was ever reached to the end (Chaudhry et al. 2018, equation 3).

    >>> round(forgetting([[0.8, 0.1, 0.0], [0.9, 0.6, 0.0], [0.2, 0.5, 0.7]]), 4)  # (0.9 - 0.2 + 0.6 - 0.5) / 2
    0.4
    """
    held = _measured(matrix, last=True)
    if len(held) < 2:
        raise AcclimateError("forgetting needs at least two tasks")
    best = [np.nanmax(held[task:-1, task]) for task in range(len(held) - 1)]
    return float(np.mean(np.array(best) - held[-1, :-1]))


def fisher(net: torch.nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Mean squared gradient of log p(y | x) over rows, for every weight that learns: the diagonal of Fisher's information.

    >>> net = torch.nn.Linear(1, 2, bias=False)
    >>> _ = net.weight.data.zero_()
    >>> fisher(net, torch.tensor([[2.0]]), torch.tensor([0]))["weight"].flatten().tolist()  # (1/2 x 2)^2 each
    [1.0, 1.0]
    """
    from torch.func import functional_call, grad, vmap

    learned = {name: value.detach() for name, value in net.named_parameters() if value.requires_grad}

    def loss(weights: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(functional_call(net, weights, (row[None],)), label[None])

    taken = [vmap(grad(loss), (None, 0, 0))(learned, rows, labels) for rows, labels in zip(x.split(64), y.split(64), strict=True)]
    return {name: torch.stack([part[name].square().sum(0) for part in taken]).sum(0) / len(x) for name in learned}


def over_the_stream(matrix: ArrayLike) -> dict[str, float]:
    """Mean success on the domain at hand (TDA), on those still to come (TDG), on those that went by (FA), and the mean of the three (All).

    matrix [domain learned last, measured]; the first domain, which has labels, is not counted as the one at hand. Of TDG and FA the mean
    is taken after each domain, then over the stream. Liu et al. 2023, https://arxiv.org/abs/2301.10418

    >>> found = over_the_stream([[0.9, 0.4, 0.2], [0.8, 0.6, 0.5], [0.7, 0.5, 0.6]])
    >>> {name: round(value, 3) for name, value in found.items()}  # (0.6 + 0.6) / 2, (0.3 + 0.5) / 2, (0.8 + 0.6) / 2
    {'TDA': 0.6, 'TDG': 0.4, 'FA': 0.7, 'All': 0.567}
    """
    held = _measured(matrix, diagonal=True, last=True)
    count = len(held)
    if count < 2:
        raise AcclimateError("a stream needs at least two domains")
    found = {
        "TDA": np.mean(np.diag(held)[1:]),
        "TDG": np.mean([held[task, task + 1 :].mean() for task in range(count - 1)]),
        "FA": np.mean([held[task, :task].mean() for task in range(1, count)]),
    }
    return {**{name: float(value) for name, value in found.items()}, "All": float(np.mean(list(found.values())))}


def final_success(matrix: ArrayLike) -> float:
    """Mean success on all tasks at the end.

    >>> final_success([[0.8, np.nan], [0.2, 0.6]])
    0.4
    """
    return float(np.mean(_measured(matrix, last=True)[-1]))


def compatibility(matrix: ArrayLike) -> float:
    """Share of pairs in which a later network's queries find more in an earlier gallery than that gallery's own network did (AC).

    matrix [network that asks, network that indexed]; what lies above the diagonal is not looked at.

    >>> compatibility([[0.5, 0.0, 0.0], [0.6, 0.6, 0.0], [0.4, 0.7, 0.8]])  # 0.6 > 0.5 and 0.7 > 0.6, but 0.4 < 0.5
    0.6666666666666666
    """
    held = _measured(matrix, diagonal=True, last=True)
    later, earlier = np.tril_indices(len(held), -1)
    if not len(later):
        raise AcclimateError("compatibility needs at least two networks")
    return float(np.mean(held[later, earlier] > held[earlier, earlier]))


def average_success(matrix: ArrayLike) -> float:
    """Mean over networks that ask and galleries that are not newer (AA).

    >>> round(average_success([[0.5, 0.0], [0.6, 0.7]]), 4)  # (0.5 + 0.6 + 0.7) / 3
    0.6
    """
    held = _measured(matrix, diagonal=True, last=True)
    return float(np.mean(held[np.tril_indices(len(held))]))


def _measured(matrix: ArrayLike, *, diagonal: bool = False, last: bool = False) -> np.ndarray:
    """The matrix, whose entries that are asked for are there."""
    held = np.asarray(matrix, dtype=float)
    if held.ndim != 2 or held.shape[0] != held.shape[1] or not len(held):
        raise AcclimateError(f"the matrix has the shape {list(held.shape)}, but must be [task, task]: a row for each task learned")
    for task in range(len(held)):
        if diagonal and np.isnan(held[task, task]):
            raise AcclimateError(f"task {task + 1} was not measured right after it was learned")
        if last and np.isnan(held[-1, task]):
            raise AcclimateError(f"task {task + 1} was not measured at the end")
    return held
