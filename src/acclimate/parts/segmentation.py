"""Rows whose every place has a class of its own: places as rows, and the overlap of found and true areas."""

import torch
from torch import Tensor


def places(values: Tensor) -> Tensor:
    """Values [row, width, *place] as [row x place, width]; rows without places as they are.

    >>> places(torch.tensor([[[1, 2]], [[3, 4]]])).tolist()
    [[1], [2], [3], [4]]
    """
    return values.movedim(1, -1).reshape(-1, values.shape[1])


def confusion(found: Tensor, truth: Tensor, classes: int) -> Tensor:
    """How many places of each true class were found to be of each class [true, found]; places without a class (below 0) are left out.

    >>> confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 0, -100]), 2).tolist()
    [[1, 1], [0, 0]]
    """
    known = truth >= 0
    pairs = truth[known] * classes + found[known]
    return torch.bincount(pairs.flatten(), minlength=classes * classes).view(classes, classes)


def mean_overlap(table: Tensor) -> float:
    """Mean over classes of intersection over union (mIoU) of a confusion [true, found]; classes that are nowhere true are left out.

    >>> mean_overlap(torch.tensor([[2, 0, 0], [1, 1, 0], [0, 0, 0]]))  # 2 of 3, 1 of 2
    0.5833333333333333
    """
    hit, true = table.diag().double(), table.sum(1)
    return float((hit / (table.sum(0) + true - table.diag()).clamp(min=1))[true > 0].mean())
