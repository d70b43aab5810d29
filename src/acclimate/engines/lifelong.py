"""One policy that learns task after task with all its weights, in the ways that continual learning knows: what TAIL is compared with.

full: every task on the last one's weights. replay: with demonstrations of all earlier tasks in every step. ewc: held near them by how much
they matter (online, the sum fades). packnet: each task claims a share of the weights, which later ones leave alone. frozen: fusion and head
alone. copies: a whole policy for each task.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from ..domain.demonstrations import Demonstrations
from ..errors import AcclimateError, nearest
from ..models.control import Policy
from ..models.skills import OWN
from ..parts.continual import claimed, ewc_penalty, faded
from .control import Cloning, clone, log_probs, prepare

WAYS = ("full", "replay", "ewc", "packnet", "frozen", "copies")
Pair = tuple[Demonstrations, Demonstrations]  # to learn from, and to stop by


def in_turn(
    start: Policy, tasks: Mapping[str, Pair], way: str, training: Cloning, seed: int, *, strength: float = 1e3, decay: float = 0.9
) -> Iterator[tuple[str, Callable[[str], Policy]]]:
    """After each task: its name, and a function from a task learned so far to the policy that does it now.

    strength, decay: of ewc. ``start`` stays as it is. Raises AcclimateError for a way that does not exist.
    """
    if way not in WAYS:
        raise AcclimateError(f"no way to learn in turn is named {way!r}{nearest(way, WAYS)}")
    policy = copy.deepcopy(start)
    learning = [part for name, part in policy.named_children() if way != "frozen" or name in OWN]
    policy.requires_grad_(False)
    for part in learning:
        part.requires_grad_(True)
    if way == "packnet":
        yield from _packed(policy, tasks, training, seed)
        return
    past: list[Demonstrations] = []
    importance: dict[str, Tensor] = {}
    anchors: dict[str, Tensor] = {}
    kept: dict[str, Policy] = {}
    for name, (shown, held) in tasks.items():
        replay = Demonstrations.together("earlier", past) if way == "replay" and past else None
        penalty = partial(ewc_penalty, anchors=anchors, importance=importance, strength=strength) if importance else None
        if way == "copies":
            policy = copy.deepcopy(start).requires_grad_(True)
        clone(policy, shown, held, training, seed, replay=replay, penalty=penalty)
        past.append(shown)
        if way == "ewc":
            importance = faded(importance, fisher(policy, shown), decay)
            anchors = {key: weight.detach().clone() for key, weight in policy.named_parameters()}
        kept[name] = policy
        yield name, lambda task: kept[task]


def fisher(policy: Policy, demos: Demonstrations) -> dict[str, Tensor]:
    """Mean squared gradient of each demonstration's mean log-probability, by weight: how much it matters to what is shown."""
    ready = prepare(policy, demos)
    weights = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    policy.eval()
    windows = ready.windows(policy.window)
    for row in windows.split(1):
        found = torch.autograd.grad(log_probs(policy, ready, row).mean(), list(weights.values()), allow_unused=True)
        for name, gradient in zip(total, found, strict=True):
            if gradient is not None:
                total[name] += gradient.square() / len(windows)
    return total


def _packed(policy: Policy, tasks: Mapping[str, Pair], training: Cloning, seed: int) -> Iterator[tuple[str, Callable[[str], Policy]]]:
    """Train what is free, keep the share that changed most, put the rest back, and train what was kept again (Mallya & Lazebnik)."""
    weights = dict(policy.named_parameters())
    first = {name: weight.detach().clone() for name, weight in weights.items()}
    owner = {name: torch.full(weight.shape, -1) for name, weight in weights.items()}
    names = list(tasks)
    for number, (name, (shown, held)) in enumerate(tasks.items()):
        free = {key: own < 0 for key, own in owner.items()}
        clone(policy, shown, held, training, seed, free=free)
        mine = {key: claimed(weights[key].detach() - first[key], free[key], 1 / len(names)) for key in weights}
        with torch.no_grad():
            for key, mask in mine.items():
                weights[key].copy_(torch.where(free[key] & ~mask, first[key], weights[key]))
                owner[key][mask] = number
        clone(policy, shown, held, training, seed, free=mine)

        def at(task: str) -> Policy:
            made = copy.deepcopy(policy)
            with torch.no_grad():
                for key, weight in made.named_parameters():
                    weight.copy_(torch.where(owner[key] > names.index(task), first[key], weight))
            return made.eval()

        yield name, at
