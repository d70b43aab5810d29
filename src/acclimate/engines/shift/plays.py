"""Losses and who learns from each: the forms a step may yield, one update, the optimizer of all parts."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import AcclimateError
from .games import RungeKutta
from .learner import Learner, Players

Play = tuple[Tensor, Players]


def as_plays(given: Any) -> list[Play]:
    """What a step yields (a loss, (loss, players), or a list of these) as pairs; nobody named is everyone.

    >>> as_plays([torch.zeros(()), (torch.ones(()), "head")])
    [(tensor(0.), None), (tensor(1.), 'head')]
    """
    return [each if isinstance(each, tuple) else (each, None) for each in (given if isinstance(given, list) else [given])]


def finite(loss: Tensor, name: str, where: str, mend: str) -> float:
    """A method's loss as a number. Raises AcclimateError, saying where it was and how to mend it, for one that is not finite."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise AcclimateError(f"{name}: the loss is {value} at {where}; {mend}")
    return value


def play(learner: Learner, optimizer: torch.optim.Optimizer, plays: Sequence[Play], clip: float = 0.0) -> None:
    """Losses that were made from the same weights, each with who learns from it: all gradients first, then one step of all."""
    optimizer.zero_grad(set_to_none=True)
    taken: list[tuple[nn.Parameter, Tensor]] = []
    for number, (loss, players) in enumerate(plays):
        if players is None and len(plays) == 1:
            loss.backward()
            break
        weights = learner.weights(players)
        if not weights:
            raise AcclimateError(f"{players} should learn, but this network has no such weights; choose another method or backbone")
        grads = torch.autograd.grad(loss, weights, retain_graph=number + 1 < len(plays), allow_unused=True)
        taken += [(weight, grad) for weight, grad in zip(weights, grads, strict=True) if grad is not None]
    for weight, grad in taken:
        weight.grad = grad if weight.grad is None else weight.grad + grad
    if clip:
        torch.nn.utils.clip_grad_norm_(learner.weights(), clip)
    optimizer.step()


def optimizer_of(learner: Learner, training: Any) -> torch.optim.Optimizer:
    """The optimizer (Training's settings) of all weights that may learn; it moves what has a gradient.

    Each part has its own rate, and so may a module inside a part (``featurizer.0``).
    """
    players = learner.players()
    inner = {f"{player}.{name}": module for player, top in players.items() for name, module in top.named_modules() if name}
    known, rates = {**players, **inner}, training.rates or {}
    if unknown := [name for name in rates if name not in known]:
        raise AcclimateError(f"rates name {unknown[0]!r}, but nobody here is called that: {', '.join(players)}, or a module inside")
    rate_of = {  # the most exact name has the last word
        id(weight): training.lr * float(rates[name])
        for name in sorted(rates, key=lambda name: name.count("."))
        for weight in known[name].parameters()
    }
    groups: list[dict[str, Any]] = []
    for name in players:
        by_rate: dict[float, list[nn.Parameter]] = {}
        for weight in learner.weights(name):
            by_rate.setdefault(rate_of.get(id(weight), training.lr), []).append(weight)
        groups += [{"params": weights, "lr": rate} for rate, weights in by_rate.items()]
    if not groups:
        raise AcclimateError("nothing here has weights that may learn")
    kind, decay = training.optimizer, training.weight_decay
    if kind.startswith("rk"):
        return RungeKutta(groups, lr=training.lr, order=int(kind[2:]), weight_decay=decay)
    if kind == "sgd":
        return torch.optim.SGD(
            groups, lr=training.lr, momentum=training.momentum, nesterov=training.nesterov, weight_decay=decay, fused=True
        )
    if kind == "adadelta":
        return torch.optim.Adadelta(groups, lr=training.lr, weight_decay=decay)
    made = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
    return made(groups, lr=training.lr, weight_decay=decay, fused=True)
