"""Runge-Kutta steps for games: encoder against domain classifier moves along a field that plain gradient steps spiral out of."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

TABLES: dict[
    int, tuple[tuple[float, ...], tuple[float, ...]]
] = {  # where the field is taken (as shares of the last k), how the k are weighted
    2: ((0.0, 1.0), (0.5, 0.5)),
    4: ((0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


class RungeKutta(torch.optim.Optimizer):
    """Heun's method (order 2) or the classical one (order 4) along minus the gradient, to which weight decay belongs.

    Acuna et al. 2022, section 5, https://arxiv.org/abs/2202.05352. ``step`` calls the closure ``order`` times: it must clear the
    gradients, run the loss on the same batch with the same draws, and call backward.

    >>> x, y = (torch.tensor([1.0], requires_grad=True) for _ in range(2))
    >>> optimizer = RungeKutta([x, y], lr=1.0, order=4)
    >>> def closure():  # min over x, max over y, of x y
    ...     x.grad, y.grad = y.detach().clone(), -x.detach().clone()
    >>> optimizer.step(closure); [round(v.item(), 4) for v in (x, y)]  # a turn by one radian: cos 1 - sin 1, cos 1 + sin 1, to order 4
    [-0.2917, 1.375]
    """

    def __init__(self, weights: Iterable[Any], lr: float, order: int = 2, weight_decay: float = 0.0):
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})
        self.order = order

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> None:  # type: ignore[override]
        """One step."""
        every = [(weight, group) for group in self.param_groups for weight in group["params"]]
        start = [weight.clone() for weight, _ in every]
        change: list[Tensor] = [torch.zeros_like(weight) for weight, _ in every]
        last: list[Tensor] = change
        for where, share in zip(*TABLES[self.order], strict=True):
            if where:
                for (weight, group), old, slope in zip(every, start, last, strict=True):
                    weight.copy_(old + where * group["lr"] * slope)
            with torch.enable_grad():
                closure()
            last = [
                -(torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()).add(weight, alpha=group["weight_decay"])
                for weight, group in every
            ]
            change = [total + share * slope for total, slope in zip(change, last, strict=True)]
        for (weight, group), old, total in zip(every, start, change, strict=True):
            weight.copy_(old + group["lr"] * total)
